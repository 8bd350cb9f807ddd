"""The weight matrices in whatever somebody has: a module, a state_dict, a file, a matrix.

>>> [layer.name for layer in find_layers({"fc1.weight": np.ones((30, 40)), "fc1.bias": np.ones(30)})]
['fc1']

Only names, shapes and types are looked at here; the numbers of a layer are read when they are asked for,
one layer at a time, so that a file may be larger than the memory.
"""

from __future__ import annotations

import copy
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch.nn.utils import parametrize

__all__ = ["Layer", "find_layers", "is_matrix"]

# Weights of these scale single features; where they happen to have two dimensions they are no matrices.
_NORMS = (
    torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.modules.batchnorm._NormBase,
    *([torch.nn.RMSNorm] if hasattr(torch.nn, "RMSNorm") else []),  # since torch 2.4
)  # fmt: skip
_CONVOLUTIONS = torch.nn.modules.conv._ConvNd
# In a file nothing says what is a convolution: an array of three or more dimensions is taken for one if
# none of its axes after the second is longer than the largest kernels in use.
_LARGEST_KERNEL = 32
# Projections to queries, keys and values in one matrix, one after the other. (GPT-NeoX and BLOOM call
# theirs query_key_value and mix the three head by head; those are left whole.)
_FUSED = ("in_proj", "qkv", "Wqkv", "qkv_proj", "c_attn")


@dataclass(frozen=True)
class Layer:
    """One matrix of a model, not yet read."""

    name: str
    #: Shape of the array that it is, or is part of, as stored.
    shape: tuple[int, ...]
    #: How it was made a matrix, and what else shares it; empty for a plain matrix.
    note: str
    #: The matrix, as an array or tensor with two dimensions; raises where it has no numbers.
    read: Callable[[], Any]


def find_layers(source: Any) -> list[Layer]:
    """Every weight matrix, once, in the order of the source.

    Parameters
    ----------
    source : a `torch.nn.Module`, a mapping of names to arrays or tensors such as a ``state_dict``, the path
        of a ``.safetensors`` file, or a matrix (array, tensor, or rows of numbers)

    Returns
    -------
    list of `Layer`. Names lose a final ``.weight``. What becomes a matrix, and how:

    - two dimensions: as it is (linear layers, embeddings, projections);
    - a convolution: first axis against all the others, 64 x 3 x 7 x 7 as 64 x 147;
    - a fused projection of attention to queries, keys and values (``in_proj``, ``qkv``, ``Wqkv``,
      ``qkv_proj``, ``c_attn``, one side three times the other): three matrices, ``.q``, ``.k``, ``.v``;
    - other arrays of three and more dimensions: a stack, one matrix ``[i]`` for each. In mappings and files,
      which do not say what a layer is, an array whose axes after the second are all at most 32 is taken for
      a convolution;
    - a parametrised weight of a module (`torch.nn.utils.parametrize`): its effective value.

    Left out are vectors (biases), the weights of normalisation layers in modules, and integers and booleans
    in mappings and files (indices and masks). An array that goes by several names is one layer, with the
    others in its note.

    Raises
    ------
    TypeError : a source of another kind.
    ValueError : nothing in it is a matrix; a file that is no safetensors file (a pickle is never opened).
    FileNotFoundError : no such file.
    """
    if isinstance(source, torch.nn.Module):
        entries = _from_module(source)
    elif isinstance(source, Mapping):
        entries = _from_mapping(source)
    elif isinstance(source, (str, os.PathLike)):
        entries = _from_file(Path(source))
    elif is_matrix(source):
        shape = tuple(getattr(source, "shape", ()))
        return [Layer("matrix", shape, "", lambda: source)]
    else:
        raise TypeError(
            "source must be a matrix, a torch module, a mapping of names to arrays, the path of a "
            f".safetensors file or a Record; got {type(source).__name__}."
        )
    entries = _without_repeats(entries)
    times = Counter(_short(entry.name) for entry in entries)
    found = []
    for entry in entries:
        short = _short(entry.name)
        found += _matrices(entry, short if times[short] == 1 else entry.name)
    if not found:
        raise ValueError(_nothing(source))
    return found


