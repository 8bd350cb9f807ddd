"""The weight matrices in whatever somebody has: a module, a state_dict, a file, a matrix.

>>> [layer.name for layer in find_layers({"fc1.weight": np.ones((30, 40)), "fc1.bias": np.ones(30)})]
['fc1']
>>> survey({"fc1.weight": np.ones((30, 40)), "fc1.bias": np.ones(30)}).not_measured[0].reason
'a bias'

Only names, shapes and types are looked at here; the numbers of a layer are read when they are asked for,
one layer at a time, so that a file may be larger than the memory.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from grokutils.spectra.arrays import EXPONENTS, Array, NotMeasured, is_number, numbers
from grokutils.spectra.sources import Contents, from_file, from_mapping
from grokutils.spectra.weights import acting

__all__ = ["KINDS", "Layer", "NotALayer", "Survey", "find_layers", "is_matrix", "is_module", "layer_kind", "survey"]

#: What a source can know an array to be, and, for what is no layer, the reason.
KINDS = {
    "matrix": "", "convolution": "", "stack": "", "uninitialised": "",
    "bias": "a bias", "norm": "the scale of a normalisation", "added": "added to the activations, as a bias is",
    "scale": "a scale, which multiplies number by number", "mask": "a mask", "shape": "a shape",
    "buffer": "a buffer, which is no parameter",
}  # fmt: skip


class NotALayer(Exception):
    """What reading an array shows to be no layer after all; the message is the reason."""


@dataclass(frozen=True)
class Layer:
    """One matrix of a model, not yet read."""

    name: str
    #: Shape of the array that it is, or is part of, as stored.
    shape: tuple[int, ...]
    #: How it was made a matrix, and what else shares it; empty for a plain matrix.
    note: str
    #: The matrix, as an array or tensor with two dimensions; raises where it has no numbers, and `NotALayer` where
    #: they turn out to be a mask.
    read: Callable[[], Any]
    #: Type of the numbers as stored.
    dtype: str = ""
    #: (rows, columns) of the matrix; zeros where that is not known before it is read.
    sides: tuple[int, int] = (0, 0)
    #: Parameters that it stands for.
    size: int = 0
    #: Whether it is computed from other arrays, so that it cannot be set.
    computed: bool = False
    #: Whether it is a kernel of more than one place, whose slices WeightWatcher takes apart.
    pools: bool = False


@dataclass
class Survey:
    """What a source holds: its layers, and every array that is none, with the reason."""

    layers: list[Layer]
    not_measured: list[NotMeasured] = field(default_factory=list)
    note: str = ""

    @property
    def measured(self) -> int:
        """Parameters in the layers."""
        return sum(layer.size for layer in self.layers)

    @property
    def missing(self) -> int:
        """Parameters in no layer, scales and masks that were applied to one left aside."""
        return sum(entry.size for entry in self.not_measured if entry.missing)


def find_layers(source: Any) -> list[Layer]:
    """Every weight matrix, once, in the order of the source.

    Parameters
    ----------
    source : a `torch.nn.Module`, a mapping of names to arrays or tensors such as a ``state_dict``, the path
        of a file (.safetensors, .pt, .pth, .bin, .ckpt, .npz, .npy, .gguf, .onnx), of an index of shards or of a folder such as
        those of Hugging Face, or a matrix (array, tensor, or rows of numbers)

    Returns
    -------
    list of `Layer`. Names lose a final ``.weight``. First, masks, gains, scales and adapters are put to the arrays that they
    belong to (`grokutils.spectra.weights`): what is measured is the weight that acts. What then becomes a matrix, and how:

    - two dimensions: as it is (linear layers, embeddings, projections, the gates of an LSTM);
    - a convolution: first axis against all the others, 64 x 3 x 7 x 7 as 64 x 147; if its name ends in ``kernel``, as in JAX and
      Keras, the last axis;
    - a fused projection of attention to queries, keys and values (``in_proj``, ``qkv``, ``Wqkv``, ``qkv_proj``, ``c_attn``,
      ``query_key_value``): three matrices, ``.q``, ``.k``, ``.v``, in thirds or by the numbers of heads that the module or its
      ``config.json`` states;
    - a stack of matrices, such as the experts of a mixture or the heads of attention: one ``[i]`` for each.

    The kind comes from the class of the module, else from names, from the arrays beside it (a bias has one number for each output)
    and only then from its shape; where that is a guess, the note says so. `layer_kind` teaches others.

    Left out are vectors, biases of any shape, masks, scales, tables of positions and integers; `survey` lists them. An array that goes
    by several names is one layer, with the others in its note.

    Raises
    ------
    TypeError : a source of another kind.
    ValueError : nothing in it is a matrix; a file that cannot be read, or not without running code.
    FileNotFoundError : no such file.
    """
    found = survey(source)
    if not found.layers:
        raise ValueError(_nothing(source))
    return found.layers


def survey(source: Any) -> Survey:
    """`find_layers`, with what was left out and why.

    Raises
    ------
    ValueError : a source in which no array has two dimensions; otherwise as `find_layers`, except that there may be no layers.
    """
    if is_module(source):
        from grokutils.spectra.modules import from_module

        contents = from_module(source)
    elif isinstance(source, Mapping):
        contents = from_mapping(source)
    elif isinstance(source, (str, os.PathLike)):
        contents = from_file(Path(source))
    elif is_matrix(source):
        return _alone(source)
    else:
        raise TypeError(
            "source must be a matrix, a torch module, a mapping of names to arrays, the path of a "
            f"file or folder of weights or a Record; got {type(source).__name__}."
        )
    found = _survey(contents, in_module=is_module(source))
    if not found.layers and not any(len(entry.shape) > 1 for entry in found.not_measured):
        raise ValueError(_nothing(source))
    return found


def is_module(source: Any) -> bool:
    """Whether a source is a torch module, or an exported program that holds one; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and (isinstance(source, torch.nn.Module) or hasattr(source, "graph_signature"))


