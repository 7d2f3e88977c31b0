"""From a plan to what can be: the precision of every layer, with the reason where it is not what was asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import onnx_ir as ir

from optimizer.errors import UnavailableError
from optimizer.model import Model, is_layer
from optimizer.plan import Capability, Plan, Precision
from optimizer.precision.neighbours import CLIPS, absorber, followers, producers
from optimizer.precision.paths import surroundings
from optimizer.precision.placement import CARRIERS, HALF, WEIGHTED, eligible, holds_floats
from optimizer.precision.spots import FLOAT_OUTPUT, spots


def settled(model: Model, plan: Plan, capability: Capability) -> Plan:
    """The plan as the graph can carry it: a precision for every layer that differs from `base`, with the reason beside it.

    A layer that has the precision of `base` and can't run in it takes the next one that it can (`capability.base`, then
    FP32); an activation that an INT8 layer absorbs goes with it; half an attention goes back to float, and so does an Add
    or a MaxPool without integers around it.

    Raises:
        UnavailableError: the plan names a layer in a precision that it can't have.
    """
    result = plan
    nodes = _layers(model.graph.graph)
    wanted: dict[str, Precision] = {name: plan.precision(name) for name in nodes}
    reasons = {precision: eligible(model, capability, precision) for precision in {*wanted.values(), *_fallbacks(plan, capability)}}
    for name, precision in wanted.items():
        reason = reasons[precision][name]
        if reason is None or (precision == "int8" and _inside_another(nodes[name], plan, capability)):
            continue
        if name in plan.precisions and _asked_for(nodes[name], precision):
            remedy = "Take another precision for it, or another target."
            raise UnavailableError(f"{name} can't run in {precision.upper()}: {reason}.", remedy)
        lower = next((other for other in _fallbacks(plan, capability) if reasons[other][name] is None), None)
        if lower is None:
            raise UnavailableError(f"{name} can't run in {precision.upper()}: {reason}.", "Take another precision, or another target.")
        result = result.with_precision([name], lower, reason)
    for change in (_whole_attentions, _absorbed, _between_integers):
        for name, precision, reason in tuple(change(model.graph.graph, result, capability)):
            result = result.with_precision([name], precision, reason)
    return replace(result, reason=plan.reason)


def _asked_for(node: ir.Node, precision: Precision) -> bool:
    """Whether a precision that a plan names for a layer is a demand: a Relu goes with what absorbs it, integers have no float type."""
    return precision == "fp32" or (holds_floats(node) and node.op_type not in CLIPS)


def _layers(graph: ir.Graph) -> dict[str, ir.Node]:
    return {node.name or "": node for node in graph if is_layer(node)}


def base_of(plan: Plan, capability: Capability) -> Precision:
    """The precision of what is not INT8."""
    return plan.base if plan.base in HALF or plan.base == "fp32" else capability.base


def quantized_tensors(model: Model, plan: Plan, capability: Capability) -> tuple[str, ...]:
    """The activations that get static Q/DQ under the plan, each of which needs a Range in `plan.ranges`."""
    return tuple(spots(model.graph.graph, settled(model, plan, capability), capability).groups)


def _fallbacks(plan: Plan, capability: Capability) -> tuple[Precision, ...]:
    return (base_of(plan, capability), "fp32")


Change = tuple[str, Precision, str]


def _whole_attentions(graph: ir.Graph, plan: Plan, capability: Capability) -> Iterator[Change]:
    """Where kernels write float, one INT8 product of an attention alone keeps the engine from fusing it at all."""
    if capability.quantize_outputs:
        return
    for name, attention in surroundings(graph).attentions.items():
        other = attention.mixed if name == attention.scores else attention.scores
        if plan.precision(name) == "int8" and plan.precision(other) != "int8":
            yield name, base_of(plan, capability), f"an attention runs in INT8 whole or not at all, and {other} does not"


def _between_integers(graph: ir.Graph, plan: Plan, capability: Capability) -> Iterator[Change]:
    """What computes little is worth integers only beside a layer that writes or reads them anyway.

    A convolution writes integers: what is connected with it goes along, Add and pooling too.  A matrix product can as well
    write float, which is as fast and more exact: of its neighbours only carriers, which are cheaper on bytes, go along.
    """
    nodes = _layers(graph)
    integers = {name: node for name, node in nodes.items() if plan.precision(name) == "int8"}
    writers = {name for name, node in integers.items() if node.op_type in WEIGHTED - FLOAT_OUTPUT}
    beside = _connected(writers, integers)
    products = {name for name, node in integers.items() if node.op_type in FLOAT_OUTPUT or _inside_another(node, plan, capability)}
    kept = _connected(beside | products, {name: node for name, node in integers.items() if node.op_type in CARRIERS or name in products})
    for name, node in integers.items():
        clipped = absorber(node)
        alone = clipped is not None and clipped.name in integers and clipped.name not in kept
        if name not in kept or alone:
            yield name, base_of(plan, capability), "no layer beside it has to write or read integers"


def _connected(start: set[str], among: Mapping[str, ir.Node]) -> set[str]:
    """`start` and all layers of `among` that hang together with it, without steps over others."""
    found, waiting = set(start), [among[name] for name in start if name in among]
    while waiting:
        node = waiting.pop()
        for other in (*producers(node), *followers(node)):
            name = other.name or ""
            if name in among and name not in found:
                found.add(name)
                waiting.append(other)
    return found


def _absorbed(graph: ir.Graph, plan: Plan, capability: Capability) -> Iterator[Change]:
    """A Relu or Clip behind an INT8 layer that nobody else reads is done by clipping the output, where that is quantized."""
    for name, node in _layers(graph).items():
        if plan.precision(name) != "int8" and _inside_another(node, plan, capability):
            yield name, "int8", "the INT8 kernel before it clips"


def _inside_another(node: ir.Node, plan: Plan, capability: Capability) -> bool:
    producer = absorber(node) if capability.quantize_outputs else None
    if producer is None or plan.precision(producer.name or "") != "int8":
        return False
    quantized = any(plan.precision(reader.name or "") == "int8" for reader in followers(node))
    return quantized or producer.op_type not in FLOAT_OUTPUT
