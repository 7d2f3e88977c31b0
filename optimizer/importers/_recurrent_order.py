"""The order of steps around recurrent operators: a sequence that is reversed for one is what its direction is for.

A ReverseSequence over whole sequences is a Slice by -1; an operator that reads one runs in reverse instead, and what it gives for
each step is reversed behind it, where Keras's Bidirectional reverses once more and the two cancel.  The last element
of what it gives is its final state.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from optimizer.fusion.conditions import input_of, integers, known
from optimizer.fusion.shapes import Elements, follow_shapes, size_along
from optimizer.graph import add_initializer, names, readers, unique

OPERATORS = frozenset({"GRU", "LSTM", "RNN"})
_FIRST = -(2**63) + 1
"""The end of a Slice that goes backwards through the first element."""


def tidy_order(model: ir.Model) -> None:
    """Reversals become Slices and directions, last elements final states; in place."""
    graph, taken = model.graph, names(model.graph)
    elements = follow_shapes(graph)
    for node in list(graph):
        if node.op_type == "ReverseSequence" and not node.domain and _whole(node, elements):
            axis = node.attributes.get_int("time_axis", 0)
            called = node.name or "ReverseSequence"
            _give(node.outputs[0], _reversed(graph, node, node.inputs[0], axis, called, taken))
            graph.remove(node, safe=True)
    for node in list(graph):
        if node.op_type in OPERATORS and not node.domain:
            _start_at_zero(node)
            if node.attributes.get_string("direction", "forward") == "forward" and input_of(node, 4) is None:
                _read_final_state(node, taken)
                _run_in_reverse(graph, node, taken)


def _whole(node: ir.Node, elements: Mapping[ir.Value, Elements]) -> bool:
    """Whether every sample is reversed from its first to its last element."""
    x, lengths = node.inputs
    assert x is not None
    assert lengths is not None
    whole = size_along(x, node.attributes.get_int("time_axis", 0))
    array = known(lengths)
    if array is not None:
        return bool(np.all(array == whole)) if isinstance(whole, int) else False
    repeated = lengths.producer()
    while repeated is not None and repeated.op_type in {"Cast", "Identity"} and repeated.inputs[0] is not None:
        repeated = repeated.inputs[0].producer()
    if repeated is None or repeated.op_type != "Expand" or repeated.inputs[0] is None:
        return False
    length = elements.get(repeated.inputs[0])
    return length is not None and length.size == 1 and whole is not None and length.reshape(-1)[0] == whole


def _reversed(graph: ir.Graph, place: ir.Node, x: ir.Value | None, axis: int, called: str, taken: set[str]) -> ir.Value:
    """A Slice of `x` from its last element to its first along `axis`, put behind `place`."""
    numbers = [("from", -1), ("to", _FIRST), ("axis", axis), ("step", -1)]
    inputs = [add_initializer(graph, unique(f"{called}.{part}", taken), np.array([number])) for part, number in numbers]
    node = ir.node("Slice", [x, *inputs], name=unique(f"{called}/Slice", taken))
    node.outputs[0].name = unique(f"{called}.reversed", taken)
    graph.insert_after(place, node)
    return node.outputs[0]


def _give(old: ir.Value, new: ir.Value) -> None:
    """`new` takes the place of `old`, and its name where the caller knows it."""
    if old.is_graph_output():
        new.name, old.name = old.name, None
    new.type = old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _reverses(node: ir.Node | None) -> bool:
    """Whether a node reverses the first axis, and nothing else."""
    if node is None or node.op_type != "Slice" or node.domain or len(node.inputs) < 5:
        return False
    start, end, axis, step = (integers(value) for value in node.inputs[1:5])
    return start == (-1,) and axis == (0,) and step == (-1,) and end is not None and end[0] <= -(2**31)


def zeros(value: ir.Value) -> bool:
    """Whether a value is all zeros, of whatever size."""
    array, node = known(value), value.producer()
    if array is not None or node is None:
        return array is not None and not np.any(array)
    if node.op_type in {"Expand", "Identity", "Unsqueeze"}:
        return node.inputs[0] is not None and zeros(node.inputs[0])
    if node.op_type == "Concat":
        return all(part is not None and zeros(part) for part in node.inputs)
    if node.op_type != "ConstantOfShape":
        return False
    filler = node.attributes.get("value")
    return filler is None or not np.any(filler.as_tensor().numpy())


def _start_at_zero(node: ir.Node) -> None:
    """A state that starts at zero is what the operator starts from by itself, with as many rows as there are samples."""
    for index, value in enumerate(node.inputs):
        if index in {5, 6} and value is not None and zeros(value):
            node.replace_input_with(index, None)


def _read_final_state(node: ir.Node, taken: set[str]) -> None:
    """Y[-1] of a forward operator, its direction squeezed, is Y_h of one direction, both of shape (1, samples, hidden)."""
    for squeeze in readers(node.outputs[0]):
        if squeeze.op_type != "Squeeze" or integers(input_of(squeeze, 1)) != (1,):
            continue
        for last in readers(squeeze.outputs[0]):
            if _last(last):
                if len(node.outputs) < 2:
                    node.resize_outputs(2)
                node.outputs[1].name = node.outputs[1].name or unique(f"{node.name}.state", taken)
                last.outputs[0].replace_all_uses_with(node.outputs[1])


def _last(node: ir.Node) -> bool:
    if node.op_type != "Slice" or node.outputs[0].is_graph_output():
        return False
    start, end, axis, step = (integers(input_of(node, index)) for index in (1, 2, 3, 4))
    return start == (-1,) and end is not None and end[0] >= 2**31 - 1 and axis == (0,) and step in {None, (1,)}


def _run_in_reverse(graph: ir.Graph, node: ir.Node, taken: set[str]) -> None:
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    if source is None or not _reverses(source):
        return
    node.replace_input_with(0, source.inputs[0])
    node.attributes["direction"] = ir.AttrString("direction", "reverse")
    for value, axis in _steps(node.outputs[0]):
        uses = [(use.node, use.idx) for use in value.uses()]
        place = value.producer()
        assert place is not None
        back = _reversed(graph, place, value, axis, node.name or node.op_type, taken)
        back.type = value.type
        for reader, index in uses:
            reader.replace_input_with(index, back)
        if value.is_graph_output():
            back.name, value.name = value.name, unique(f"{value.name}.reversed", taken)
            graph.outputs[list(graph.outputs).index(value)] = back


def _steps(given: ir.Value) -> list[tuple[ir.Value, int]]:
    """The values by step that are read: behind the Squeeze of the direction, where that is all that reads them."""
    found = readers(given)
    if not found and not given.is_graph_output():
        return []
    if not given.is_graph_output() and all(node.op_type == "Squeeze" and integers(input_of(node, 1)) == (1,) for node in found):
        return [(node.outputs[0], 0) for node in found]
    return [(given, 0)]