def is_matrix(source: Any) -> bool:
    """Whether a source is one array or tensor (or rows of numbers), of whatever shape and type."""
    return isinstance(source, (list, tuple)) or hasattr(source, "__array__")


@dataclass
class _Entry:
    """An array of the source, before it is made one or more matrices."""

    name: str
    shape: tuple[int, ...]
    #: The array, or the part of it that is at the index given.
    read: Callable[..., Any]
    #: None where the source does not say.
    convolution: bool | None
    #: Equal for two names of the same memory; None for what is certainly no other's.
    memory: Any = None
    also: tuple[str, ...] = ()


def _from_module(module: torch.nn.Module) -> list[_Entry]:
    kind: dict[int, bool | None] = {}  # id of a parameter: is it a kernel? None: leave it out
    entries = []
    for prefix, part in module.named_modules():
        for parameter in part.parameters(recurse=False):
            skip = isinstance(part, _NORMS)
            # the first word stands: a parametrised module has spoken for the modules in it
            kind.setdefault(id(parameter), None if skip else isinstance(part, _CONVOLUTIONS))
        if parametrize.is_parametrized(part):
            for name, chain in part.parametrizations.items():
                for parameter in chain.parameters():
                    kind[id(parameter)] = None
                if not isinstance(part, _NORMS):
                    value = _effective(chain)
                    full = f"{prefix}.{name}" if prefix else name
                    convolution = isinstance(part, _CONVOLUTIONS)
                    entries.append(_Entry(full, tuple(value.shape), _reader(value), convolution))
    for name, parameter in _parameters(module):
        convolution = kind.get(id(parameter), False)
        if convolution is None:
            continue
        if torch.nn.parameter.is_lazy(parameter):
            if name.rpartition(".")[2] != "bias":  # which it will be has no shape yet
                entries.append(_Entry(name, (), _uninitialised, False))
            continue
        entries.append(
            _Entry(name, tuple(parameter.shape), _reader(parameter), convolution, _memory(parameter))
        )
    return entries


def _parameters(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """As ``named_parameters(remove_duplicate=False)``, which torch has since 2.0."""
    for prefix, part in module.named_modules(remove_duplicate=False):
        for name, parameter in part._parameters.items():
            if parameter is not None:
                yield f"{prefix}.{name}" if prefix else name, parameter


def _effective(chain: torch.nn.Module) -> torch.Tensor:
    """What a parametrisation makes of its parameters. A copy computes it, in evaluation mode: some of them
    (spectral_norm) change their own buffers each time they are asked."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return copy.deepcopy(chain).eval()()


def _reader(array: Any) -> Callable[..., Any]:
    return lambda index=None: array if index is None else array[index]


def _short(name: str) -> str:
    return name.removesuffix(".weight").removesuffix("_weight")


def _uninitialised(index=None):
    raise ValueError("it has no numbers yet: run the lazy module once.")


def _from_mapping(mapping: Mapping[str, Any]) -> list[_Entry]:
    entries = []
    for name, array in mapping.items():
        shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
        if shape is None or dtype is None or not _is_weight(dtype):
            continue
        try:
            sides = tuple(int(side) for side in shape)
        except (TypeError, ValueError):
            continue
        entries.append(_Entry(str(name), sides, _reader(array), None, _memory(array)))
    return entries


def _is_weight(dtype: Any) -> bool:
    if isinstance(dtype, torch.dtype):
        return dtype.is_floating_point or dtype.is_complex
    return getattr(dtype, "kind", "") in ("f", "c")


def _from_file(path: Path) -> list[_Entry]:
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder; name a .safetensors file in it, or load_record() it if it is a run."
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        # as tensors, since NumPy has no bfloat16
        file = safetensors.safe_open(path, framework="pt")
        names = list(file.keys())
        entries = []
        for name in names:
            part = file.get_slice(name)
            if part.get_dtype() != "BOOL" and part.get_dtype()[0] not in "IU":  # I64, U8, ...
                entries.append(_Entry(name, tuple(part.get_shape()), _file_reader(file, name), None))
        return entries
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is no safetensors file ({error}). Other kinds are not read, pickled checkpoints because reading one "
            "can run code; save yours with safetensors.torch.save_file(model.state_dict(), path)."
        ) from None


def _file_reader(file: Any, name: str) -> Callable[..., Any]:
    return lambda index=None: file.get_tensor(name) if index is None else file.get_slice(name)[index]


def _memory(array: Any) -> Any:
    """Where an array's numbers are, so that tied weights are known by it."""
    try:
        if isinstance(array, torch.Tensor):
            place, steps = array.data_ptr(), array.stride()
        else:
            place, steps = array.__array_interface__["data"][0], array.strides
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):  # sparse, meta, not NumPy's
        return id(array)
    return (place, tuple(array.shape), tuple(steps)) if place else id(array)