def is_matrix(source: Any) -> bool:
    """Whether a source is one array or tensor (or rows of numbers), of whatever shape and type."""
    return isinstance(source, (list, tuple)) or hasattr(source, "__array__")


def _alone(source: Any) -> Survey:
    shape = tuple(getattr(source, "shape", ()))
    size = math.prod(shape) if len(shape) == 2 else 0
    dtype = str(getattr(source, "dtype", "")).removeprefix("torch.")
    return Survey([Layer("matrix", shape, "", lambda: source, dtype, shape if size else (0, 0), size)])


def _survey(contents: Contents, in_module: bool) -> Survey:
    arrays, aside = acting(contents.arrays, contents.config)
    aside = contents.aside + aside
    # a module of codes, or one that keeps all its weights as buffers, has nothing else
    if in_module:
        if any(len(a.shape) > 1 and a.kind != "buffer" for a in arrays):
            arrays = [a for a in arrays if a.kind != "buffer"]
        else:
            for array in arrays:
                array.kind = "" if array.kind == "buffer" else array.kind
    arrays, twice = _without_repeats(arrays)
    aside += [] if in_module else twice
    company = {array.name: array.shape for array in arrays}
    times = Counter(_short(array.name) for array in arrays)
    layers: list[Layer] = []
    for array in arrays:
        short = _short(array.name)
        found = _layers_of(array, short if times[short] == 1 and short else array.name, company, contents.config)
        if isinstance(found, str):
            aside.append(array.left_out(found))
        else:
            layers += found if in_module else map(_unless_a_mask, found)
    return Survey(layers, aside, contents.note)


def _short(name: str) -> str:
    return name.removesuffix(":0").removesuffix(".weight").removesuffix("_weight")


def _without_repeats(arrays: list[Array]) -> tuple[list[Array], list[NotMeasured]]:
    first: dict[Any, Array] = {}
    kept, twice = [], []
    for array in arrays:
        if array.memory is not None and array.memory in first:
            original = first[array.memory]
            original.also += (array.name,)
            twice.append(array.left_out(f"the same numbers as {original.name}", missing=False))
            continue
        if array.memory is not None:
            first[array.memory] = array
        kept.append(array)
    return kept, twice


