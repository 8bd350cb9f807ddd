"""A checkpoint of the shape of GPT-OSS, with traps and heavy tails planted where one knows of them.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     planted = [Planted(0, "down_proj", 1, traps=2)]
...     write_gpt_oss(folder, blocks=1, experts=2, hidden=64, intermediate=64, vocabulary=100, planted=planted)
...     names = [layer.name for layer in find_layers(folder)]
>>> names[1:6]  # doctest: +NORMALIZE_WHITESPACE
['model.embed_tokens', 'model.layers.0.mlp.experts.down_proj[0]', 'model.layers.0.mlp.experts.down_proj[1]',
 'model.layers.0.mlp.experts.gate_up_proj[0]', 'model.layers.0.mlp.experts.gate_up_proj[1]']

Names, types and order of axes are those of the checkpoints on Hugging Face: the experts' weights as MXFP4 (`to_mxfp4`), the rest as
bfloat16, in several shards with an index. The weights are random: this tests a reader, not a theory.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grokutils.spectra.layers import find_layers  # noqa: F401 - for the example

__all__ = ["GPT_OSS_20B", "Planted", "from_mxfp4", "to_mxfp4", "write_gpt_oss"]

#: True sizes of the smaller model, for `write_gpt_oss`; it has 24 blocks.
GPT_OSS_20B = {
    "experts": 32, "hidden": 2880, "intermediate": 2880, "vocabulary": 201_088, "heads": 64, "keys": 8, "head": 64,
}  # fmt: skip

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)
_HALFWAY = (_E2M1[1:] + _E2M1[:-1]) / 2
_BLOCK = 32  # numbers that share an exponent
_STD = 0.03125  # of the weights: a power of two, of which codes are multiples


@dataclass(frozen=True)
class Planted:
    """What is put into one expert."""

    block: int
    #: "gate_up_proj" or "down_proj".
    matrix: str
    expert: int
    #: Single weights of ``size`` standard deviations; each makes one trap if it is large enough for the shape.
    traps: int = 0
    size: float = 60.0
    #: Exponent of a power law for a quarter of the eigenvalues; 0 for none.
    alpha: float = 0.0


def to_mxfp4(W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks (rows, columns / 32, 16) of two codes a byte, the lower half first, and scales (rows, columns / 32).

    >>> from_mxfp4(*to_mxfp4(np.arange(32.0)[None]))[0, [4, 11, 23, 31]].tolist()
    [4.0, 12.0, 24.0, 24.0]

    The exponent of a block is that of its largest number less 2, as the standard has it (OCP Microscaling Formats 1.0, section 6.3), so
    what is largest may be cut by up to a quarter; numbers are rounded to the nearest of the 15 that four bits can be.
    """
    rows, columns = W.shape
    if columns % _BLOCK:
        raise ValueError(f"columns must be a multiple of {_BLOCK}; got {columns}.")
    parts = np.asarray(W, dtype=np.float32).reshape(rows, columns // _BLOCK, _BLOCK)
    largest = np.abs(parts).max(axis=2)
    exponent = np.where(largest > 0, np.frexp(largest)[1] - 3, -127).clip(-127, 127)
    scaled = parts * np.ldexp(np.float32(1), -exponent)[..., None]
    codes = np.searchsorted(_HALFWAY, np.abs(scaled)).astype(np.uint8)
    codes |= np.signbit(scaled).astype(np.uint8) << 3
    return codes[..., 0::2] | codes[..., 1::2] << 4, (exponent + 127).astype(np.uint8)


def from_mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The numbers that blocks and scales stand for, in float32."""
    table = np.concatenate([_E2M1, -_E2M1])
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*scales.shape, _BLOCK)
    values = table[codes] * np.ldexp(np.float32(1), scales.astype(np.int32) - 127)[..., None]
    return values.reshape(*scales.shape[:-1], -1)


def write_gpt_oss(
    folder: str | os.PathLike,
    *,
    blocks: int = 2,
    experts: int = 4,
    hidden: int = 128,
    intermediate: int = 128,
    vocabulary: int = 500,
    heads: int = 4,
    keys: int = 2,
    head: int = 32,
    planted: Sequence[Planted] = (),
    seed: int = 0,
    shard_bytes: int = 4 << 30,
) -> None:
    """Write such a checkpoint into a folder, one matrix in memory at a time.

    Parameters
    ----------
    folder : made if it is not there
    blocks, experts, hidden, intermediate, vocabulary, heads, keys, head : sizes; keys are heads of the keys, and head the size of
        each. ``**GPT_OSS_20B`` are the true ones: 0.8 GB for the embedding and readout each, 0.4 GB a block
    planted : what is put where; all other entries are Gaussian, rounded
    seed : of all of it
    shard_bytes : a shard ends with the tensor that takes it past this
    """
    sizes = {"gate_up_proj": (2 * intermediate, hidden), "down_proj": (hidden, intermediate)}
    for what in planted:
        if what.matrix not in sizes or not (0 <= what.block < blocks and 0 <= what.expert < experts):
            raise ValueError(f"there is no such expert: {what}.")
    chosen = {(what.block, what.matrix, what.expert): what for what in planted}
    tensors: list[_Tensor] = []

    def dense(name: str, *shape: int) -> None:
        tensors.append(_Tensor(name, "BF16", shape, lambda: _gaussian(shape, [seed, len(name), *name.encode()])))

    def stack(block: int, name: str) -> None:
        rows, columns = sizes[name]
        shape = (experts, rows, columns // _BLOCK)

        def quantised(part: int) -> Iterator[bytes]:
            for e in range(experts):
                rng = np.random.default_rng([seed, block, len(name), e])
                what = chosen.get((block, name, e))
                made = _codes(rows, columns, rng) if what is None else to_mxfp4(_with_planted(rows, columns, what, rng))
                yield made[part].tobytes()

        full = f"model.layers.{block}.mlp.experts.{name}"
        dense(f"{full}_bias", experts, rows)
        tensors.append(_Tensor(f"{full}_blocks", "U8", (*shape, _BLOCK // 2), lambda: quantised(0)))
        tensors.append(_Tensor(f"{full}_scales", "U8", shape, lambda: quantised(1)))

    dense("model.embed_tokens.weight", vocabulary, hidden)
    for block in range(blocks):
        attention = f"model.layers.{block}.self_attn"
        for name, outputs, inputs in (
            ("q_proj", heads * head, hidden), ("k_proj", keys * head, hidden), ("v_proj", keys * head, hidden),
            ("o_proj", hidden, heads * head),
        ):  # fmt: skip
            dense(f"{attention}.{name}.weight", outputs, inputs)
            dense(f"{attention}.{name}.bias", outputs)
        dense(f"{attention}.sinks", heads)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            dense(f"model.layers.{block}.{norm}.weight", hidden)
        dense(f"model.layers.{block}.mlp.router.weight", experts, hidden)
        dense(f"model.layers.{block}.mlp.router.bias", experts)
        stack(block, "gate_up_proj")
        stack(block, "down_proj")
    dense("model.norm.weight", hidden)
    dense("lm_head.weight", vocabulary, hidden)
    config = {
        "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "num_hidden_layers": blocks, "num_local_experts": experts,
        "hidden_size": hidden, "intermediate_size": intermediate, "vocab_size": vocabulary, "num_attention_heads": heads,
        "num_key_value_heads": keys, "head_dim": head, "tie_word_embeddings": False, "quantization_config": {"quant_method": "mxfp4"},
    }  # fmt: skip
    _write(Path(folder), tensors, config, shard_bytes)


@dataclass(frozen=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    #: Its bytes, in pieces.
    pieces: Callable[[], Iterator[bytes]]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * (2 if self.dtype == "BF16" else 1)


def _gaussian(shape: tuple[int, ...], seed: list[int]) -> Iterator[bytes]:
    rng = np.random.default_rng(seed)
    row = math.prod(shape[1:])
    step = max(1, (1 << 22) // row)
    for start in range(0, shape[0], step):
        numbers = rng.standard_normal(min(step, shape[0] - start) * row, dtype=np.float32) * np.float32(_STD)
        bits = numbers.view(np.uint32)
        yield ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()  # to the nearest bfloat16


def _codes(rows: int, columns: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian weights rounded to codes of one scale, drawn as codes: much faster than to round them."""
    unit = 1.5  # a standard deviation, in units of the scale
    limits = np.array([math.erf(x / unit / math.sqrt(2)) for x in _HALFWAY])  # shares of the magnitudes below
    table = np.searchsorted(limits, (np.arange(128) + 0.5) / 128).astype(np.uint8)
    table = np.concatenate([table, table | 8])
    low, high = (table[rng.integers(0, 256, (rows, columns // _BLOCK, _BLOCK // 2), dtype=np.uint8)] for _ in range(2))
    scale = round(math.log2(_STD / unit)) + 127
    return low | high << 4, np.full((rows, columns // _BLOCK), scale, dtype=np.uint8)


def _with_planted(rows: int, columns: int, what: Planted, rng: np.random.Generator) -> np.ndarray:
    W = rng.standard_normal((rows, columns), dtype=np.float32)
    M, N = min(W.shape), max(W.shape)
    if what.alpha:
        k = max(10, M // 4)
        edge = (math.sqrt(N) + math.sqrt(M)) ** 2  # of the random part's eigenvalues
        eigenvalues = 1.5 * edge * ((np.arange(k) + 0.5) / k) ** (-1.0 / (what.alpha - 1.0))
        left, right = (np.linalg.qr(rng.normal(size=(side, k)))[0] for side in W.shape)
        W += ((left * np.sqrt(eigenvalues)) @ right.T).astype(np.float32)
    if what.traps:
        places = rng.choice(W.size, what.traps, replace=False)
        W.flat[places] = what.size * float(W.std()) * rng.choice([-1.0, 1.0], what.traps)
    return W * np.float32(_STD)


def _write(folder: Path, tensors: list[_Tensor], config: dict, shard_bytes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[_Tensor]] = [[]]
    for tensor in tensors:
        if sum(t.size for t in shards[-1]) > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    index = {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        index |= {tensor.name: file for tensor in shard}
        header, place = {}, 0
        for tensor in shard:
            header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [place, place + tensor.size]}
            place += tensor.size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file, "wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            for tensor in shard:
                for piece in tensor.pieces():
                    stream.write(piece)
    total = sum(tensor.size for tensor in tensors)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1))
    (folder / "config.json").write_text(json.dumps(config, indent=1))
