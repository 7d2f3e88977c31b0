"""Bias correction (Nagel et al. 2019): what INT8 shifts the output of each layer by on average is taken out of its bias.

Each layer of the typed graph is compared with its float twin on the very numbers that it meets there, before they are rounded: the
difference is the layer's own, whatever is off further up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from calibration.correction import Shift
from optimizer.engine import Arrays
from optimizer.graph import clone, readers
from optimizer.model import FOR_LAYER
from optimizer.plan import Capability, Plan
from optimizer.precision import typed
from optimizer.precision.writer import Writer
from optimizer.recovery.form import Form, Recovered, listed, noted, rewritten
from optimizer.recovery.layers import bias, bias_place, in_int8, known, set_bias
from optimizer.recovery.twins import Twins
from optimizer.reference import simulated

_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast"})

_WORTH = 0.02
"""Share of a layer's squared error that its mean must make up to be worth correcting: a few samples' mean is never quite 0."""


def correction(form: Form, plan: Plan, capability: Capability, feeds: Sequence[Arrays]) -> Recovered | None:
    """Takes the mean error of each INT8 layer out of its bias."""
    layers = [node for node in in_int8(form.model, plan, capability) if bias_place(node) is not None]
    if not layers or not feeds:
        return None
    shifted = _shifted(form, plan, capability, layers, feeds)
    if not shifted:
        return None
    graph = clone(form.model.graph)
    writer = Writer(graph.graph)
    for node in [node for node in graph.graph if node.name in shifted]:
        set_bias(writer, node, shifted[node.name or ""].corrected(bias(node)), "corrected")
    note = f"correction: the mean error of {listed(shifted)} goes into the bias"
    return Recovered(rewritten(form, graph), noted(plan, "correction"), note)


def _shifted(form: Form, plan: Plan, capability: Capability, layers: Sequence[ir.Node], feeds: Sequence[Arrays]) -> dict[str, Shift]:
    """The shift of each layer where it makes up a good part of the layer's error."""
    twins = Twins(simulated(typed(form.model, plan, capability)))
    for node in layers:
        exact, lowered = _pair(twins, node)
        difference = twins.add("Sub", [lowered, exact])
        channels = len(bias(node))
        twins.keep(f"mean {node.name}", twins.reduce("ReduceMean", difference, node, channels))
        square = twins.add("Mul", [difference, difference])
        twins.keep(f"square {node.name}", twins.reduce("ReduceMean", square, node, channels))
    shifts: dict[str, Shift] = {}
    squares: dict[str, float] = {}
    for found in twins.runs(feeds):
        for name in (node.name or "" for node in layers):
            shift = Shift.of(found[f"mean {name}"])
            shifts[name] = shifts[name].merge(shift) if name in shifts else shift
            squares[name] = squares.get(name, 0.0) + float(found[f"square {name}"].sum(dtype=np.float64)) / len(feeds)
    return {name: shift for name, shift in shifts.items() if shift.square > _WORTH * squares[name]}


def _pair(twins: Twins, node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """What a layer would give in float, and what it gives, its bias included in both."""
    place = bias_place(node)
    assert place is not None
    holder, index = place
    lowered = twins.nodes[node.name or ""]
    operands = [twins.constant(known(node, number)) for number in range(1, len(node.inputs)) if node.inputs[number] is not None]
    exact = twins.copied(node, [_float(lowered.inputs[0]), *operands]).outputs[0]
    if holder is not node:
        exact = twins.add("Add", [exact, twins.constant(known(holder, index))])
    return exact, _finished(twins.nodes[holder.name or ""])


def _float(value: ir.Value | None) -> ir.Value:
    """What a value was before it was made integers."""
    assert value is not None
    while (node := value.producer()) is not None and node.op_type in _CONVERSIONS and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _finished(node: ir.Node) -> ir.Value:
    """The output of a layer, behind the Mul and Add that precision may have put there for its scale and bias."""
    value = last = node.outputs[0]
    while len(after := readers(value)) == 1 and (after[0].op_type == "Cast" or after[0].metadata_props.get(FOR_LAYER) == node.name):
        value = after[0].outputs[0]
        if after[0].op_type in {"Mul", "Add"}:
            last = value
    return last
