"""Precision in the graph: from a plan and what a backend can do for the target to a typed graph. Sees no samples."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes

from optimizer.errors import UnavailableError
from optimizer.graph import clone, infer_shapes
from optimizer.model import BY_NAME, PLANNED, SATURATES, Model, is_layer
from optimizer.plan import Capability, Plan
from optimizer.precision.dynamic import quantize_dynamically
from optimizer.precision.half import halve, raise_opset
from optimizer.precision.hazards import Hazard, hazards
from optimizer.precision.masks import bring_within
from optimizer.precision.overflow import overflowing
from optimizer.precision.paths import surroundings
from optimizer.precision.placement import HALF, eligible
from optimizer.precision.qdq import quantize
from optimizer.precision.settle import base_of, quantized_tensors, settled
from optimizer.precision.spots import spots

__all__ = ["Hazard", "eligible", "hazards", "overflowing", "quantized_tensors", "settled", "typed"]


def typed(model: Model, plan: Plan, capability: Capability) -> ir.Model:
    """The model's graph, cloned, with the plan's precisions written into it; inputs and outputs stay as they are.

    Layers keep their names and carry PLANNED, the precision that the plan gives them (`settled` tells where that differs
    from what it asked); nodes put in for them carry FOR_LAYER.  The weights of float layers are shared with the model.

    Raises:
        UnavailableError: the plan names a layer in a precision that it can't have, or half precision meets a tensor of unknown type.
        InputError: a constant lies beyond what the precision of its layer holds.
    """
    plan = settled(model, plan, capability)
    places = spots(model.graph.graph, plan, capability)
    exact = surroundings(model.graph.graph).indices
    graph = clone(model.graph)
    base = base_of(plan, capability)
    planned = {node.name: plan.precision(node.name or "") for node in graph.graph if is_layer(node)}
    halves = {HALF[precision] for precision in (base, *planned.values()) if precision in HALF}
    written = bool(halves) and not capability.half_by_name
    if written:
        raise_opset(graph, capability.opset)
    for node in graph.graph:
        if node.name in planned:
            node.metadata_props[PLANNED] = planned[node.name]
    quantize(graph.graph, plan, capability, places)
    quantize_dynamically(graph.graph, plan, capability)
    for half in halves:
        bring_within(graph, half)
    if written:
        _know_types(graph)
        halve(graph, base, exact)
    passes.RemoveUnusedNodesPass()(graph)
    if capability.half_by_name:
        graph.metadata_props[BY_NAME] = "true"
    if capability.saturates:
        graph.metadata_props[SATURATES] = capability.saturates
    return graph


def _know_types(model: ir.Model) -> None:
    """Raises UnavailableError where a value's type can't be inferred."""
    values = [value for node in model.graph for value in node.outputs if value.name]
    if any(value.dtype is None for value in values):
        infer_shapes(model)
    unknown = next((value.name for value in values if value.dtype is None), None)
    if unknown is not None:
        raise UnavailableError(f"The type of {unknown} can't be inferred.", "Build in fp32 or int8 instead, which need not know it.")
