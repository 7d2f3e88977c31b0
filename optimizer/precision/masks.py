"""Masks beyond half precision: -3.4e38 is infinite even in BF16, and a row that is masked all over then gives NaN.

A mask that goes nowhere but into a softmax says only "far below all scores": brought within the type it gives the same zeros.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from optimizer.graph import add_initializer, constant, names, unique
from optimizer.precision import walks

HANDS_ON = frozenset(
    {"Add", "Cast", "Concat", "Expand", "Gather", "Identity", "Min", "Mul", "Reshape", "Slice", "Squeeze", "Tile", "Transpose"}
    | {"Unsqueeze", "Where"}
)
"""Operators behind which a masked score is still one."""

_ENDS = frozenset({"Attention", "Softmax"})
_ROOM = 4
"""Masks may be added to each other and to scores."""


def beyond(value: ir.Value | None, half: ir.DataType) -> bool:
    """Whether a value is a float constant with a finite number that `half` can't hold."""
    array = constant(value)
    if array is None or array.dtype != np.float32:
        return False
    magnitudes = np.abs(array[np.isfinite(array)])
    return bool(magnitudes.size) and float(magnitudes.max()) > float(half.max)


def masked(graph: ir.Graph, half: ir.DataType) -> frozenset[ir.Value]:
    """The values that such masks make as large as they are, the constants among them."""
    return frozenset(value for node, constants in _masks(graph, half) for value in (*constants, *_made(node)))


def bring_within(model: ir.Model, half: ir.DataType) -> None:
    """Brings such masks to a quarter of what `half` holds, in place; what they make gets names of its own.

    What goes by one name in two graphs is compared, and a masked score is another number here.
    """
    graph = model.graph
    taken, lowest = names(graph), np.float32(-float(half.max) / _ROOM)
    for node, constants in list(_masks(graph, half)):
        for place, value in enumerate(node.inputs):
            array = constant(value) if value in constants else None
            if value is not None and array is not None:
                finite = np.where(np.isfinite(array), np.maximum(array, lowest), array)
                node.replace_input_with(place, add_initializer(graph, unique(f"{value.name}/within", taken), finite))
        for made in _made(node):
            made.name = unique(f"{made.name}/within", taken)


def _masks(graph: ir.Graph, half: ir.DataType) -> Iterator[tuple[ir.Node, list[ir.Value]]]:
    """Each node that reads a mask beyond `half` which goes nowhere but into a softmax, with the constants that hold it."""
    for node in graph:
        constants = [value for value in node.inputs if value is not None and beyond(value, half)] if node.op_type in HANDS_ON else []
        if constants and all(_is_low(value, half) for value in constants) and _ends_in_softmax(node):
            yield node, constants


def _is_low(value: ir.Value, half: ir.DataType) -> bool:
    array = constant(value)
    return array is not None and float(array.max()) <= float(half.max)


def _ends_in_softmax(node: ir.Node) -> bool:
    reached = [*walks.behind(node.outputs[0], HANDS_ON)]
    ends = [other for other in reached if other.op_type not in HANDS_ON]
    leaves = any(value.is_graph_output() for value in _made(node))
    return bool(ends) and not leaves and all(other.op_type in _ENDS for other in ends)


def _made(node: ir.Node) -> Iterator[ir.Value]:
    """What a node, and what hands its numbers on, writes."""
    yield from node.outputs
    for other in walks.behind(node.outputs[0], HANDS_ON):
        if other.op_type in HANDS_ON:
            yield from other.outputs