def _without_repeats(entries: list[_Entry]) -> list[_Entry]:
    first: dict[Any, _Entry] = {}
    kept = []
    for entry in entries:
        if entry.memory is not None and entry.memory in first:
            first[entry.memory].also += (entry.name,)
            continue
        if entry.memory is not None:
            first[entry.memory] = entry
        kept.append(entry)
    return kept


def _matrices(entry: _Entry, name: str) -> list[Layer]:
    """The matrices in one array; none in a vector."""
    shape, read = entry.shape, entry.read
    tied = f"also {', '.join(entry.also)}" if entry.also else ""

    def layer(name: str, note: str, numbers: Callable[[], Any]) -> Layer:
        return Layer(name, shape, "; ".join(filter(None, (note, tied))), numbers)

    if read is _uninitialised:
        return [layer(name, "", read)]
    if len(shape) < 2 or 0 in shape:
        return []
    if len(shape) == 2:
        parts = _thirds(name, shape)
        note = f"a third of {entry.name}"
        return [layer(f"{name}.{k}", note, lambda at=at: read(at)) for k, at in parts] or [
            layer(name, "", read)
        ]
    if entry.convolution or (entry.convolution is None and max(shape[2:]) <= _LARGEST_KERNEL):
        note = f"{' x '.join(map(str, shape))} read as {shape[0]} x {math.prod(shape[1:])}"
        return [layer(name, note, lambda: read().reshape(shape[0], -1))]
    stack, sides = shape[:-2], shape[-2:]
    if min(sides) == 1:
        return []
    if math.prod(stack) == 1:
        return [layer(name, "", lambda: read().reshape(sides))]
    note = f"one of {math.prod(stack)} in {entry.name}"
    return [
        layer(f"{name}[{','.join(map(str, at))}]", note, lambda at=at: read(at)) for at in np.ndindex(stack)
    ]


def _thirds(name: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[slice, slice]]]:
    """Where the queries, keys and values of a fused projection are, along its longer side."""
    rows, columns = shape
    short = min(shape)
    if name.rpartition(".")[2] not in _FUSED or max(shape) != 3 * short:
        return []
    parts = [slice(k * short, (k + 1) * short) for k in range(3)]
    everything = slice(None)
    places = [(part, everything) if rows > columns else (everything, part) for part in parts]
    return list(zip("qkv", places, strict=True))


def _nothing(source: Any) -> str:
    said = "source must hold a weight matrix: a floating-point array of two or more dimensions; it has none."
    if isinstance(source, Mapping):
        inside = [repr(name) for name, value in source.items() if isinstance(value, Mapping)]
        if inside:
            said += f" It holds mappings: look into {' or '.join(inside[:3])}."
    return said
