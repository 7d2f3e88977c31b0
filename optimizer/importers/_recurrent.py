"""Loops over the steps of a sequence whose step is a cell that ONNX has an operator for become that operator.

TensorFlow's converter writes Keras's GRU, and LSTMs that are not the usual one, as a Loop with the cell in its body.  A Loop is
replaced where all of it is proven: it takes one step for each element of one sequence, in order, and a step computes the
operator's equations (`_recurrent_cells`).  Any other stays a Loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from optimizer.fusion.conditions import known
from optimizer.fusion.shapes import Elements, Size, follow_shapes, size_along
from optimizer.graph import add_initializer, infer_shapes, names, unique
from optimizer.importers._recurrent_algebra import Sum, leaf
from optimizer.importers._recurrent_cells import Cell, UnprovenError, cell
from optimizer.importers._recurrent_order import tidy_order, zeros
from optimizer.importers._recurrent_step import Before, Length, Step, Steps, Symbol

_DEFAULTS = {"GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh"), "RNN": ("Tanh",)}
_WITH_ALPHA = frozenset({"Elu", "LeakyRelu", "ThresholdedRelu", "HardSigmoid"})
_WITH_BETA = frozenset({"HardSigmoid"})
_MANY_STEPS = 2**31 - 1
"""A number of steps that a converter gives to say that there is no limit."""


@dataclass(frozen=True)
class _Recurrence:
    """A Loop that is a cell over a sequence: `carried` names the state of each final value, `scanned` that of each scan output."""

    cell: Cell
    sequence: ir.Value
    starts: Mapping[str, ir.Value]
    finals: Mapping[ir.Value, str]
    scans: Sequence[ir.Value]


def recurrent(model: ir.Model) -> list[str]:
    """Replace each Loop of the main graph that is proven to be a GRU, LSTM or RNN, in place; tells of each Loop what became of it.

    The operator has the Loop's name, and the values that it gives keep theirs; length and batch stay as free as they were.
    """
    notes = []
    for node in [node for node in model.graph if node.op_type == "Loop" and not node.domain]:
        infer_shapes(model)
        try:
            found = _recurrence(model, node)
        except UnprovenError as why:
            notes.append(f"The loop {node.name!r} stays a Loop: {why}.")
            continue
        _write(model, node, found)
        notes.append(f"The loop {node.name!r} is an ONNX {found.cell.operator}, as its step proves.")
    if any(node.op_type in _DEFAULTS for node in model.graph):
        infer_shapes(model)
        tidy_order(model)
        passes.RemoveUnusedNodesPass()(model)
        infer_shapes(model)
    return notes


def _recurrence(model: ir.Model, loop: ir.Node) -> _Recurrence:
    body = loop.attributes["body"].as_graph()
    elements = follow_shapes(model.graph)
    carried = list(zip(loop.inputs[2:], body.inputs[2:], body.outputs[1:], loop.outputs, strict=False))
    given: dict[ir.Value, Symbol] = {value: symbol for value in elements if (symbol := _length(value, elements)) is not None}
    given |= {body.inputs[0]: Steps(0), body.inputs[1]: np.array(True)}
    starts: dict[str, ir.Value] = {}
    for start, before, after, _ in carried:
        if start is None:
            raise UnprovenError("a state has no start")
        given[before], is_state = _carried(start, before, after, elements)
        if is_state:
            starts[before.name or ""] = start
    step = Step(body, model.graph.opset_imports, given)
    states: dict[str, Sum] = {}
    for _, before, after, final in carried:
        if before.name in starts:
            states[before.name] = _sum(step.of(after))
        else:
            _check_counter(step, before, after, final)
    scanned = [_sum(step.of(value)) for value in body.outputs[1 + len(carried) :]]
    going_on = step.of(body.outputs[0])
    if len(step.sequences) != 1:
        raise UnprovenError(f"it reads {len(step.sequences)} sequences")
    sequence = step.sequences[0]
    _check_length(loop, going_on, sequence, elements)
    found = cell(states, int(sequence.shape[2]))  # type: ignore[index,arg-type]
    if any(each != states[found.states[0]] for each in scanned):
        raise UnprovenError("it gives something else than its state for each step")
    _check_rows(sequence, starts)
    finals = {final: before.name or "" for _, before, _, final in carried if before.name in starts}
    return _Recurrence(found, sequence, starts, finals, loop.outputs[len(carried) :])


def _length(value: ir.Value, elements: Mapping[ir.Value, Elements]) -> Symbol | None:
    found = elements[value].reshape(-1)
    if found.size != 1 or found[0] is None or isinstance(found[0], bool):
        return None
    return Length(found[0]) if isinstance(found[0], Size) else np.array(found[0])


def _carried(start: ir.Value, before: ir.Value, after: ir.Value, elements: Mapping[ir.Value, Elements]) -> tuple[Symbol, bool]:
    """The symbol of a carried value at the start of a step, and whether it is a state of the cell."""
    array = known(start)
    if _source(after) is before:  # it never changes
        symbol = array if array is not None else _length(start, elements) if start in elements else None
        if symbol is None:
            raise UnprovenError(f"it reads {start.name!r} from outside")
        return symbol, False
    if array is not None and array.size == 1 and array.dtype.kind in "iu":
        return Steps(int(array.reshape(()))), False
    shape = before.shape if before.shape is not None and len(before.shape) == 2 else start.shape
    width = shape[1] if shape is not None and len(shape) == 2 else None
    if not isinstance(width, int):
        raise UnprovenError("a state is not known to be rows of a known size")
    return leaf(before.name or "", width), True


def _source(value: ir.Value) -> ir.Value:
    """What a chain of Identity nodes gives on."""
    while (node := value.producer()) is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _check_counter(step: Step, before: ir.Value, after: ir.Value, final: ir.Value) -> None:
    start = step.of(before)
    if isinstance(start, Steps) and step.of(after) != Steps(start.more + 1):
        raise UnprovenError("a counter does not go up by one")
    if final.uses() or final.is_graph_output():
        raise UnprovenError("what it counts is read behind it")


def _check_length(loop: ir.Node, going_on: Symbol, sequence: ir.Value, elements: Mapping[ir.Value, Elements]) -> None:
    """The loop takes exactly as many steps as the sequence has, which is one or more."""
    length = size_along(sequence, 0)
    always = isinstance(going_on, np.ndarray) and bool(going_on.all())
    until = going_on.more if isinstance(going_on, Before) and going_on.end == _as_length(length) else None
    trips = _one(loop.inputs[0], elements)
    counted = trips is not None and trips == length
    if not (counted and (always or (until is not None and until <= 1))):
        unlimited = loop.inputs[0] is None or (isinstance(trips, int) and trips >= _MANY_STEPS)
        if not (unlimited and until == 1):
            raise UnprovenError("it is not known to take as many steps as its input has")
    if not _holds(loop.inputs[1], elements):
        raise UnprovenError("it is not known to start")


def _as_length(size: int | Size | None) -> Length | None:
    return None if size is None else Length(size)


def _one(value: ir.Value | None, elements: Mapping[ir.Value, Elements]) -> int | Size | None:
    """The one integer that a value holds, as far as it is known, whatever type it was cast to."""
    while value is not None and value not in elements and (node := value.producer()) is not None and node.op_type == "Cast":
        value = node.inputs[0]
    if value is None:
        return None
    array = elements[value] if value in elements else known(value)
    if array is None or array.size != 1:
        return None
    found = array.reshape(-1)[0]
    return found if isinstance(found, Size) or found is None else int(found)


def _holds(condition: ir.Value | None, elements: Mapping[ir.Value, Elements]) -> bool:
    """Whether a condition holds for every sequence of one step or more."""
    if condition is None or (known(condition) is not None and np.all(known(condition))):
        return True
    node = condition.producer()
    if node is not None and node.op_type == "And":
        return all(_holds(value, elements) for value in node.inputs)
    if node is None or node.op_type != "Less":
        return False
    low, high = (_one(value, elements) for value in node.inputs)
    return isinstance(low, int) and low <= 0 and (isinstance(high, Size) or (isinstance(high, int) and high >= 1))


def _check_rows(sequence: ir.Value, starts: Mapping[str, ir.Value]) -> None:
    """A start of one row would be repeated for every sample by the Loop, and refused by the operator."""
    samples = size_along(sequence, 1)
    if any(size_along(start, 0) == 1 and samples != 1 and not zeros(start) for start in starts.values()):
        raise UnprovenError("all samples start from one state")


def _sum(symbol: Symbol) -> Sum:
    if not isinstance(symbol, Sum):
        raise UnprovenError("it carries or gives something else than the cell's numbers")
    return symbol


def _write(model: ir.Model, loop: ir.Node, found: _Recurrence) -> None:
    graph, taken, name = model.graph, names(model.graph), loop.name or "loop"
    dtype = found.sequence.dtype.numpy() if found.sequence.dtype is not None else np.dtype(np.float32)
    made = found.cell

    def put(part: str, array: NDArray[Any], kind: np.dtype[Any] = dtype) -> ir.Value:
        return add_initializer(graph, unique(f"{name}.{part}", taken), np.ascontiguousarray(array, kind))

    def node(operator: str, inputs: Sequence[ir.Value | None], outputs: int, called: str, **attributes: Any) -> ir.Node:
        new = ir.node(operator, inputs, attributes, num_outputs=outputs, name=called)
        for value in new.outputs:
            value.name = unique(f"{called}.out", taken)
        graph.insert_before(loop, new)
        return new

    first, second = (put(f"axis{axis}", np.array([axis]), np.dtype(np.int64)) for axis in (0, 1))
    starts = [
        None if zeros(start) else node("Unsqueeze", [start, first], 1, unique(f"{name}/Unsqueeze", taken)).outputs[0]
        for start in (found.starts[state] for state in made.states)
    ]
    weights = [put(part, array[None]) for part, array in (("W", made.weight), ("R", made.recurrence), ("B", made.bias))]
    layer = node(made.operator, [found.sequence, *weights, None, *starts], 1 + len(starts), name, **_attributes(made))
    layer.metadata_props.update(loop.metadata_props)
    replaced = [(final, layer.outputs[1 + made.states.index(state)], first) for final, state in found.finals.items()]
    replaced += [(scan, layer.outputs[0], second) for scan in found.scans]
    for old, new, axis in replaced:
        squeezed = node("Squeeze", [new, axis], 1, unique(f"{name}/Squeeze", taken)).outputs[0]
        squeezed.type, squeezed.name, old.name = old.type, old.name, None
        old.replace_all_uses_with(squeezed, replace_graph_outputs=True)
    for inner in loop.attributes["body"].as_graph().all_nodes():
        for index in range(len(inner.inputs)):
            inner.replace_input_with(index, None)
    graph.remove(loop, safe=True)


def _attributes(made: Cell) -> dict[str, Any]:
    attributes: dict[str, Any] = {"hidden_size": made.hidden}
    if made.operator == "GRU":
        attributes["linear_before_reset"] = int(made.linear_before_reset)
    if tuple(curve.name for curve in made.curves) != _DEFAULTS[made.operator]:
        attributes["activations"] = [curve.name for curve in made.curves]
        attributes |= _numbers("activation_alpha", [curve.alpha for curve in made.curves if curve.name in _WITH_ALPHA])
        attributes |= _numbers("activation_beta", [curve.beta for curve in made.curves if curve.name in _WITH_BETA])
    return attributes


def _numbers(name: str, numbers: Sequence[float]) -> dict[str, Any]:
    return {name: list(numbers)} if numbers else {}
