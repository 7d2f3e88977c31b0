"""From a plan to what can be: the precision of every layer, and the activations that carry static Q/DQ because of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from calibration.ranges import Range
from optimizer.errors import UnavailableError
from optimizer.graph import readers
from optimizer.model import Model, is_layer
from optimizer.plan import Capability, Plan, Precision
from optimizer.precision.paths import at_run, surroundings
from optimizer.precision.placement import CARRIERS, HALF, WEIGHTED, eligible, holds_floats

_CLIPS = frozenset({"Relu", "Clip"})
"""Activations that a quantized range does by clipping: they need no Q/DQ of their own behind an INT8 layer."""

_FLOAT_OUTPUT = frozenset({"MatMul", "Gemm"})
"""Operators whose INT8 kernels can write float, so that their output is quantized only for an INT8 reader."""


@dataclass(frozen=True)
class Spots:
    """Where static Q/DQ stands: tensor -> the first tensor of its group. A group has one scale and zero point.

    `readers` holds, by tensor, the layers that read it quantized; None: all that read it, the caller too, because an INT8
    kernel that writes integers can't write floats beside them.
    """

    groups: Mapping[str, str]
    readers: Mapping[str, frozenset[str] | None]


def settled(model: Model, plan: Plan, capability: Capability) -> Plan:
    """The plan as the graph can carry it: a precision for every layer that differs from `base`, with the reason beside it.

    A layer that has the precision of `base` and can't run in it takes the next one that it can (`capability.base`, then
    FP32); an activation that an INT8 layer absorbs goes with it; half an attention and a lone MaxPool go back to float.

    Raises:
        UnavailableError: the plan names a layer in a precision that it can't have.
    """
    result = plan
    nodes = _layers(model.graph.graph)
    wanted: dict[str, Precision] = {name: plan.precision(name) for name in nodes}
    reasons = {precision: eligible(model, capability, precision) for precision in {*wanted.values(), *_fallbacks(plan, capability)}}
    for name, precision in wanted.items():
        reason = reasons[precision][name]
        if reason is None:
            continue
        if name in plan.precisions and (precision == "fp32" or holds_floats(nodes[name])):
            remedy = "Take another precision for it, or another target."
            raise UnavailableError(f"{name} can't run in {precision.upper()}: {reason}.", remedy)
        lower = next((other for other in _fallbacks(plan, capability) if reasons[other][name] is None), None)
        if lower is None:
            raise UnavailableError(f"{name} can't run in {precision.upper()}: {reason}.", "Take another precision, or another target.")
        result = result.with_precision([name], lower, reason)
    for change in (_whole_attentions, _carriers_between_integers, _absorbed):
        for name, precision, reason in tuple(change(model.graph.graph, result, capability)):
            result = result.with_precision([name], precision, reason)
    return replace(result, reason=plan.reason)


def _layers(graph: ir.Graph) -> dict[str, ir.Node]:
    return {node.name or "": node for node in graph if is_layer(node)}


def base_of(plan: Plan, capability: Capability) -> Precision:
    """The precision of what is not INT8."""
    return plan.base if plan.base in HALF or plan.base == "fp32" else capability.base


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


def _carriers_between_integers(graph: ir.Graph, plan: Plan, capability: Capability) -> Iterator[Change]:
    """A carrier is worth integers only where what it reads or what reads it is quantized anyway."""
    nodes = _layers(graph)
    integers = {name for name in nodes if plan.precision(name) == "int8"}
    kept = {name for name in integers if nodes[name].op_type not in CARRIERS}
    waiting = [nodes[name] for name in kept]
    while waiting:
        node = waiting.pop()
        for other in (*_producers(node), *_layers_after(node)):
            if other.name in integers and other.name not in kept:
                kept.add(other.name)
                waiting.append(other)
    for name in nodes:
        if name in integers - kept:
            yield name, base_of(plan, capability), "nothing around it runs in INT8"


def _absorbed(graph: ir.Graph, plan: Plan, capability: Capability) -> Iterator[Change]:
    """A Relu or Clip behind an INT8 layer that nobody else reads is done by the clipping of the quantized output."""
    if not capability.quantize_outputs:
        return
    for name, node in _layers(graph).items():
        producer = _absorbs(node)
        if producer is not None and plan.precision(name) != "int8" and plan.precision(producer.name or "") == "int8":
            yield name, "int8", f"the INT8 kernel of {producer.name} clips"


def _absorbs(node: ir.Node) -> ir.Node | None:
    """The layer whose kernel can do this Relu or Clip by clipping what it writes."""
    producers = _producers(node) if node.op_type in _CLIPS else []
    return next((other for other in producers if _clipped_by(other) is node and other.op_type not in CARRIERS), None)


def _clipped_by(node: ir.Node) -> ir.Node | None:
    """The Relu or Clip that alone reads the output of `node`."""
    output = node.outputs[0]
    after = readers(output)
    return after[0] if len(after) == 1 and after[0].op_type in _CLIPS and not output.is_graph_output() else None


def _producers(node: ir.Node) -> list[ir.Node]:
    return [producer for value in node.inputs if value is not None and (producer := value.producer()) is not None]


def _layers_after(node: ir.Node) -> list[ir.Node]:
    return [reader for value in node.outputs for reader in readers(value)]


def spots(model: Model, plan: Plan, capability: Capability) -> Spots:
    """Where Q/DQ stands under a settled plan. Tensors are in the order in which the graph makes them."""
    integers = [node for node in model.graph.graph if is_layer(node) and plan.precision(node.name or "") == "int8"]
    quantized = {value.name for node in integers for value in _read(node, plan, capability)}
    if capability.quantize_outputs:
        quantized |= {value.name for node in integers for value in _written(node)}
    order = [value.name or "" for value in (*model.graph.graph.inputs, *(v for node in model.graph.graph for v in node.outputs))]
    groups = _groups([name for name in order if name in quantized], (node for node in integers if node.op_type in CARRIERS))
    by_integers = {value.name for node in integers for value in node.outputs} if capability.quantize_outputs else set()
    read_by: dict[str, frozenset[str] | None] = {}
    for name in groups:
        layers = frozenset(node.name or "" for node in integers if any(value.name == name for value in _read(node, plan, capability)))
        read_by[name] = None if name in by_integers else layers
    return Spots(groups, read_by)


def _read(node: ir.Node, plan: Plan, capability: Capability) -> Iterator[ir.Value]:
    """Activations that an INT8 layer reads as integers: none where it is a Relu or Clip inside another's kernel."""
    absorber = _absorbs(node) if capability.quantize_outputs else None
    if absorber is not None and plan.precision(absorber.name or "") == "int8":
        return
    for value in node.inputs[:1] if node.op_type in WEIGHTED else node.inputs:
        if value is not None and value.dtype == ir.DataType.FLOAT and at_run(value):
            yield value


