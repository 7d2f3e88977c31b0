"""Which layers may run in which precision, and where Q/DQ must not stand: rules with their reasons, over a backend's data."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx
import onnx_ir as ir

from optimizer.graph import constant
from optimizer.model import Model, is_layer
from optimizer.plan import Capability, Precision
from optimizer.precision.paths import COUNTS, INDEX_INPUTS, Surroundings, at_run, surroundings

HALF: Mapping[str, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}

CARRIERS = frozenset(
    {"Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "MaxPool", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split"}
    | {"Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
"""Operators that hand numbers on: they run on integers where all their tensors have one scale."""

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""Operators whose second input is a weight (and third a bias); MatMul takes either."""

DYNAMIC = frozenset({"MatMul", "Gemm", "LSTM"})
"""Operators with a form that finds the activations' range at every run."""

_SMALLEST_WEIGHT = 64

Rule = Callable[[ir.Node, Surroundings, Capability], "str | None"]


def kinds(node: ir.Node) -> tuple[str, ...]:
    """The names under which a capability may refuse a layer: its operator, and `DepthwiseConv` for one."""
    group = node.attributes["group"].as_int() if "group" in node.attributes else 1
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    shape = weight.shape if weight is not None else None
    depthwise = node.op_type == "Conv" and group > 1 and shape is not None and shape[1] == 1
    return ("DepthwiseConv", "Conv") if depthwise else (node.op_type,)


def never_on_an_index_path(node: ir.Node, around: Surroundings, _capability: Capability) -> str | None:
    """A rounded index is another row of the table: no Q/DQ, and no half precision, on a path into one."""
    touched = [value.name for value in (*node.inputs, *node.outputs) if value is not None and value.name in around.indices]
    floats = [name for name in touched if _is_float(node, name)]
    return f"{floats[0]} carries indices, which must stay exact" if floats else None


def never_inside_a_pattern_that_fuses(node: ir.Node, around: Surroundings, _capability: Capability) -> str | None:
    """Q/DQ between the parts of a LayerNormalization, a Gelu or a softmax keeps the engine from fusing them to one kernel."""
    return "it is part of a normalization or activation that fuses to one kernel" if node.name in around.patterns else None


def activation_and_weight_both_or_neither(node: ir.Node, _around: Surroundings, _capability: Capability) -> str | None:
    """With one side in float no integer kernel exists; a weight that only the run knows can't be rounded before it."""
    places = {"LSTM": (1, 2, 3)}.get(node.op_type, (1, 2) if node.op_type in WEIGHTED else ())
    if any(place < len(node.inputs) and at_run(node.inputs[place]) for place in places):
        return "its weight or bias is computed at run time"
    if not any(at_run(value) for value in node.inputs):
        return "all its inputs are constants"
    return None


def constants_stay_float(node: ir.Node, _around: Surroundings, _capability: Capability) -> str | None:
    """A bias, a gain or a table in 8 bits a tensor loses accuracy, and such layers are bound by memory: float is as fast."""
    if node.op_type in WEIGHTED | {"MatMul", "LSTM"}:
        return None
    constants = {value for value in node.inputs if value is not None and not at_run(value) and value.dtype == ir.DataType.FLOAT}
    steering = {node.inputs[place] for place in INDEX_INPUTS.get(node.op_type, ()) if place < len(node.inputs)}
    return "one of its operands is a constant, which 8 bits would only round" if constants - steering else None


def tiny_layers_stay_float(node: ir.Node, _around: Surroundings, _capability: Capability) -> str | None:
    """Converting the input costs more than so few multiplications save."""
    weight = constant(node.inputs[1]) if node.op_type in WEIGHTED | {"MatMul"} and len(node.inputs) > 1 else None
    return f"its weight holds only {weight.size} numbers" if weight is not None and weight.size < _SMALLEST_WEIGHT else None


def matrices_as_kernels_take_them(node: ir.Node, _around: Surroundings, _capability: Capability) -> str | None:
    """Integer matrix products take plain matrices: no transposed activation, no factor, a bias of one number a column."""
    if node.op_type == "MatMul":
        weight = constant(node.inputs[1])
        return "its weight is a vector" if weight is not None and weight.ndim < 2 else None
    if node.op_type != "Gemm":
        return None
    if node.attributes.get_int("transA"):
        return "it transposes its activation"
    if node.attributes.get_float("alpha", 1.0) != 1.0 or (len(node.inputs) > 2 and node.attributes.get_float("beta", 1.0) != 1.0):
        return "it scales its product by alpha or beta"
    weight, bias = constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else None
    columns = None if weight is None else weight.shape[0 if node.attributes.get_int("transB") else 1]
    if bias is not None and (bias.size not in {1, columns} or (bias.ndim and bias.shape[-1] != bias.size)):
        return "its bias is no row of one number a column"
    return None


