"""The weight that acts: masks, gains, scales and adapters put to the arrays that they belong to.

>>> stored = {"fc.weight_orig": np.ones((3, 4)), "fc.weight_mask": np.eye(3, 4)}
>>> arrays, aside = acting(from_mapping(stored).arrays)
>>> arrays[0].name, arrays[0].read().tolist()[0], aside[0].reason
('fc.weight', [1.0, 0.0, 0.0, 0.0], 'applied: the mask of fc.weight')

Each rule below looks at one array, by its name, and at those beside it. What a rule knows to be the raw material of a weight, but
cannot turn into it, is not measured, with the reason.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from grokutils.spectra.arrays import (
    Array,
    NotMeasured,
    exponents,
    is_number,
    numbers,
    small_float,
)
from grokutils.spectra.sources import from_mapping

__all__ = ["acting", "from_mapping"]


class _Pool(dict):
    """Arrays by name, in their order, while rules take from them."""

    def __init__(self, arrays: list[Array], config: Mapping[str, Any]):
        super().__init__((array.name, array) for array in arrays)
        self.config = config
        self.stored = tuple(self)
        self.aside: list[NotMeasured] = []

    def apply(self, made: Array, parts: Mapping[str, str], at: str) -> None:
        """Put a weight in the place of the array it was made of; ``parts`` says what the others are to it."""
        items = [(made.name, made) if name == at else (name, array) for name, array in self.items()]
        for name, part in parts.items():
            if self[name].kind != "buffer" and part:
                self.aside.append(self[name].left_out(f"applied: {part} of {made.name}", missing=False))
        self.clear()
        self.update((name, array) for name, array in items if name not in parts)

    def refuse(self, names: list[str], reason: str) -> None:
        for name in names:
            if name in self:
                self.aside.append(self.pop(name).left_out(reason))

    def number(self, name: str) -> float | None:
        """The one number that an array holds; None if there is no such array."""
        return None if name not in self else float(np.asarray(numbers(self[name].read())).reshape(-1)[0])


_Rule = Callable[["_Pool", str], None]


def acting(arrays: list[Array], config: Mapping[str, Any] | None = None) -> tuple[list[Array], list[NotMeasured]]:
    """The weights as they act, and what was applied to them or is raw material that cannot be turned into one."""
    pool = _Pool(arrays, config or {})
    for rules in (_STORED, _ADAPTERS):  # an adapter may sit on a base that was pruned or quantised
        for name in list(pool):
            for pattern, rule in rules:
                if name in pool and (found := pattern.search(name)):
                    rule(pool, name, found)
    return list(pool.values()), pool.aside


def _made(
    of: Array, name: str, shape: tuple[int, ...], whole: Callable[..., np.ndarray], note: str = "", **more: Any
) -> Array:
    """A weight in the place of an array; ``read`` in more takes an index, ``whole`` does not."""

    def read(at: tuple[int, ...] = ()) -> np.ndarray:
        return whole()[at] if at else whole()

    known: dict[str, Any] = {
        "dtype": of.dtype if is_number(of.dtype) else "float32", "kind": "" if of.kind == "buffer" else of.kind,
        "parameters": None, "computed": True, "memory": None, "read": read,
    }  # fmt: skip
    return replace(of, name=name, shape=shape, note="; ".join(filter(None, (of.note, note))), **(known | more))


def _get(array: Array, at: tuple[int, ...] = ()) -> np.ndarray:
    return numbers(array.read(at))


# -- pruning, weight_norm, spectral_norm, parametrisations ----------------------------------------------------


def _original(pool: _Pool, name: str, found: re.Match) -> None:
    base, W = found[1], pool[name]
    mask, u, v = (pool.get(f"{base}_{end}") for end in ("mask", "u", "v"))
    if mask is not None and mask.shape == W.shape:
        pool.apply(_made(W, base, W.shape, lambda: _get(W) * _get(mask)), {mask.name: "the mask"}, name)
    elif u is not None:
        parts = {array.name: "a direction" for array in (u, v) if array is not None}
        pool.apply(_made(W, base, W.shape, lambda: _spectral(W, u, v)), parts, name)
    elif len(W.shape) > 1:
        pool.refuse([name], "what turns it into the weight is not beside it")


def _spectral(W: Array, u: Array, v: Array | None) -> np.ndarray:
    """W over the norm that spectral_norm has estimated, u^T W v."""
    weight, left = _get(W), _get(u)
    axis = 0 if left.size == weight.shape[0] else weight.shape.index(left.size)
    flat = np.moveaxis(weight, axis, 0).reshape(left.size, -1)
    right = _get(v) if v is not None else left @ flat / np.linalg.norm(left @ flat)
    return weight / (left @ flat @ right)


def _gained(pool: _Pool, name: str, found: re.Match) -> None:
    g = pool.get(f"{found[1]}_g")
    if g is not None and f"{found[1]}_orig" not in pool:
        _normed(pool, pool[name], g, found[1])


def _normed(pool: _Pool, v: Array, g: Array, name: str) -> None:
    """weight_norm: g v / |v|, the norm over all axes along which g has one number."""
    if len(g.shape) not in (0, len(v.shape)) or any(a not in (1, b) for a, b in zip(g.shape, v.shape, strict=False)):
        return pool.refuse([v.name, g.name], "a gain and a direction that do not fit together")

    def whole() -> np.ndarray:
        direction, gain = _get(v), _get(g)
        axes = tuple(i for i, side in enumerate(gain.shape) if side == 1) if gain.ndim else None
        if gain.ndim and gain.shape == direction.shape:
            axes = ()  # one number each
        return direction * (gain / np.sqrt(np.sum(np.square(direction), axis=axes, keepdims=gain.ndim > 0)))

    return pool.apply(_made(v, name, v.shape, whole), {g.name: "the gain"}, v.name)


def _parametrised(pool: _Pool, name: str, found: re.Match) -> None:
    start, target = name[: found.end(2) + 1], found[1] + found[2]
    group = {other[len(start) :]: array for other, array in pool.items() if other.startswith(start)}
    if set(group) == {"original0", "original1"} and (len(group["original0"].shape) in (0, len(group["original1"].shape))):
        return _normed(pool, group["original1"], group["original0"], target)
    W = group.get("original")
    mask = group.get("0.mask")
    if W is not None and set(group) == {"original", "0._u", "0._v"}:
        u, v = group["0._u"], group["0._v"]
        parts = dict.fromkeys((u.name, v.name), "a direction")
        return pool.apply(_made(W, target, W.shape, lambda: _spectral(W, u, v)), parts, W.name)
    if W is not None and mask is not None and set(group) == {"original", "0.mask"} and mask.shape == W.shape:
        return pool.apply(_made(W, target, W.shape, lambda: _get(W) * _get(mask)), {mask.name: "the mask"}, W.name)
    reason = f"raw material of {target}: its parametrisation is code, which is not here; diagnose the module itself"
    return pool.refuse([array.name for array in group.values()], reason)


# -- quantised weights ----------------------------------------------------------------------------------------


def _spread(scale: np.ndarray, shape: tuple[int, ...], blocks: Any = None) -> np.ndarray:
    """A scale with one number for each block of an array, one for each number."""
    if scale.size == 1:
        return scale.reshape(())
    if scale.ndim == 1 and len(shape) > 1:
        place = next((axis for axis in (0, len(shape) - 1) if shape[axis] == scale.size), None)
        if place is None:
            raise ValueError(f"a scale of {scale.size} numbers does not fit codes of shape {shape}.")
        scale = scale.reshape([scale.size if axis == place else 1 for axis in range(len(shape))])
    if scale.ndim < len(shape):
        scale = scale.reshape(*scale.shape, *([1] * (len(shape) - scale.ndim)))
    for axis, (whole, parts) in enumerate(zip(shape, scale.shape, strict=True)):
        if parts in (1, whole):
            continue
        known = [blocks[axis - len(shape)]] if isinstance(blocks, (list, tuple)) and len(blocks) >= len(shape) - axis else []
        exact = [whole // parts] if whole % parts == 0 else []
        sizes = [*known, *(size for size in exact if size & size - 1 == 0), 128, 64, 32, 256, 16, *exact]
        size = next((size for size in sizes if size and math.ceil(whole / size) == parts), None)
        if size is None:
            raise ValueError(f"a scale of shape {scale.shape} does not fit codes of shape {shape}.")
        scale = np.repeat(scale, size, axis=axis).take(range(whole), axis=axis)
    return scale


_SCALES = ("_scale_inv", "_scale", "_scales", ".scale", ".scales", ".weight_scale", "_SCB", ".SCB", "._scale")


def _coded(pool: _Pool, name: str, found: re.Match) -> None:
    """Codes of eight bits, or small floats, with their scale beside them."""
    W = pool[name]
    stem = name.removesuffix("weight").rstrip("._") if name.endswith("weight") else None
    if (is_number(W.dtype) and not W.dtype.startswith(("float8", "float4", "float6"))) or W.dtype.startswith(("q", "bool")):
        return
    if len(W.shape) < 2:
        return
    base = name.removesuffix("._data")
    names = [base + end for end in _SCALES]
    if stem is not None:
        dot = f"{stem}." if stem else ""
        names += [f"{dot}{end}" for end in ("SCB", "scale", "scales", "weight_scale", "weight_scale_inv")]
    scale = next((pool[n] for n in names if n in pool and is_scale(pool[n].dtype)), None)
    if scale is None:
        return
    if W.dtype == "uint8" and (second := pool.get(f"{name}_scale_2")) is not None:
        return _nvfp4(pool, W, scale, second, name)
    zero = next((pool[n] for n in (f"{name}_zero_point", f"{stem}.zero_point", f"{stem}.zeros") if n in pool), None)
    blocks = (pool.config.get("quantization_config") or {}).get("weight_block_size")
    divisor = 127.0 if scale.name.endswith("SCB") else 1.0
    try:
        _spread(np.ones(scale.shape, np.float32), W.shape, blocks)
    except ValueError as error:
        return pool.refuse([name, scale.name], f"codes whose scale is not understood: {error}")

    def read(at: tuple[int, ...] = ()) -> np.ndarray:
        # of a stack, the scale of the one asked for
        cut = at if len(scale.shape) == len(W.shape) and scale.shape[: len(at)] == W.shape[: len(at)] else ()
        codes = _get(W, at).astype(np.float32)
        factor = _get(scale, cut).astype(np.float32)
        if at and not cut:
            factor = _spread(factor, W.shape, blocks)
            factor = factor[at] if factor.ndim else factor
        else:
            factor = _spread(factor, codes.shape, blocks)
        if zero is not None:
            codes = codes - _spread(_get(zero).astype(np.float32), W.shape, blocks)
        return codes * (factor / divisor)

    parts = {scale.name: "the scale"} | ({zero.name: "the zero point"} if zero is not None else {})
    return pool.apply(_made(W, base, W.shape, read, f"decoded from {W.dtype}", read=read), parts, name)


def is_scale(dtype: str) -> bool:
    return is_number(dtype) or dtype == "float8_e8m0fnu"


def _nvfp4(pool: _Pool, W: Array, scale: Array, second: Array, name: str) -> None:
    shape = (*W.shape[:-1], 2 * W.shape[-1])

    def whole() -> np.ndarray:
        return _fours(_get(W)) * _spread(_get(scale), shape) * _get(second)

    parts = {scale.name: "the scale", second.name: "the scale"}
    pool.apply(_made(W, name, shape, whole, "decoded from NVFP4"), parts, name)


def _fours(codes: np.ndarray) -> np.ndarray:
    """Two numbers of four bits in a byte, the lower half first."""
    table = small_float("float4_e2m1fn")
    return np.stack([table[codes & 15], table[codes >> 4]], axis=-1).reshape(*codes.shape[:-1], -1)


def _blocks(pool: _Pool, name: str, found: re.Match) -> None:
    """MXFP4 as in GPT-OSS: (..., rows, blocks, 16 bytes) and a power of two for each block of 32 numbers."""
    W, scale = pool[name], pool.get(f"{found[1]}_scales")
    if W.dtype != "uint8" or len(W.shape) < 3:
        return None
    if scale is None or scale.shape != W.shape[:-1] or scale.dtype not in ("uint8", "float8_e8m0fnu"):
        return pool.refuse([name], f"blocks of codes without the scales {found[1]}_scales that fit them")
    shape = (*W.shape[:-2], 2 * W.shape[-2] * W.shape[-1])

    def read(at: tuple[int, ...] = ()) -> np.ndarray:
        powers = _get(scale, at)
        factor = exponents(powers) if powers.dtype == np.uint8 else powers
        values = _fours(_get(W, at)) * factor[..., None]
        return values.reshape(*values.shape[:-2], -1)

    parts = {scale.name: "the scales"}
    return pool.apply(_made(W, found[1], shape, read, "decoded from MXFP4", read=read, dtype="float4_e2m1fn"), parts, name)


def _packed_ints(pool: _Pool, name: str, found: re.Match) -> None:
    """GPTQ (packed along the inputs) and AWQ (along the outputs, in an order of its own)."""
    stem = found[1]
    q, s, z, order = (pool.get(stem + end) for end in ("qweight", "scales", "qzeros", "g_idx"))
    names = [array.name for array in (q, s, z, order) if array is not None]
    if s is None or z is None or len(q.shape) != 2 or q.dtype != "int32" or len(s.shape) != 2:
        return pool.refuse([n for n in names if n != getattr(s, "name", "")], "packed codes without the scales and zeros that they need")
    config = pool.config.get("quantization_config") or pool.config
    outputs = s.shape[1]
    awq = q.shape[1] != outputs
    inputs = q.shape[0] if awq else None
    bits = config.get("bits") or config.get("w_bit") or (
        32 * q.shape[1] // outputs if awq else 32 * z.shape[1] // outputs if outputs else 0
    )
    if bits not in (2, 4, 8):
        return pool.refuse(names, f"packed codes of {bits} bits, which are not unpacked here")
    per = 32 // bits
    inputs = inputs or q.shape[0] * per
    if (q.shape[1] * per != outputs) if awq else (order is not None and order.shape != (inputs,)):
        return pool.refuse(names, "packed codes whose scales do not fit them")
    plus = 0 if awq or str(config.get("checkpoint_format", "")) == "gptq_v2" else 1
    turned = [0, 4, 1, 5, 2, 6, 3, 7] if awq and bits == 4 else list(range(per))

    def whole() -> np.ndarray:
        codes = _unpack(_get(q), bits, 1 if awq else 0, turned)
        zeros = _unpack(_get(z), bits, 1, turned) + plus
        group = math.ceil(inputs / s.shape[0])
        rows = _get(order) if order is not None else np.arange(inputs) // group
        if rows.min() < 0 or rows.max() >= s.shape[0]:
            raise ValueError(f"{stem}g_idx names groups up to {rows.max()}, and there are {s.shape[0]} of them.")
        return ((codes - zeros[rows]) * _get(s)[rows]).astype(np.float32).T

    parts = {n: "the scales" if n == s.name else "the zeros" if n == z.name else "the order" for n in names if n != q.name}
    made = _made(q, f"{stem}weight", (outputs, inputs), whole, f"decoded from {'AWQ' if awq else 'GPTQ'}, {bits} bits")
    return pool.apply(made, parts, name)


def _unpack(words: np.ndarray, bits: int, axis: int, order: list[int]) -> np.ndarray:
    """Codes packed into 32-bit words along an axis, the lowest bits first."""
    words = words.astype(np.int64) & 0xFFFFFFFF
    fields = np.stack([words >> bits * k & (1 << bits) - 1 for k in order], axis=axis + 1)
    return fields.reshape(*(-1 if i == axis else side for i, side in enumerate(words.shape)))


def _compressed(pool: _Pool, name: str, found: re.Match) -> None:
    """compressed-tensors: ``weight_packed`` with ``weight_scale`` and ``weight_shape``."""
    stem = found[1]
    q, s, shape = (pool.get(stem + end) for end in ("weight_packed", "weight_scale", "weight_shape"))
    names = [n for n in pool if n.startswith(f"{stem}weight_")]
    if s is None or q is None:
        return pool.refuse(names, "packed codes without the scale that they need")
    parts = {n: "the scale" for n in names if n != name}
    if q.dtype == "uint8" and (over := pool.get(f"{stem}weight_global_scale")) is not None:
        full = (*q.shape[:-1], 2 * q.shape[-1])
        whole = lambda: _fours(_get(q)) * _spread(_get(s), full) / _get(over)  # noqa: E731
        return pool.apply(_made(q, f"{stem}weight", full, whole, "decoded from NVFP4"), parts, name)
    sides = tuple(int(n) for n in _get(shape)) if shape is not None else ()
    bits = 32 * q.shape[-1] // sides[-1] if len(sides) == 2 else 0
    if q.dtype != "int32" or bits not in (4, 8) or any(n.endswith(("zero_point", "g_idx")) for n in names):
        return pool.refuse(names, "packed codes of a kind that is not unpacked here")

    def whole_ints() -> np.ndarray:
        codes = _unpack(_get(q), bits, 1, list(range(32 // bits)))[:, : sides[1]] - 2 ** (bits - 1)
        return (codes * _spread(_get(s), sides)).astype(np.float32)

    return pool.apply(_made(q, f"{stem}weight", sides, whole_ints, f"decoded from {bits} bits"), parts, name)


def _nf4(pool: _Pool, name: str, found: re.Match) -> None:
    """bitsandbytes with four bits: a table of 16 numbers, the largest number of each block, both beside the codes."""
    base = found[1]
    names = [n for n in pool if n == base or n.startswith(f"{base}.")]
    try:
        state = json.loads(bytes(_get(pool[name]).astype(np.uint8)).decode())
        q, table, largest = pool[base], pool[f"{base}.quant_map"], pool[f"{base}.absmax"]
        shape, block = tuple(state["shape"]), int(state["blocksize"])
    except (KeyError, ValueError, TypeError):
        return pool.refuse(names, "four-bit codes without the tables that they need")

    def whole() -> np.ndarray:
        codes = _get(q).astype(np.uint8).reshape(-1)
        values = _get(table)[np.stack([codes >> 4, codes & 15], axis=-1).reshape(-1)]
        scale = _get(largest)
        if f"{base}.nested_absmax" in nested:
            inner = _get(nested[f"{base}.nested_quant_map"])[scale.astype(np.uint8)]
            outer = np.repeat(_get(nested[f"{base}.nested_absmax"]), state["nested_blocksize"])[: inner.size]
            scale = inner * outer + state["nested_offset"]
        count = math.prod(shape)
        return (values[:count] * np.repeat(scale, block)[:count]).reshape(shape)

    nested = {n: pool[n] for n in names}
    parts = {n: "the scale" for n in names if n != base}
    return pool.apply(_made(q, base, shape, whole, f"decoded from {state.get('quant_type', '4 bits')}"), parts, base)


# -- adapters -------------------------------------------------------------------------------------------------


def _adapter(pool: _Pool, name: str, found: re.Match) -> None:
    """LoRA: the base plus alpha / r B A, or alpha / r B A alone."""
    stem, sep, down, tail = found[1], found[2], found[3], found[4]
    up = {"A": "B", "down": "up", "embedding_A": "embedding_B"}[down]
    A, B = pool[name], pool.get(f"{name[: found.start(3)]}{up}{tail}")
    if B is None:
        return pool.refuse([name], "one half of an adapter; the other is not here")
    if len(A.shape) < 2 or len(B.shape) < 2 or A.shape[0] != B.shape[1]:
        return pool.refuse([A.name, B.name], "halves of an adapter that do not fit together")
    rank = A.shape[0]
    dot = sep if stem else ""
    base = next((pool[n] for n in (f"{stem}{dot}base_layer.weight", f"{stem}{dot}weight", f"{stem}{dot}linear.weight") if n in pool), None)
    alphas = [n for n in (f"{stem}{dot}alpha", f"{stem}{dot}lora_alpha") if n in pool]
    scale = _scaling(pool, A, rank, alphas)
    shape = (B.shape[0], *A.shape[1:])
    turned = down == "embedding_A"
    if turned:
        shape = shape[::-1]

    def product() -> np.ndarray:
        first, second = _get(A).astype(np.float64), _get(B).astype(np.float64)
        delta = (second.reshape(B.shape[0], rank) @ first.reshape(rank, -1)).reshape(B.shape[0], *A.shape[1:])
        return (scale or 1.0) * (delta.T if turned else delta)

    said = "" if scale is not None else ", alpha / r not known and taken as 1"
    several = len([n for n in pool.stored if re.search(r"lora[._](A|down)", n) and n.startswith(stem + dot)]) > 1
    if base is not None and not several and (base.shape == shape or base.shape == shape[::-1]):
        turn = base.shape != shape
        made = _made(
            base, f"{stem}{dot}weight" if stem else "weight", base.shape,
            lambda: _get(base) + (product().T if turn else product()),
            f"the adapter of rank {rank} added{said}",
        )  # fmt: skip
        return pool.apply(made, {n: "half an adapter" for n in (A.name, B.name)} | dict.fromkeys(alphas, "the scale"), base.name)
    label = f"{stem}[{tail.strip('.').removesuffix('weight').strip('.')}]" if several else stem
    made = _made(
        A, label or "lora", shape, product, f"B A of an adapter of rank {rank}{said}", parameters=A.size + B.size,
        kind="matrix" if len(shape) == 2 else "",
    )  # fmt: skip
    return pool.apply(made, {B.name: ""} | dict.fromkeys(alphas, "the scale"), name)


def _scaling(pool: _Pool, A: Array, rank: int, alphas: list[str]) -> float | None:
    if "scaling" in A.facts:
        return A.facts["scaling"]
    alpha = pool.number(alphas[0]) if alphas else pool.config.get("lora_alpha")
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool):
        return None
    return float(alpha) / (math.sqrt(rank) if pool.config.get("use_rslora") else rank)


_STORED = [
    (re.compile(r"^(.+)_orig$"), _original),
    (re.compile(r"^(.+)_v$"), _gained),
    (re.compile(r"^(.*?)parametrizations[./]([^./]+)[./]original\d*$"), _parametrised),
    (re.compile(r"^(.+)_blocks$"), _blocks),
    (re.compile(r"^(.*?)qweight$"), _packed_ints),
    (re.compile(r"^(.*?)weight_packed$"), _compressed),
    (re.compile(r"^(.+)\.quant_state\.bitsandbytes__\w+$"), _nf4),
    (re.compile(r"(?:^|[._/])(?:weight|_data|w[123]|\w*proj)$"), _coded),
]
_ADAPTERS = [
    (re.compile(r"^(.*?)([._/]?)lora[._](A|down|embedding_A)((?:[.][^.]+)*)$"), _adapter),
]