def _nothing(source: Any) -> str:
    said = "source must hold a weight matrix: a floating-point array of two or more dimensions; it has none."
    if isinstance(source, Mapping):
        inside = [repr(name) for name, value in source.items() if isinstance(value, Mapping)]
        if inside:
            said += f" It holds mappings: look into {' or '.join(inside[:3])}."
    return said


# -- kinds that somebody teaches ------------------------------------------------------------------------------

_TAUGHT: list[tuple[type | str, Callable[[np.ndarray], Any]]] = []


def layer_kind(what: type | str):
    """Teach how the arrays of a kind of layer are read.

    >>> @layer_kind(r"\\.blocks$")                  # a regular expression on the name, or a class of modules
    ... def monarch(W):
    ...     return {f"[{i}]": block.T for i, block in enumerate(W)}
    >>> [layer.name for layer in find_layers({"fc.blocks": np.ones((2, 20, 30))})]
    ['fc.blocks[0]', 'fc.blocks[1]']
    >>> forget(monarch)

    Parameters
    ----------
    what : a class: the function is asked for each parameter with two or more dimensions that a module of this class holds itself;
        or a regular expression that is looked for in names, for files too

    The function takes the array, as NumPy numbers, and returns the matrix; or a dict of suffixes and matrices; or, if it is no layer,
    the reason in words. It is also called with zeros of the array's shape, to learn the shapes of what it returns. What is taught
    last is asked first, and before all that is built in.
    """
    if not isinstance(what, (type, str)):
        raise TypeError(f"a kind of layer must be a class or a regular expression; got {what!r}.")

    def teach(function: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
        _TAUGHT.insert(0, (what, function))
        return function

    return teach


def forget(function: Callable[[np.ndarray], Any]) -> None:
    """Take back what `layer_kind` taught."""
    _TAUGHT[:] = [(what, known) for what, known in _TAUGHT if known is not function]


def _taught(array: Array) -> Callable[[np.ndarray], Any] | None:
    for what, function in _TAUGHT:
        if isinstance(what, str):
            if re.search(what, array.name):
                return function
        elif array.owner is not None and issubclass(array.owner, what) and len(array.shape) > 1:
            return function
    return None


def _as_taught(array: Array, function: Callable[[np.ndarray], Any]) -> list[_Part] | str:
    def parts_of(W: np.ndarray) -> Any:
        made = function(W)
        return made if isinstance(made, (str, dict)) else {"": made}

    made = parts_of(np.broadcast_to(np.float32(0), array.shape))
    if isinstance(made, str):
        return made
    return [
        _Part(suffix, tuple(np.shape(part)), "", lambda suffix=suffix: parts_of(numbers(array.read()))[suffix])
        for suffix, part in made.items()
    ]


# -- from an array to its matrices ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """One matrix of an array: what its name ends in, (rows, columns), how it was made, how it is read."""

    suffix: str
    sides: tuple[int, ...]
    note: str
    read: Callable[[], Any]
    #: Whether it is a kernel of more than one place.
    pools: bool = False


# Projections to queries, keys and values in one matrix: one after the other, or mixed group by group.
_FUSED = re.compile(r"^(in_proj|attn_qkv|qkv|Wqkv|qkv_proj|c_attn)$")
_MIXED = re.compile(r"^(query_key_value|wqkv)$")
_GATES = re.compile(r"^weight_(ih|hh)(_l\d+)?(_reverse)?$")
# Names of arrays that are no layers, by their last part (that before ".weight", where a norm is meant).
_NO_LAYERS = [
    (re.compile(r"bias|^b_[A-Za-z0-9]+$"), "a bias"),
    (re.compile(r"(^|_)masks?($|_)|^tril$|^causal"), "a mask"),
    (
        re.compile(
            r"^(\w*_)?pos(ition(al|s)?)?_?(emb(ed(ding)?s?)?|enc(oding)?s?|table)$|^pe$|rel(ative)?_pos|inv_freq|"
            r"^(cos|sin)(_?cached?)?$|(cos|sin)_?cached?$|freqs|alibi"
        ),
        "a table of positions",
    ),
    (
        re.compile(
            r"(^|_)(scales?|scale_inv|gains?|gamma|beta|SCB|absmax|zero_points?|q?zeros|g_idx|magnitude(_vector)?)(_\d+)?$|"
            r"layer_?scale|^ls_?\d?$"
        ),
        "a scale, which multiplies number by number",
    ),
    (re.compile(r"^running_|num_batches_tracked|^moving_|^A_log$|^exp_avg|momentum_buffer"), "no weight that multiplies"),
]  # fmt: skip
_NORM = re.compile(r"(^|_)(layer|batch|group|rms|instance)?_?norm(alization)?(_?\d+)?$|^(ln|bn)(_\w+)?\d*$|(Layer|Batch|Group|RMS)Norm(_\d+)?$")
_STACK = re.compile(r"expert|(^|[._/])moe|heads?([._/]|$)|(^|[._/])W_([QKVO]|in|out)$|_exps([._/]|$)|(gate|up|down)_proj$", re.I)
_KERNEL = re.compile(r"conv|kernel|patch_emb|stem", re.I)
_LARGEST_KERNEL = 32


def _layers_of(
    array: Array, name: str, company: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]
) -> list[Layer] | str:
    """The matrices in one array, or why there are none."""
    tied = f"also {', '.join(array.also)}" if array.also else ""

    def layer(part: _Part, size: int) -> Layer:
        note = "; ".join(filter(None, (part.note, array.note, tied)))
        sides = part.sides if len(part.sides) == 2 else (0, 0)
        return Layer(
            name + part.suffix, array.shape, note, part.read, array.dtype, sides, size, array.computed, part.pools
        )

    if array.kind == "uninitialised":
        return [layer(_Part("", (), "", array.read), 0)]
    function = _taught(array)
    parts = _as_taught(array, function) if function else _parts(array, company, config)
    if isinstance(parts, str):
        return parts
    share, rest = divmod(array.size, len(parts))
    sizes = [math.prod(part.sides) for part in parts]
    if sum(sizes) != array.size:
        sizes = [share + rest, *([share] * (len(parts) - 1))]
    return [layer(part, size) for part, size in zip(parts, sizes, strict=True)]


