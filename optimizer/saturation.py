"""What a CPU without VNNI makes of an INT8 product: pairs of uint8 x int8 products are added in 16 bits, with saturation.

`pmaddubsw` adds two neighbouring products before anything is widened (oneDNN's developer guide, "Nuances of int8 Computations").
The neighbours are two channels at one place of a convolution's kernel.  Where these are an odd number, ONNX Runtime pairs the last
one with the first of the next place, and oneDNN with nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.graph import add_initializer, constant, names, unique

_LARGEST = 255
"""A uint8 activation reaches it, whatever calibration saw: what is new clips there."""

_LOW, _HIGH = -(2**15), 2**15 - 1
_CONVOLUTION = ("strides", "pads", "dilations", "auto_pad")


@dataclass(frozen=True)
class _Product:
    """An INT8 product: uint8 activation, its scale and zero point; weights in the order in which kernels add, (columns, terms) with
    a scale a column; where each term stands in the activation as `_terms` lays it out, int64 (columns, terms).

    `kernel` is the shape of a convolution's, `channels` how many it reads.
    """

    integers: ir.Value
    scale: ir.Value
    zero: ir.Value | None
    weights: NDArray[np.int32]
    steps: NDArray[np.float32]
    places: NDArray[np.int64]
    kernel: tuple[int, ...] = ()
    channels: int = 0


@dataclass(frozen=True)
class _Pairs:
    """The pairs of a product that can leave 16 bits: places and weights of their two halves, (columns, pairs), unused ones of weight 0."""

    places: tuple[NDArray[np.int64], NDArray[np.int64]]
    weights: tuple[NDArray[np.float32], NDArray[np.float32]]


def saturate(model: ir.Model, by_place: bool) -> None:
    """Takes from each INT8 convolution and matrix product, in place, what saturation loses of it; their outputs keep their names.

    `by_place` says that no pair goes from one place of a convolution's kernel to the next, but where it has a single channel.
    Layers whose weights can't bring a pair beyond 16 bits stay as they are: with weights up to 64 all of them.
    """
    taken = names(model.graph)
    for node in list(model.graph):
        product = _product(node, by_place)
        pairs = _pairs(product) if product is not None else None
        if product is not None and pairs is not None:
            _subtract(_Tape(model.graph, node, taken), node, product, pairs)


def _product(node: ir.Node, by_place: bool) -> _Product | None:
    if node.op_type == "MatMulIntegerToFloat":
        integers, weight, scale, steps, zero = node.inputs[:5]
        return _described(node, integers, scale, zero, constant(weight), constant(steps), by_place)
    if node.op_type not in {"Conv", "Gemm", "MatMul"}:
        return None
    up, weights = (value.producer() if value is not None else None for value in node.inputs[:2])
    if up is None or weights is None or {up.op_type, weights.op_type} != {"DequantizeLinear"}:
        return None
    zero = up.inputs[2] if len(up.inputs) > 2 else None
    return _described(node, up.inputs[0], up.inputs[1], zero, constant(weights.inputs[0]), constant(weights.inputs[1]), by_place)


def _described(
    node: ir.Node,
    integers: ir.Value | None,
    scale: ir.Value | None,
    zero: ir.Value | None,
    weight: NDArray[Any] | None,
    steps: NDArray[Any] | None,
    by_place: bool,
) -> _Product | None:
    if integers is None or scale is None or weight is None or steps is None:
        return None
    if integers.dtype != ir.DataType.UINT8 or weight.dtype != np.int8 or (node.op_type != "Conv" and weight.ndim != 2):
        return None
    if node.op_type == "Conv":
        columns, channels, *kernel = weight.shape
        groups = node.attributes.get_int("group") or 1
        # One more term of weight 0 keeps an odd channel from the next place; which number it is multiplied with is all the same.
        alone = by_place and channels > 1 and channels % 2
        own = np.pad(np.moveaxis(weight, 1, -1), [*[(0, 0)] * (1 + len(kernel)), (0, 1 if alone else 0)])
        tap, channel = np.divmod(np.arange(own[0].size), own.shape[-1])
        first = np.arange(columns) // (columns // groups) * channels
        places = (first[:, None] + np.minimum(channel, channels - 1)) * math.prod(kernel) + tap
        own = own.reshape(columns, -1)
        convolution: tuple[tuple[int, ...], int] = (tuple(kernel), channels * groups)
    else:
        own = weight if node.op_type == "Gemm" and node.attributes.get_int("transB") else weight.T
        places = np.broadcast_to(np.arange(own.shape[1]), own.shape)
        convolution = ((), 0)
    row = np.broadcast_to(steps.astype(np.float32).reshape(-1), (len(own),))
    return _Product(integers, scale, zero, own.astype(np.int32), row, places, *convolution)


def _pairs(product: _Product) -> _Pairs | None:
    """The pairs at risk, None where there are none."""
    even = product.weights.shape[1] // 2 * 2
    first, second = product.weights[:, 0:even:2], product.weights[:, 1:even:2]
    high = _LARGEST * (np.maximum(first, 0) + np.maximum(second, 0)) > _HIGH
    risk = high | (_LARGEST * (np.minimum(first, 0) + np.minimum(second, 0)) < _LOW)
    most = int(risk.sum(1).max(initial=0))
    if not most:
        return None
    order = np.argsort(~risk, axis=1, kind="stable")[:, :most]
    there = np.take_along_axis(risk, order, 1)

    def at_risk(array: NDArray[Any], start: int) -> NDArray[Any]:
        return np.take_along_axis(array[:, start:even:2], order, 1)

    places = (at_risk(product.places, 0).astype(np.int64), at_risk(product.places, 1).astype(np.int64))
    weights = tuple(np.where(there, at_risk(product.weights, start), 0).astype(np.float32) for start in (0, 1))
    return _Pairs(places, (weights[0], weights[1]))


class _Tape:
    """Writes float nodes behind a layer, one after the other, for that layer."""

    def __init__(self, graph: ir.Graph, layer: ir.Node, taken: set[str]) -> None:
        self._graph, self._last, self._name, self._taken = graph, layer, layer.name or layer.op_type, taken

    def constant(self, array: NDArray[Any]) -> ir.Value:
        return add_initializer(self._graph, unique(f"{self._name}/saturation", self._taken), array)

    def node(self, operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(operator, list(inputs), attributes, name=unique(f"{self._name}/{operator}", self._taken))
        node.outputs[0].name, node.outputs[0].type = unique(f"{node.name}/out", self._taken), ir.TensorType(ir.DataType.FLOAT)
        self._graph.insert_after(self._last, node)
        self._last = node
        return node.outputs[0]


def _subtract(tape: _Tape, node: ir.Node, product: _Product, pairs: _Pairs) -> None:
    """Nodes behind `node` that subtract from its output what its pairs lose."""
    value = node.outputs[0]
    terms = _terms(tape, node, product)
    halves = (
        tape.node("Mul", tape.node("Gather", terms, tape.constant(places), axis=-1), tape.constant(weights))
        for places, weights in zip(pairs.places, pairs.weights, strict=True)
    )
    exact = tape.node("Add", *halves)
    kept = tape.node("Clip", exact, *(tape.constant(np.array(bound, np.float32)) for bound in (_LOW, _HIGH)))
    lost = tape.node("ReduceSum", tape.node("Sub", exact, kept), tape.constant(np.array([-1])), keepdims=0)
    lost = tape.node("Mul", tape.node("Mul", lost, tape.constant(product.steps)), product.scale)
    if product.channels:
        rank = 2 + len(product.kernel)
        lost = tape.node("Transpose", lost, perm=[0, rank - 1, *range(1, rank - 1)])
    left = tape.node("Sub", lost, lost)
    left.shape = value.shape
    value.replace_all_uses_with(left, replace_graph_outputs=True)
    left.producer().replace_input_with(0, value)  # type: ignore[union-attr]
    value.name, left.name = left.name, value.name


def _terms(tape: _Tape, node: ir.Node, product: _Product) -> ir.Value:
    """The activation's raw 0..255 in float, what one output sums up along the last axis; a convolution's by channel, then place."""
    raw = tape.node("Cast", product.integers, to=int(ir.DataType.FLOAT))
    if not product.channels:
        return raw
    kernel, taps = product.kernel, math.prod(product.kernel)
    ones = np.tile(np.eye(taps, dtype=np.float32).reshape(taps, 1, *kernel), (product.channels, 1, *[1] * len(kernel)))
    kept = {name: node.attributes[name].value for name in _CONVOLUTION if name in node.attributes}
    zero = tape.node("Cast", product.zero, to=int(ir.DataType.FLOAT)) if product.zero is not None else None
    # What is padded is a zero, which the integers call by their zero point.
    centred = raw if zero is None else tape.node("Sub", raw, zero)
    unfolded = tape.node("Conv", centred, tape.constant(ones), group=product.channels, kernel_shape=list(kernel), **kept)
    shifted = unfolded if zero is None else tape.node("Add", unfolded, zero)
    return tape.node("Transpose", shifted, perm=[0, *range(2, 2 + len(kernel)), 1])
