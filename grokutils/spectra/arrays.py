"""Arrays by name, not yet read: what every source of weights is turned into.

>>> array = from_value("fc1.weight", np.ones((30, 40), np.float16))
>>> array.shape, array.dtype, array.read().shape, array.read((3,)).shape
((30, 40), 'float16', (30, 40), (40,))
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Array", "NotMeasured", "decoded", "from_value", "is_number", "numbers", "precision"]

#: Exponent bits, mantissa bits, exponent bias, and which codes are no numbers, of the floats that NumPy lacks.
SMALL_FLOATS = {
    "float8_e4m3fn": (4, 3, 7, "all ones"),
    "float8_e5m2": (5, 2, 15, "ieee"),
    "float8_e4m3fnuz": (4, 3, 8, "minus zero"),
    "float8_e5m2fnuz": (5, 2, 16, "minus zero"),
    "float6_e2m3fn": (2, 3, 1, ""),
    "float6_e3m2fn": (3, 2, 3, ""),
    "float4_e2m1fn": (2, 1, 1, ""),
}
#: Powers of two without a sign: scales of blocks, never weights.
EXPONENTS = "float8_e8m0fnu"


@dataclass(frozen=True)
class NotMeasured:
    """An array that is no row of the table, and why."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    reason: str
    #: False for a part of a layer that was measured (a mask, a scale), or of no model (an optimiser's moments).
    missing: bool = True

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype, "reason": self.reason}


@dataclass
class Array:
    """An array of a source, before it is made one or more matrices."""

    name: str
    shape: tuple[int, ...]
    #: As torch and NumPy call it: "float32", "bfloat16", "int8", "float8_e4m3fn", ...
    dtype: str
    #: The array, or the block of it at an index of its first axes.
    read: Callable[..., Any]
    #: What the source knows it to be; empty if it does not say. One of `grokutils.spectra.layers.KINDS`.
    kind: str = ""
    #: Equal for two names of the same memory; None for what is certainly no other's.
    memory: Any = None
    also: tuple[str, ...] = ()
    #: How it was computed from what is stored; empty for what is stored.
    note: str = ""
    #: Whether its numbers are computed from other arrays, so that they cannot be set.
    computed: bool = False
    #: Parameters that it stands for, if not one for each of its numbers.
    parameters: int | None = None
    #: How many heads there are, and the like.
    facts: Mapping[str, Any] = field(default_factory=dict)
    #: The class of the module that holds it.
    owner: type | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape) if self.parameters is None else self.parameters

    def left_out(self, reason: str, missing: bool = True) -> NotMeasured:
        return NotMeasured(self.name, self.shape, self.dtype, reason, missing)


def from_value(name: str, value: Any, check: Callable[[], None] | None = None, **known: Any) -> Array | None:
    """The array that a value of a mapping is; None for what is none. ``check`` runs before each reading."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None or isinstance(value, np.generic):
        return None
    try:
        sides = tuple(int(side) for side in shape)
    except (TypeError, ValueError, RuntimeError):
        return None

    def read(at: tuple[int, ...] = ()) -> Any:
        if check is not None:
            check()
        return value[at] if at else value

    return Array(name, sides, dtype_name(value), read, memory=_memory(value), **known)


def dtype_name(value: Any) -> str:
    name = getattr(value.dtype, "name", None) or str(value.dtype)
    return name.removeprefix("torch.")


def is_number(dtype: str) -> bool:
    """Whether an array of this type can hold weights as they are: not integers, booleans, scales or objects."""
    return dtype.startswith(("float", "bfloat", "complex", "longdouble", "quint", "qint")) and dtype != EXPONENTS


def precision(dtype: str) -> float:
    """The relative step between neighbouring numbers of a type; that of float32 where there is a finer one or none."""
    steps = {"float16": 2.0**-10, "bfloat16": 2.0**-7} | {
        name: 2.0 ** -mantissa for name, (_, mantissa, _, _) in SMALL_FLOATS.items()
    }
    return steps.get(dtype, 2.0**-23)


def _memory(array: Any) -> Any:
    """Where an array's numbers are, so that tied weights are known by it, transposed or not."""
    try:
        if hasattr(array, "data_ptr"):
            place, steps = array.data_ptr(), array.stride()
        else:
            place, steps = array.__array_interface__["data"][0], array.strides
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):  # sparse, meta, not NumPy's
        return id(array)
    return (place, tuple(sorted(zip(steps, map(int, array.shape), strict=True)))) if place else id(array)


