"""Two nodes that compute the same from the same are one, and so are two large initializers of the same bytes."""

from __future__ import annotations

from collections.abc import Hashable

import onnx_ir as ir

from optimizer.fusion.conditions import known
from optimizer.model import Fusion

RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"})
"""Operators that may give something else each time."""

_SMALL = 64
"""Constants of at most so many numbers are compared by what they hold, larger ones by being the same."""

_LARGE = 4096
"""Initializers of at least so many bytes are worth sharing; to share a bias would tie layers that rules treat one by one."""


def merge_nodes(model: ir.Model, taken: set[str]) -> list[Fusion]:
    """Let the readers of a repeated node read the first one, in place. Outputs of the graph keep their node."""
    seen: dict[Hashable, ir.Node] = {}
    fusions = []
    for node in model.graph:
        if (key := _computation(node)) is None:
            continue
        first = seen.setdefault(key, node)
        if first is node or any(value.is_graph_output() for value in node.outputs):
            continue
        for value, same in zip(node.outputs, first.outputs, strict=True):
            value.replace_all_uses_with(same)
        model.graph.remove(node, safe=True)
        taken.discard(node.name or "")
        fusions.append(Fusion("computed twice", (first.name or "", node.name or ""), first.name or ""))
    return fusions


def _computation(node: ir.Node) -> Hashable:
    """What a node computes, equal for equal computations; None where two alike may still differ."""
    kinds = {attribute.type for attribute in node.attributes.values()}
    if node.domain or node.op_type in RANDOM or kinds & {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
        return None
    attributes = tuple(sorted((name, _plain(attribute)) for name, attribute in node.attributes.items()))
    outputs = tuple(bool(value.name) for value in node.outputs)
    return node.op_type, tuple(_operand(value) for value in node.inputs), attributes, outputs


def _operand(value: ir.Value | None) -> Hashable:
    array = known(value)
    if array is not None and array.size <= _SMALL and array.dtype != object:
        return array.dtype.name, array.shape, array.tobytes()
    return value


def _plain(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return f"{tensor.dtype} {tensor.shape} {tensor.tobytes()!r}"
    return repr(attribute.value)


def merge_initializers(model: ir.Model, taken: set[str]) -> list[Fusion]:
    """Let the readers of a large initializer that holds another's bytes read the first one, in place."""
    alike: dict[Hashable, list[ir.Value]] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes < _LARGE:
            continue
        if not (value.is_graph_input() or value.is_graph_output()):
            start = tensor.numpy().reshape(-1)[:16].tobytes()
            alike.setdefault((tensor.dtype, tuple(tensor.shape), start), []).append(value)
    fusions = []
    for values in alike.values():
        kept: list[ir.Value] = []
        for value in values:
            same = next((first for first in kept if _same_bytes(first, value)), None)
            if same is None:
                kept.append(value)
                continue
            value.replace_all_uses_with(same)
            del model.graph.initializers[value.name or ""]
            taken.discard(value.name or "")
            fusions.append(Fusion("weight stored twice", (same.name or "", value.name or ""), same.name or ""))
    return fusions


def _same_bytes(a: ir.Value, b: ir.Value) -> bool:
    if a.const_value is None or b.const_value is None:
        return False
    return a.const_value is b.const_value or a.const_value.tobytes() == b.const_value.tobytes()