def _parts(array: Array, company: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> list[_Part] | str:
    shape, kind = array.shape, array.kind
    if reason := KINDS.get(kind, ""):
        return reason
    if 0 in shape:
        return "empty"
    leaf, holder = _words(array.name)
    if not kind or not is_number(array.dtype):
        if leaf in ("weight", "scale") and _NORM.search(holder) or len(shape) > 1 and shape == _beside(array.name, company):
            return KINDS["norm"]
        for pattern, reason in _NO_LAYERS:
            if pattern.search(leaf):
                return reason
    if not is_number(array.dtype):
        if array.dtype == EXPONENTS:
            return "powers of two: the scales of something"
        if array.dtype.startswith(("int", "uint", "bool", "float4")):
            return "integers: an index, a mask, or codes whose scale is not known"
        return f"no numbers ({array.dtype})"
    wide = [side for side in shape if side > 1]
    if len(shape) < 2 or len(shape) > 2 and len(wide) < 2 and not (leaf == "weight" and len(wide) == 1):
        return "one dimension: a vector"
    if len(shape) == 2:
        return _of_two(array, leaf, holder, company, config)
    if kind == "convolution":
        return [_kernel(array)]
    if kind == "stack":
        return _stack(array)
    return _guessed(array, leaf, company)


def _words(name: str) -> tuple[str, str]:
    """The last part of a name, and the part before it."""
    steps = re.split(r"[./]", name.removesuffix(":0"))
    return steps[-1], steps[-2] if len(steps) > 1 else ""


def _beside(name: str, company: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """Shape of the bias that belongs to an array; None if there is none."""
    pairs = ((r"weight(:0)?$", r"bias\1"), (r"kernel(:0)?$", r"bias\1"), (r"W_(\w+)$", r"b_\1"), (r"(_proj)$", r"\1_bias"))
    for pattern, other in pairs:
        bias, found = re.subn(pattern, other, name)
        if found and bias in company and bias != name:
            return company[bias]
    return None


def _of_two(
    array: Array, leaf: str, holder: str, company: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]
) -> list[_Part]:
    word = _short(array.name) if "." not in array.name and "/" not in array.name else re.split(r"[./]", _short(array.name))[-1]
    if _FUSED.match(word) or _MIXED.match(word):
        return _queries_keys_values(array, word, config)
    note = ""
    if gates := _GATES.match(leaf):
        across = company.get(re.sub(r"weight_(ih|hh)", "weight_hh", array.name), array.shape)
        count = array.shape[0] // across[1] if across[1] and array.shape[0] % across[1] == 0 else 0
        note = f"{count} gates, one below the other" if gates and count in (3, 4) else ""
    return [_Part("", array.shape, note, array.read)]


def _kernel(array: Array, said: str = "", outputs: int = 1, last: bool = False) -> _Part:
    """A convolution as a matrix: its first axis, or its last ones, against all the others."""
    shape = array.shape
    rows = math.prod(shape[: len(shape) - outputs]) if last else shape[0]
    sides = rows, math.prod(shape) // rows
    note = f"{' x '.join(map(str, shape))} read as {sides[0]} x {sides[1]}{said}"
    places = math.prod(shape[:-2] if last else shape[2:])
    return _Part("", sides, note, lambda: array.read().reshape(sides), places > 1)


def _stack(array: Array, said: str = "") -> list[_Part]:
    stack, sides = array.shape[:-2], array.shape[-2:]
    if math.prod(stack) == 1:
        return [_Part("", sides, said.lstrip(", "), lambda: array.read().reshape(sides))]
    note = f"one of {math.prod(stack)} in {array.name}{said}"
    return [
        _Part(f"[{','.join(map(str, at))}]", sides, note, lambda at=at: array.read(at)) for at in np.ndindex(stack)
    ]


def _guessed(array: Array, leaf: str, company: Mapping[str, tuple[int, ...]]) -> list[_Part]:
    """Three and more dimensions of which the source does not say what they are."""
    name, shape = array.name.removesuffix(":0"), array.shape
    bias = _beside(array.name, company)
    if re.search(r"(^|[._/])\w*kernel$", name):  # JAX and Keras: outputs last, of which heads may be two axes
        outputs = len(bias) if bias else 2 if re.search(r"(^|[._/])(query|key|value)[._/]kernel$", name) else 1
        if leaf == "depthwise_kernel":
            outputs = 2
        return [_kernel(array, outputs=min(outputs, len(shape) - 1), last=True)]
    if re.search(_STACK, name) and not re.search(r"conv", name, re.I):
        return _stack(array)
    ends = shape[2:]
    square = len(set(ends)) == 1 and ends[0] <= _LARGEST_KERNEL
    if len(shape) > 4 and shape[0] == 1 and not square:
        return _guessed(_behind(array), leaf, company)
    if bias is not None and len(bias) == 1 and bias[0] > 1:
        guess = ", taken for a convolution" if len(shape) == 3 and not re.search(_KERNEL, name) else ""
        if bias[0] == shape[0] or leaf == "weight" and bias[0] % shape[1] == 0:  # of a transposed one the second axis, by groups
            return [_kernel(array, guess)]
        if bias[0] == shape[-1]:
            return [_kernel(array, ", its bias having a number for each of the last axis", last=True)]
    if bias is not None and len(bias) > 1 and bias[:1] == shape[:1]:
        return _stack(array)
    if re.search(_KERNEL, name) or len(shape) > 3 and square:
        return [_kernel(array)]
    if len(shape) == 4 and shape[0] == 1:
        return _guessed(_behind(array), leaf, company)
    a, b, c = shape[0], shape[1], shape[-1]
    if len(shape) == 3 and a == 1 and (leaf != "weight" or min(b, c) >= 10):
        return _stack(array)
    small = min(shape[-2:]) < 10 or len(shape) == 4 and b <= 4 and ends[0] == ends[-1]
    thin = len(shape) == 3 and (c % 2 == 1 and c < 2 * _LARGEST_KERNEL or c <= _LARGEST_KERNEL < a)
    if small or thin or len(shape) == 4 and max(ends) <= _LARGEST_KERNEL:
        return [_kernel(array, ", taken for a convolution")]
    return _stack(array, ", taken for a stack of matrices")


def _behind(array: Array) -> Array:
    """An array without its first axis, which has one place."""
    return Array(
        array.name, array.shape[1:], array.dtype, lambda at=(): array.read((0, *at)), computed=array.computed
    )


def _queries_keys_values(array: Array, word: str, config: Mapping[str, Any]) -> list[_Part]:
    """The queries, keys and values of a fused projection, as far as it is known where they are."""
    rows, columns = array.shape
    heads, keys, size = _heads(array, config)
    name = array.name
    whole = [_Part("", array.shape, "", array.read)]
    if _MIXED.match(word):
        if not (heads and keys and rows == (heads + 2 * keys) * size):
            return [_Part("", array.shape, "queries, keys and values mixed, head by head: not known how, left whole", array.read)]
        group, said = heads // keys, f"rows of {name}, mixed by {keys} groups of heads"

        def of(first: int, last: int) -> Callable[[], np.ndarray]:
            def read() -> np.ndarray:
                parts = numbers(array.read()).reshape(keys, group + 2, size, columns)
                return parts[:, first:last].reshape(-1, columns)

            return read

        places = {"q": (0, group), "k": (group, group + 1), "v": (group + 1, group + 2)}
        return [_Part(f".{k}", (keys * (b - a) * size, columns), said, of(a, b)) for k, (a, b) in places.items()]
    long, short = max(array.shape), min(array.shape)
    if long == 3 * short and (not heads or keys == heads):
        guess = "" if array.kind and word == "in_proj" or word == "in_proj" else ", taken for q, k and v in this order"
        cuts, said = [0, short, 2 * short, long], f"a third of {name}{guess}"
    elif heads and keys and long == (heads + 2 * keys) * size:
        cuts, said = [0, heads * size, (heads + keys) * size, long], f"part of {name}, by its {heads} heads and {keys} of keys"
    else:
        return whole

    def cut(first: int, last: int) -> Callable[[], Any]:
        return lambda: array.read()[first:last] if rows == long else array.read()[:, first:last]

    spans = zip("qkv", cuts, cuts[1:], strict=False)
    return [
        _Part(f".{k}", (b - a, columns) if rows == long else (rows, b - a), said, cut(a, b)) for k, a, b in spans
    ]


def _heads(array: Array, config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Heads of the queries, of the keys, and the size of each; zeros where the source does not say."""

    def first(*names: str) -> int:
        found = (config.get(name) for name in names)
        return next((n for n in found if isinstance(n, int) and not isinstance(n, bool) and n > 0), 0)

    heads = array.facts.get("heads") or first("num_attention_heads", "n_head", "num_heads", "n_heads")
    keys = array.facts.get("kv_heads") or first("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads") or heads
    if config.get("multi_query") is True and not config.get("new_decoder_architecture"):
        keys = 1
    size = array.facts.get("head_dim") or first("head_dim") or (min(array.shape) // heads if heads else 0)
    return heads, keys, size


def _unless_a_mask(layer: Layer) -> Layer:
    """A layer of a source that does not tell parameters from buffers: its numbers may show that it is a mask."""

    def read() -> Any:
        matrix = layer.read()
        if why := _mask(matrix):
            raise NotALayer(why)
        return matrix

    return replace(layer, read=read)


def _mask(matrix: Any) -> str:
    """Why a matrix is a mask: two numbers, of which one is 0, in a triangle, or 0 and minus infinity."""
    try:
        corner = numbers(matrix[:4, :4])
        if np.unique(corner[~np.isnan(corner)]).size > 2 or corner.dtype.kind == "c":
            return ""
        A = numbers(matrix)
    except (ValueError, TypeError, RuntimeError, IndexError):
        return ""
    values = np.unique(A)
    if values.size != 2 or 0 not in values:
        return ""
    other = values[values != 0][0]
    on = A != 0
    triangle = min(A.shape) > 2 and any(
        np.array_equal(on, shape(np.ones_like(on), k)) for shape in (np.tril, np.triu) for k in (-1, 0, 1)
    )
    if other == -np.inf or triangle:
        return f"a mask, by its numbers: 0 and {other:g}" + (" in a triangle" if triangle else "")
    return ""