def _written(node: ir.Node) -> Iterator[ir.Value]:
    """Activations that an INT8 layer must write as integers: behind the Relu or Clip that its kernel does."""
    absorber = _absorbs(node)
    if _clipped_by(node) is None and (node if absorber is None else absorber).op_type not in _FLOAT_OUTPUT:
        yield from (value for value in node.outputs if value.dtype == ir.DataType.FLOAT)


def _groups(tensors: Iterable[str], carriers: Iterable[ir.Node]) -> dict[str, str]:
    """Tensor -> the first of its group; a carrier makes one group of all it reads and writes."""
    first = {name: name for name in tensors}

    def root(name: str) -> str:
        while first[name] != name:
            name = first[name]
        return name

    place = {name: index for index, name in enumerate(first)}
    for node in carriers:
        roots = {root(value.name or "") for value in (*node.inputs, *node.outputs) if value is not None and value.name in first}
        for name in roots:
            first[name] = min(roots, key=place.__getitem__)
    return {name: root(name) for name in first}


def common_range(members: Iterable[Range]) -> Range:
    """The range of a group: from the lowest to the highest of its members, by the first member's method."""
    ranges = tuple(members)
    return Range(ranges[0].method, min(r.low for r in ranges), max(r.high for r in ranges))


def quantized_tensors(model: Model, plan: Plan, capability: Capability) -> tuple[str, ...]:
    """The activations that get static Q/DQ under the plan, each of which needs a Range in `plan.ranges`."""
    return tuple(spots(model, settled(model, plan, capability), capability).groups)
