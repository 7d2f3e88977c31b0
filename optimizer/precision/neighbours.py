"""Who stands next to a layer, and which activations an INT8 kernel does by clipping what it writes."""

from __future__ import annotations

import onnx_ir as ir

from optimizer.graph import constant, readers
from optimizer.precision.placement import CARRIERS

CLIPS = frozenset({"Relu", "Clip"})
"""Activations that the ends of a quantized range can do."""


def producers(node: ir.Node) -> list[ir.Node]:
    return [producer for value in node.inputs if value is not None and (producer := value.producer()) is not None]


def followers(node: ir.Node) -> list[ir.Node]:
    return [reader for value in node.outputs for reader in readers(value)]


def clipped_by(node: ir.Node) -> ir.Node | None:
    """The Relu, or Clip from 0 to a bound, that alone reads the output of `node`: the ends of a uint8 range do the same."""
    output = node.outputs[0]
    after = readers(output)
    alone = len(after) == 1 and not output.is_graph_output() and node.op_type not in CARRIERS
    return after[0] if alone and _starts_at_zero(after[0]) else None


def absorber(node: ir.Node) -> ir.Node | None:
    """The layer whose kernel can do `node`, a Relu or Clip, by clipping what it writes."""
    return next((other for other in producers(node) if clipped_by(other) is node), None)


def _starts_at_zero(node: ir.Node) -> bool:
    if node.op_type != "Clip":
        return node.op_type == "Relu"
    bounds = [constant(value) for value in node.inputs[1:]]
    return len(bounds) == 2 and bounds[0] is not None and bounds[1] is not None and bounds[0].item() == 0