def attention_all_or_nothing(node: ir.Node, around: Surroundings, capability: Capability) -> str | None:
    """An engine that fuses an attention fuses it in INT8 whole or not at all, and only in sizes that it has kernels for."""
    attention = around.attentions.get(node.name or "")
    if attention is None or capability.quantize_outputs:
        return None
    sizes, longest = capability.attention_head_sizes, capability.attention_length
    if sizes and attention.head_size not in sizes:
        fused = ", ".join(map(str, sorted(sizes)))
        return f"INT8 attention fuses only for head sizes {fused}, not for {attention.head_size or 'a free one'}"
    if longest is not None and (attention.length is None or attention.length > longest):
        return f"INT8 attention fuses only up to length {longest}, not for {attention.length or 'a free one'}"
    return None


def scores_stay_float(node: ir.Node, around: Surroundings, capability: Capability) -> str | None:
    """Where kernels write float the last matrix product saves nothing worth its rounding of the answer."""
    if capability.quantize_outputs or not capability.scalar_weight_scale or node.name not in around.last:
        return None
    return "it computes the model's answer, and its INT8 kernel would write float anyway"


INT8_RULES: tuple[Rule, ...] = (
    never_on_an_index_path,
    never_inside_a_pattern_that_fuses,
    activation_and_weight_both_or_neither,
    constants_stay_float,
    matrices_as_kernels_take_them,
    attention_all_or_nothing,
    scores_stay_float,
    tiny_layers_stay_float,
)
"""In the order in which their reasons are told. What depends on several layers at once stands in `settle.py`."""


def eligible(model: Model, capability: Capability, precision: Precision) -> dict[str, str | None]:
    """Each layer by name: None if it can run in `precision` on this backend and target, or the reason why not."""
    graph = model.graph.graph
    around = surroundings(graph)
    found: dict[str, str | None] = {}
    for node in graph:
        if is_layer(node):
            found[node.name or ""] = _reason(node, around, capability, precision)
    return found


def _has_bodies(node: ir.Node) -> bool:
    """Whether a layer is an If, Loop or Scan, or anything else with graphs of its own inside."""
    return any(attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS} for attribute in node.attributes.values())


def holds_floats(node: ir.Node) -> bool:
    """Whether a layer reads or writes float32 at all; a tensor whose type nobody could infer may be."""
    return any(value is not None and value.dtype in {ir.DataType.FLOAT, None} for value in (*node.inputs, *node.outputs))


def _reason(node: ir.Node, around: Surroundings, capability: Capability, precision: Precision) -> str | None:
    refused = [capability.refusals.get(key) for key in (precision, *(f"{precision}:{kind}" for kind in kinds(node)))]
    told = next((reason for reason in refused if reason is not None), None)
    if told is not None:
        return told
    if precision not in capability.precisions:
        return f"this backend has no {precision} for the target"
    if precision == "fp32":
        return None
    if not holds_floats(node):
        return "it computes with integers"
    if _has_bodies(node):
        return "what is inside it stays in FP32: only a run tells which of it is computed, and how often"
    if precision in HALF:
        return _half_reason(node, around, capability, HALF[precision])
    operators = capability.int8_operators if precision == "int8" else capability.dynamic_operators & DYNAMIC
    if node.domain not in {"", "ai.onnx"} or node.op_type not in operators:
        return f"{node.op_type} has no {'dynamic ' if precision == 'int8_dynamic' else ''}INT8 kernel"
    if precision == "int8_dynamic" and (reason := _dynamic_reason(node)) is not None:
        return reason
    return next((reason for rule in INT8_RULES if (reason := rule(node, around, capability)) is not None), None)


def _half_reason(node: ir.Node, around: Surroundings, capability: Capability, half: ir.DataType) -> str | None:
    if any(value.name in around.indices and value.dtype == ir.DataType.FLOAT for value in node.outputs):
        return "its output carries indices, which must stay exact"
    if not defined_for(node, half, capability.opset):
        return f"{node.op_type} has no {half.name} form in opset {capability.opset}"
    places = (*INDEX_INPUTS.get(node.op_type, ()), *COUNTS.get(node.op_type, ()))
    read = (node.inputs[place] for place in places if place < len(node.inputs))
    exact = (value for value in read if value is not None and value.name in around.indices and value.dtype == ir.DataType.FLOAT)
    return next((f"{value.name} carries indices or codes, which must stay exact" for value in exact), None)


def defined_for(node: ir.Node, half: ir.DataType, opset: int) -> bool:
    """Whether ONNX defines the operator for `half` at all."""
    if node.domain not in {"", "ai.onnx"} or not onnx.defs.has(node.op_type, opset, ""):
        return False
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    word = f"tensor({half.name.lower()})"
    return any(word in formal.types for formal in (*schema.inputs, *schema.outputs))


def _dynamic_reason(node: ir.Node) -> str | None:
    if node.op_type != "LSTM":
        weight = constant(node.inputs[1])
        return "its second operand is no constant matrix" if weight is None or weight.ndim != 2 else None
    if node.attributes.get_int("layout") or (len(node.inputs) > 7 and node.inputs[7] is not None):
        return "its kernel knows no batch-first layout and no peepholes"
    return None


def _is_float(node: ir.Node, name: str | None) -> bool:
    values = (*node.inputs, *node.outputs)
    return any(value is not None and value.name == name and value.dtype == ir.DataType.FLOAT for value in values)
