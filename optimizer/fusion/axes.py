"""Operators that can compute with their axes in another order: which orders their values have then, and what changes on the node.

An order tells how a value is stored: axis i of what is stored is axis order[i] of the value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.fusion.conditions import input_of, integers, known, rank, size
from optimizer.graph import add_initializer, unique

Order = tuple[int, ...]

UNARY = frozenset(
    {"Abs", "Cast", "Ceil", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log"}
    | {"Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt", "Tanh"}
    | {"ThresholdedRelu"}
)
"""Operators that treat each number by itself; further inputs (of Clip) are scalars."""

BROADCAST = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "PRelu", "Where", "Mod"}
    | {"And", "Or", "Xor", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"}
)
"""Operators that treat each number by itself, of several inputs."""

_REDUCTIONS = ("Max", "Mean", "Min", "Prod", "Sum", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")


@dataclass(frozen=True)
class Writer:
    """Where new constants go: the graph and the names in use."""

    graph: ir.Graph
    taken: set[str]

    def put(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        return add_initializer(self.graph, unique(name, self.taken), np.ascontiguousarray(array))


@dataclass(frozen=True)
class Layout:
    """`spread` tells the orders of a node's values if one of them (not a constant) is stored in `order`, None where it can't be.

    `write` changes the node's attributes and constants to the orders that `spread` told; its inputs are then the stored ones.
    """

    spread: Callable[[ir.Node, ir.Value, Order], Mapping[ir.Value, Order] | None]
    write: Callable[[ir.Node, Mapping[ir.Value, Order], Writer], None]


def is_identity(order: Order) -> bool:
    return order == tuple(range(len(order)))


def inverse(order: Order) -> Order:
    return tuple(order.index(axis) for axis in range(len(order)))


def dropped(order: Order, axes: Order) -> Order:
    """The order of what is left when `axes` of the value are dropped."""
    left = [axis for axis in range(len(order)) if axis not in axes]
    return tuple(left.index(axis) for axis in order if axis not in axes)


def inserted(order: Order, axes: Order) -> Order:
    """An order that `dropped` turns into `order`: each new axis is stored before the one that follows it in the value."""
    total = len(order) + len(axes)
    old = [axis for axis in range(total) if axis not in axes]
    stored = [old[axis] for axis in order]
    for axis in sorted(axes, reverse=True):
        stored.insert(stored.index(axis + 1) if axis + 1 < total else len(stored), axis)
    return tuple(stored)


def permuted(array: NDArray[np.generic], order: Order) -> NDArray[np.generic]:
    """A constant that is broadcast to a value, as what is stored needs it."""
    return array.reshape((1,) * (len(order) - array.ndim) + array.shape).transpose(order)


def _spread_alike(node: ir.Node, _value: ir.Value, order: Order) -> dict[ir.Value, Order] | None:
    """Every value has one order; constants follow, a computed scalar has none."""
    found: dict[ir.Value, Order] = {}
    for value in (*node.inputs, *node.outputs):
        if value is None or rank(value) == 0:
            continue
        array = known(value)
        if array is not None and array.ndim <= len(order):
            continue
        if array is not None or rank(value) != len(order):
            return None
        found[value] = order
    return found


def _write_broadcast(node: ir.Node, orders: Mapping[ir.Value, Order], writer: Writer) -> None:
    order = orders[node.outputs[0]]
    for index, value in enumerate(node.inputs):
        array = known(value)
        if array is not None and array.size > 1 and value is not None:
            node.replace_input_with(index, writer.put(f"{value.name}.transposed", permuted(array, order)))


def _spread_first(node: ir.Node, _value: ir.Value, order: Order) -> dict[ir.Value, Order] | None:
    """The first input and the outputs have one order; further inputs say how, and are constants where `write` reads them."""
    found = {value: order for value in (node.inputs[0], *node.outputs) if value is not None}
    return found if all(rank(value) == len(order) for value in found) and known(node.inputs[0]) is None else None


def _write_axis(node: ir.Node, orders: Mapping[ir.Value, Order], writer: Writer) -> None:
    order = orders[node.outputs[0]]
    first = node.op_type in {"Split", "ArgMax", "ArgMin"}
    axis = node.attributes.get_int("axis", 0 if first else -1)
    _set(node, "axis", order.index(axis % len(order)))
    if node.op_type == "Concat":
        _write_broadcast(node, orders, writer)


def _set(node: ir.Node, name: str, number: int) -> None:
    node.attributes[name] = ir.AttrInt64(name, number)


def _spread_arg(node: ir.Node, value: ir.Value, order: Order) -> dict[ir.Value, Order] | None:
    return _spread_first(node, value, order) if node.attributes.get_int("keepdims", 1) else None


def _spread_concat(node: ir.Node, value: ir.Value, order: Order) -> dict[ir.Value, Order] | None:
    found = _spread_alike(node, value, order)
    constants = [array for each in node.inputs if (array := known(each)) is not None]
    return found if all(array.ndim == len(order) for array in constants) else None


def _axes(node: ir.Node, dimensions: int, index: int = 1) -> Order | None:
    """The axes that an input gives, all where it is left out (of a reduction), None where they are computed."""
    given = input_of(node, index)
    if given is None:
        return None if node.attributes.get_int("noop_with_empty_axes", 0) else tuple(range(dimensions))
    chosen = integers(given)
    return None if chosen is None else tuple(axis % dimensions for axis in chosen)


def _write_axes(node: ir.Node, order: Order, writer: Writer, index: int = 1) -> None:
    axes = _axes(node, len(order), index)
    assert axes is not None
    node.replace_input_with(index, writer.put(f"{node.name}.axes", np.array([order.index(axis) for axis in axes], np.int64)))


def _spread_dropping(node: ir.Node, value: ir.Value, order: Order) -> dict[ir.Value, Order] | None:
    """Reductions and Squeeze: the output has fewer axes, or as many where they are kept."""
    x, y = node.inputs[0], node.outputs[0]
    dimensions = rank(x)
    axes = None if dimensions is None or len(node.inputs) < 2 else _axes(node, dimensions)
    if x is None or axes is None or not axes or known(x) is not None:
        return None
    if node.op_type != "Squeeze" and node.attributes.get_int("keepdims", 1) != 0:
        return {x: order, y: order}
    whole = order if value is x else inserted(order, axes)
    return {x: whole, y: dropped(whole, axes)} if len(whole) == dimensions else None


def _write_dropping(node: ir.Node, orders: Mapping[ir.Value, Order], writer: Writer) -> None:
    x = node.inputs[0]
    assert x is not None
    _write_axes(node, orders[x], writer)


def _spread_unsqueeze(node: ir.Node, value: ir.Value, order: Order) -> dict[ir.Value, Order] | None:
    x, y = node.inputs[0], node.outputs[0]
    dimensions = rank(y)
    axes = None if dimensions is None else _axes(node, dimensions)
    if x is None or axes is None or known(x) is not None:
        return None
    whole = order if value is y else inserted(order, axes)
    return {x: dropped(whole, axes), y: whole} if len(whole) == dimensions else None


def _write_unsqueeze(node: ir.Node, orders: Mapping[ir.Value, Order], writer: Writer) -> None:
    _write_axes(node, orders[node.outputs[0]], writer)


def _spread_slice(node: ir.Node, value: ir.Value, order: Order) -> dict[ir.Value, Order] | None:
    return None if input_of(node, 3) is None or integers(node.inputs[3]) is None else _spread_first(node, value, order)


def _write_slice(node: ir.Node, orders: Mapping[ir.Value, Order], writer: Writer) -> None:
    _write_axes(node, orders[node.outputs[0]], writer, index=3)


def _spread_pad(node: ir.Node, value: ir.Value, order: Order) -> dict[ir.Value, Order] | None:
    says = input_of(node, 3) or node.inputs[1]
    return None if integers(says) is None else _spread_first(node, value, order)


def _write_pad(node: ir.Node, orders: Mapping[ir.Value, Order], writer: Writer) -> None:
    order = orders[node.outputs[0]]
    if input_of(node, 3) is not None:
        _write_axes(node, order, writer, index=3)
        return
    pads = np.array(integers(node.inputs[1]), np.int64).reshape(2, -1)
    node.replace_input_with(1, writer.put(f"{node.name}.pads", pads[:, order].reshape(-1)))


def _spread_by_axis(node: ir.Node, value: ir.Value, order: Order) -> dict[ir.Value, Order] | None:
    """Expand and Tile: a constant with one number an axis."""
    given = integers(node.inputs[1])
    return _spread_first(node, value, order) if given is not None and len(given) == len(order) else None


def _write_by_axis(node: ir.Node, orders: Mapping[ir.Value, Order], writer: Writer) -> None:
    given = np.array(integers(node.inputs[1]), np.int64)
    node.replace_input_with(1, writer.put(f"{node.name}.by_axis", given[list(orders[node.outputs[0]])]))


def _spread_resize(node: ir.Node, value: ir.Value, order: Order) -> dict[ir.Value, Order] | None:
    """Engines resize the last axes of images: samples stay first, and the axis that comes second must keep its size."""
    x, y = node.inputs[0], node.outputs[0]
    by_axis = [array for index in (2, 3) if (array := known(input_of(node, index))) is not None and array.size]
    region = known(input_of(node, 1))
    if len(by_axis) != 1 or "axes" in node.attributes or (region is not None and region.size) or order[0] != 0:
        return None
    if size(x, order[1]) is None or size(x, order[1]) != size(y, order[1]):
        return None
    return _spread_first(node, value, order)


def _write_resize(node: ir.Node, orders: Mapping[ir.Value, Order], writer: Writer) -> None:
    order = orders[node.outputs[0]]
    for index in (2, 3):
        array = known(input_of(node, index))
        if array is not None and array.size:
            node.replace_input_with(index, writer.put(f"{node.name}.by_axis", array[list(order)]))


def _nothing(_node: ir.Node, _orders: Mapping[ir.Value, Order], _writer: Writer) -> None:
    """Nothing on the node speaks of axes."""


LAYOUTS: Mapping[str, Layout] = {
    **dict.fromkeys(UNARY, Layout(_spread_alike, _nothing)),
    **dict.fromkeys(BROADCAST, Layout(_spread_alike, _write_broadcast)),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "Split"), Layout(_spread_first, _write_axis)),
    **dict.fromkeys(("ArgMax", "ArgMin"), Layout(_spread_arg, _write_axis)),
    "Concat": Layout(_spread_concat, _write_axis),
    **dict.fromkeys((*(f"Reduce{kind}" for kind in _REDUCTIONS), "Squeeze"), Layout(_spread_dropping, _write_dropping)),
    "Unsqueeze": Layout(_spread_unsqueeze, _write_unsqueeze),
    "Slice": Layout(_spread_slice, _write_slice),
    "Pad": Layout(_spread_pad, _write_pad),
    **dict.fromkeys(("Expand", "Tile"), Layout(_spread_by_axis, _write_by_axis)),
    "Resize": Layout(_spread_resize, _write_resize),
}
"""Operators by what they need to compute in another order of axes; Reshape is in `flattening`."""
