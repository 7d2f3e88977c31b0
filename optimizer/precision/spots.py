"""Which activations carry static Q/DQ under a settled plan, which of them share one scale, and who reads them quantized."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from calibration.ranges import Range
from optimizer.graph import constant, readers
from optimizer.model import is_layer
from optimizer.plan import Capability, Plan
from optimizer.precision.neighbours import absorber, clipped_by
from optimizer.precision.paths import at_run, surroundings
from optimizer.precision.placement import CARRIERS, WEIGHTED

ONE_SCALE = CARRIERS - {"Concat"}
"""Carriers that move integers unseen. A Concat's kernel converts: its inputs keep scales of their own, and their Relu."""

FLOAT_OUTPUT = frozenset({"MatMul", "Gemm"})
"""Operators whose INT8 kernels can write float, so that their output is quantized only for an INT8 reader."""


@dataclass(frozen=True)
class Spots:
    """Where static Q/DQ stands: tensor -> the first tensor of its group. A group has one scale and zero point.

    `readers` holds, by tensor, the layers that read it quantized; None: all that read it, the caller too, because an INT8
    kernel that writes integers can't write floats beside them.  `products` are layers that read integers and write float in
    one kernel of their own (MatMulIntegerToFloat): left as Q/DQ, a bias or Relu behind them would be fused first, in float.
    """

    groups: Mapping[str, str]
    readers: Mapping[str, frozenset[str] | None]
    products: frozenset[str]


def spots(graph: ir.Graph, plan: Plan, capability: Capability) -> Spots:
    """Where Q/DQ stands under a settled plan; tensors in the order in which the graph makes them."""
    layers = [node for node in graph if is_layer(node) and plan.precision(node.name or "") == "int8"]
    quantized: dict[str, frozenset[str] | None] = {}
    for node in layers:
        for value in _read(node, plan, capability):
            before = quantized.get(value.name or "") or frozenset()
            quantized[value.name or ""] = before | {node.name or ""}
    quantized.update(dict.fromkeys(_read_by_all(layers, graph, plan, capability, quantized)))
    order = [value.name or "" for value in (*graph.inputs, *(value for node in graph for value in node.outputs))]
    groups = _groups([name for name in order if name in quantized], (node for node in layers if node.op_type in ONE_SCALE))
    products = (node.name or "" for node in layers if capability.quantize_outputs and _writes_float(node, groups, capability))
    return Spots(groups, quantized, frozenset(products))


def common_range(members: Iterable[Range]) -> Range:
    """The range of a group: from the lowest to the highest of its members, by the first member's method."""
    ranges = tuple(members)
    return Range(ranges[0].method, min(r.low for r in ranges), max(r.high for r in ranges))


def _read(node: ir.Node, plan: Plan, capability: Capability) -> Iterator[ir.Value]:
    """Activations that an INT8 layer reads as integers: none where it is a Relu or Clip inside another's kernel."""
    inside = absorber(node) if capability.quantize_outputs else None
    if inside is not None and plan.precision(inside.name or "") == "int8":
        return
    for value in node.inputs[:1] if node.op_type in WEIGHTED else node.inputs:
        if value is not None and value.dtype == ir.DataType.FLOAT and at_run(value):
            yield value


def _read_by_all(
    layers: list[ir.Node], graph: ir.Graph, plan: Plan, capability: Capability, quantized: Mapping[str, object]
) -> Iterator[str]:
    """Tensors that no reader gets in float: what INT8 kernels write as integers, and what comes out of an INT8 attention."""
    if not capability.quantize_outputs:
        mixed = {attention.mixed for attention in surroundings(graph).attentions.values()}
        heads = (_behind_carriers(node).name or "" for node in layers if node.name in mixed)
        yield from [name for name in heads if name not in quantized]
        return
    for node in layers:
        clip = clipped_by(node)
        clipped = clip is not None and plan.precision(clip.name or "") == "int8"
        for value in node.outputs:
            must = node.op_type not in FLOAT_OUTPUT and not clipped and value.dtype == ir.DataType.FLOAT
            if must or value.name in quantized:
                yield value.name or ""


def _behind_carriers(node: ir.Node) -> ir.Value:
    """What the heads of an attention become before anything computes with it: an INT8 attention fuses only if that is quantized."""
    value = node.outputs[0]
    while len(after := readers(value)) == 1 and after[0].op_type in CARRIERS:
        value = after[0].outputs[0]
    return value


def _writes_float(node: ir.Node, quantized: Mapping[str, str], capability: Capability) -> bool:
    """Whether a product with a constant matrix hands its output to float layers alone, and has a dynamic form: the same kernel."""
    if node.op_type not in FLOAT_OUTPUT & capability.dynamic_operators:
        return False
    clip = clipped_by(node)
    outputs = {value.name for value in (*node.outputs, *(clip.outputs if clip is not None else ()))}
    matrix = constant(node.inputs[1])
    return matrix is not None and matrix.ndim == 2 and at_run(node.inputs[0]) and not outputs & quantized.keys()


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
