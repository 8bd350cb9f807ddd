"""The arrays of an ONNX graph, and what its operators say they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from grokutils.spectra.arrays import Array

# What an operator's input is, by its place; other operators say nothing.
_USES = {
    "Conv": {1: "convolution", 2: "bias"}, "ConvTranspose": {1: "convolution", 2: "bias"},
    "ConvInteger": {1: "convolution"}, "Gemm": {0: "matrix", 1: "matrix", 2: "bias"}, "MatMul": {0: "stack", 1: "stack"},
    "MatMulInteger": {0: "stack", 1: "stack"}, "Gather": {0: "matrix"},
    "LSTM": {1: "stack", 2: "stack", 3: "bias", 7: "bias"}, "GRU": {1: "stack", 2: "stack", 3: "bias"},
    "RNN": {1: "stack", 2: "stack", 3: "bias"}, "Add": {0: "added", 1: "added"}, "Sub": {0: "added", 1: "added"},
    "Mul": {0: "scale", 1: "scale"}, "Div": {0: "scale", 1: "scale"}, "Where": {0: "mask", 1: "mask", 2: "mask"},
    "BatchNormalization": dict.fromkeys(range(1, 5), "norm"), "LayerNormalization": dict.fromkeys((1, 2), "norm"),
    "InstanceNormalization": dict.fromkeys((1, 2), "norm"), "PRelu": {1: "scale"}, "Reshape": {1: "shape"},
}  # fmt: skip
# These hand an array on as it is, or turned.
_PASSES = ("Transpose", "Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "DequantizeLinear")
_LARGEST_UNSHAPED = 1  # constants of one number are no arrays


def arrays_of(onnx: Any, model: Any, path: Path, check: Callable[[], None]) -> list[Array]:
    """Initialisers and large constants of a graph and of the graphs in it."""
    found: dict[str, Any] = {}
    uses: dict[str, set[str]] = {}
    passed: dict[str, str] = {}
    scaled: dict[str, tuple[str, ...]] = {}
    for graph in _graphs(onnx, model.graph):
        found |= {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value" and math.prod(attribute.t.dims) > _LARGEST_UNSHAPED:
                        found[node.output[0]] = attribute.t
            for place, name in enumerate(node.input):
                if use := _USES.get(node.op_type, {}).get(place):
                    uses.setdefault(name, set()).add(use)
            if node.op_type in _PASSES and node.input:
                passed[node.output[0]] = node.input[0]
            if node.op_type == "DequantizeLinear":
                axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
                scaled[node.input[0]] = (*node.input[1:3], str(axis))
    for output in reversed(list(passed)):  # later ones first, so that a chain hands its use back to its start
        uses.setdefault(passed[output], set()).update(uses.get(output, set()))

    def reader(tensor: Any) -> Callable[..., np.ndarray]:
        def read(at: tuple[int, ...] = ()) -> np.ndarray:
            check()
            try:
                array = onnx.numpy_helper.to_array(tensor, base_dir=str(path.parent))
            except Exception as error:  # an external file that is not there or too short
                raise ValueError(f"{tensor.name} in {path} cannot be read: {' '.join(str(error).split())[:200]}") from None
            return array[at] if at else array

        return read

    arrays = []
    for name, tensor in found.items():
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name
        array = Array(name, tuple(tensor.dims), dtype, reader(tensor), _kind(uses.get(name, set())))
        if name in scaled and scaled[name][0] in found:
            array = _dequantised(array, found, scaled[name], reader)
        arrays.append(array)
    return arrays


def _graphs(onnx: Any, graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(onnx, attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(onnx, inner)


def _kind(uses: set[str]) -> str:
    """Of an array used in several ways the one that makes it a layer."""
    return next((use for use in ("convolution", "matrix", "stack") if use in uses), min(uses, default=""))


def _dequantised(array: Array, found: dict[str, Any], scale: tuple[str, ...], reader: Callable) -> Array:
    """Codes with the scale, and perhaps the zero point, that DequantizeLinear gives them."""
    *names, axis = scale
    parts = [reader(found[name]) if name in found else None for name in names]

    def read(at: tuple[int, ...] = ()) -> np.ndarray:
        codes = array.read().astype(np.float32)
        values = [None if part is None else np.asarray(part(), np.float32) for part in parts]
        sides = [1] * codes.ndim
        if values[0].ndim == 1 and values[0].size > 1:
            sides[int(axis)] = values[0].size
            values = [None if value is None else value.reshape(sides) for value in values]
        if len(values) > 1 and values[1] is not None:
            codes = codes - values[1]
        codes = codes * values[0]
        return codes[at] if at else codes

    return Array(
        array.name, array.shape, "float32", read, array.kind, note=f"decoded from {array.dtype}", computed=True
    )