def numbers(value: Any) -> np.ndarray:
    """What was read, as NumPy numbers to compute with: float64 stays, smaller floats become float32, integers stay.

    >>> numbers(np.ones(2, np.float16)).dtype
    dtype('float32')

    Raises
    ------
    ValueError, TypeError : numbers that are not here (a meta tensor) or cannot be converted.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.is_meta:
            raise ValueError("its numbers are on the meta device, which has none.")
        value = plain(value)
        if value.layout != torch.strided:
            value = value.to_dense()
        value = value.cpu()
        if value.is_floating_point() and value.dtype != torch.float64:
            value = value.float()
        return value.numpy()
    array = np.asarray(value)
    if array.dtype.kind == "f" or is_number(array.dtype.name) and array.dtype.kind != "c":
        return array if array.dtype.itemsize >= 8 and array.dtype.kind == "f" else array.astype(np.float32, copy=False)
    if array.dtype.kind == "V":  # small integers and scales of ml_dtypes
        return array.astype(np.float32 if array.dtype.name.startswith("float") else np.int8)
    return array


def plain(tensor: Any) -> Any:
    """A tensor without its history and, if it holds codes that know their scale, with the numbers they stand for."""
    import torch

    tensor = tensor.detach()
    if tensor.is_quantized or type(tensor) not in (torch.Tensor, torch.nn.Parameter) and knows_its_scale(tensor):
        tensor = tensor.dequantize().detach()
    return tensor


def knows_its_scale(tensor: Any) -> bool:
    """Whether a tensor of a class of its own (torchao, quanto) turns itself into numbers."""
    import torch

    return type(tensor).__dict__.get("dequantize") is not None or any(
        "dequantize" in vars(base) for base in type(tensor).__mro__ if base not in torch.Tensor.__mro__
    )


def decoded(raw: np.ndarray, dtype: str, count: int) -> np.ndarray:
    """Bytes of one of the types that NumPy lacks as float32, in order.

    >>> decoded(np.array([0x21, 0xF0], np.uint8), "float4_e2m1fn", 4).tolist()     # low half first
    [0.5, 1.0, 0.0, -6.0]
    """
    if dtype == "bfloat16":
        wide = raw.view("<u2").astype(np.uint32)
        wide <<= 16  # in place: these may be gigabytes
        return wide.view(np.float32)
    if dtype == EXPONENTS:
        return exponents(raw)
    codes = raw
    if dtype.startswith("float4"):
        codes = np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1)
    elif dtype.startswith("float6"):  # four codes in three bytes, the lowest bits first
        bits = np.unpackbits(raw, bitorder="little")
        whole = bits[: bits.size // 6 * 6].reshape(-1, 6)
        codes = whole @ (1 << np.arange(6)).astype(np.uint8)
    return small_float(dtype)[codes[:count]]


def exponents(codes: np.ndarray) -> np.ndarray:
    """Numbers of the type E8M0: 2^(code - 127); 255 is no number."""
    return np.where(codes == 255, np.nan, np.ldexp(np.float32(1), codes.astype(np.int32) - 127)).astype(np.float32)


def small_float(dtype: str) -> np.ndarray:
    """The number that each code of a small type stands for.

    >>> small_float("float4_e2m1fn")[:8].tolist()
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """
    exponent_bits, mantissa_bits, bias, special = SMALL_FLOATS[dtype]
    codes = np.arange(2 ** (1 + exponent_bits + mantissa_bits))
    exponent = codes >> mantissa_bits & (1 << exponent_bits) - 1
    mantissa = (codes & (1 << mantissa_bits) - 1) / 2**mantissa_bits
    value = np.where(
        exponent == 0, np.ldexp(mantissa, 1 - bias), np.ldexp(1 + mantissa, exponent.astype(int) - bias)
    )
    half = codes.size // 2
    magnitude = codes % half
    if special == "all ones":
        value[magnitude == half - 1] = np.nan
    elif special == "ieee":
        top = exponent == (1 << exponent_bits) - 1
        value[top] = np.where(mantissa[top] == 0, np.inf, np.nan)
    value = np.where(codes < half, value, -value)
    if special == "minus zero":
        value[half] = np.nan
    return value.astype(np.float32)
