"""A model that another tool quantized, for a target that reads Q/DQ alone: operators of integer arithmetic become Q/DQ around float ones.

The numbers stay: an integer product is the float product of the dequantized numbers, exact in float32 up to 2**24, and a QLinear
operator rounds it as QuantizeLinear does.  uint8 around a zero point of 128 is int8 around 0, number by number.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from optimizer.graph import clone, constant, elements
from optimizer.model import FOR_LAYER
from optimizer.precision.writer import Writer

_MIDDLE = 128
_FLOAT = {"QLinearConv": ("Conv", (1, 0)), "QLinearMatMul": ("MatMul", (-2, -1))}
"""The float operator of each integer one, and the axis along which its first and its second operand may have a scale a channel."""

_Q_DQ = frozenset({"QuantizeLinear", "DequantizeLinear"})


def as_qdq(model: ir.Model) -> tuple[ir.Model, tuple[str, ...]]:
    """The model with Q/DQ in place of what can be written so with the same numbers, and the layers that were; itself where none were."""
    copy = clone(model)
    writer = Writer(copy.graph)
    layers = [_layer(node) for node in list(copy.graph) if _rewritten(node, writer)]
    if _centred(copy.graph):
        layers += _shifted(copy.graph, writer)
    passes.RemoveUnusedNodesPass()(copy)
    found = tuple(dict.fromkeys(layers))
    return (copy, found) if found else (model, ())


def _layer(node: ir.Node) -> str:
    return node.metadata_props.get(FOR_LAYER) or node.name or ""


def _rewritten(node: ir.Node, writer: Writer) -> bool:
    if node.op_type in _FLOAT:
        bias = node.inputs[8] if len(node.inputs) > 8 else None
        steps = [constant(node.inputs[index]) for index in (1, 4)]
        if bias is not None and (constant(bias) is None or any(step is None for step in steps)):
            return False
        _around_float(node, writer)
        return True
    return node.op_type == "DequantizeLinear" and _is_int32(node.inputs[0]) and _folded(node, writer)


def _around_float(node: ir.Node, writer: Writer) -> None:
    """The float operator on its dequantized operands, its output quantized as before, under the same names."""
    operator, axes = _FLOAT[node.op_type]
    name, output = node.name or "", node.outputs[0]
    new = []
    operands: list[ir.Value | None] = []
    for first, axis in zip((0, 3), axes, strict=True):
        value, scale = node.inputs[first], node.inputs[first + 1]
        assert value is not None
        per_channel = scale is not None and (elements(scale) or 1) > 1
        new.append(
            writer.node(
                "DequantizeLinear",
                node.inputs[first : first + 3],
                f"{value.name}/dequantized",
                name,
                [(ir.DataType.FLOAT, value.shape)],
                attributes=[ir.AttrInt64("axis", axis)] if per_channel else [],
            )
        )
        operands.append(new[-1].outputs[0])
    if len(node.inputs) > 8 and node.inputs[8] is not None:
        operands.append(_bias(node, writer))
    layer = ir.Node("", operator, operands, node.attributes.values(), name=name, metadata_props=dict(node.metadata_props))
    layer.outputs[0].name, layer.outputs[0].shape = writer.free(f"{name}/float"), output.shape
    layer.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    dtype = output.dtype or ir.DataType.UINT8
    quantizer = writer.node(
        "QuantizeLinear", [layer.outputs[0], *node.inputs[6:8]], f"{output.name}/quantized", name, [(dtype, output.shape)]
    )
    writer.graph.insert_before(node, [*new, layer, quantizer])
    kept = output.name
    output.replace_all_uses_with(quantizer.outputs[0], replace_graph_outputs=True)
    writer.graph.remove(node, safe=True)
    quantizer.outputs[0].name = kept


def _bias(node: ir.Node, writer: Writer) -> ir.Value:
    """The int32 bias in float: its scale is that of the products, input times weight."""
    numbers, step, steps = (constant(node.inputs[index]) for index in (8, 1, 4))
    assert numbers is not None
    assert step is not None
    assert steps is not None
    return writer.constant(f"{node.inputs[8].name}/float", (numbers.astype(np.float64) * step * steps).astype(np.float32))  # type: ignore[union-attr]


def _is_int32(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.INT32


def _folded(node: ir.Node, writer: Writer) -> bool:
    """A constant int32 bias behind a DequantizeLinear becomes the float numbers that it means."""
    numbers, scale = constant(node.inputs[0]), constant(node.inputs[1])
    if numbers is None or scale is None or (scale.size > 1 and numbers.ndim != 1):
        return False
    output = node.outputs[0]
    value = writer.constant(f"{output.name}/float", numbers.astype(np.float32) * scale.astype(np.float32))
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    writer.graph.remove(node, safe=True)
    return True


def _centred(graph: ir.Graph) -> bool:
    """Whether all that is uint8 in a graph lies around 128, between a Q and a DQ, so that it can be int8 around 0."""
    if any(value.dtype == ir.DataType.UINT8 for value in (*graph.inputs, *graph.outputs)):
        return False
    zeros = [constant(node.inputs[2]) if len(node.inputs) > 2 else None for node in graph if node.op_type in _Q_DQ]
    unsigned = [zero for zero in zeros if zero is None or zero.dtype == np.uint8]
    return bool(unsigned) and all(zero is not None and (zero == _MIDDLE).all() for zero in unsigned)


def _shifted(graph: ir.Graph, writer: Writer) -> list[str]:
    """Make every uint8 number of a `_centred` graph int8, 128 less, in place; the layers that it concerns."""
    layers = []
    for node in graph:
        if node.op_type in _Q_DQ and (zero := constant(node.inputs[2])) is not None and zero.dtype == np.uint8:
            layers.append(_layer(node))
            node.replace_input_with(2, writer.constant(f"{node.name}/zero", np.zeros(zero.shape, np.int8)))
            if (numbers := constant(node.inputs[0])) is not None and numbers.dtype == np.uint8:
                node.replace_input_with(0, writer.constant(f"{node.name}/int8", (numbers.astype(np.int16) - _MIDDLE).astype(np.int8)))
        for value in node.outputs:
            if value.dtype == ir.DataType.UINT8:
                value.type = ir.TensorType(ir.DataType.INT8)
    return layers
