"""Dynamic INT8: weights as integers in the file, the activations' range found at every run, in ONNX Runtime's fastest form.

A product becomes DynamicQuantizeLinear, shared by all that read the tensor, and com.microsoft's MatMulIntegerToFloat, which
takes one scale a column and adds the bias; an LSTM becomes com.microsoft's DynamicQuantizeLSTM.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.graph import constant, readers
from optimizer.model import is_layer
from optimizer.plan import Capability, Plan
from optimizer.precision import weights
from optimizer.precision.rounded import marked
from optimizer.precision.writer import Writer

DOMAIN = "com.microsoft"
_LSTM_ATTRIBUTES = ("activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "input_forget")


def quantize_dynamically(graph: ir.Graph, plan: Plan, capability: Capability) -> None:
    """Writes the plan's dynamic INT8 into the graph, in place; the layers keep their names on the integer operators."""
    layers = [node for node in graph if is_layer(node) and plan.precision(node.name or "") == "int8_dynamic"]
    writer = Writer(graph)
    ranged: dict[ir.Value, ir.Node] = {}
    for node in layers:
        if node.op_type == "LSTM":
            _lstm(writer, node, capability.weight_limit)
        else:
            _product(writer, node, ranged, capability.weight_limit)


def _product(writer: Writer, node: ir.Node, ranged: dict[ir.Value, ir.Node], limit: int) -> None:
    activation = node.inputs[0]
    assert activation is not None
    if activation not in ranged:
        kinds = [(ir.DataType.UINT8, activation.shape), (ir.DataType.FLOAT, ir.Shape([])), (ir.DataType.UINT8, ir.Shape([]))]
        down = writer.node("DynamicQuantizeLinear", [activation], f"{activation.name}/quantize", node.name or "", kinds)
        writer.place_behind(activation, [down])
        ranged[activation] = down
    read, step, zero = ranged[activation].outputs
    integer_product(writer, node, read, step, zero, "minmax", limit)


def integer_product(writer: Writer, node: ir.Node, read: ir.Value, step: ir.Value, zero: ir.Value, method: str, limit: int) -> None:
    """A MatMul or Gemm with a constant matrix becomes com.microsoft's MatMulIntegerToFloat: uint8 in, float out, bias inside.

    `read`, `step` and `zero` are the activation's integers, scale and zero point.
    """
    value = node.inputs[1]
    known = constant(value)
    assert value is not None
    assert known is not None
    matrix = known.T if node.op_type == "Gemm" and node.attributes.get_int("transB") else known
    integers, scales = weights.per_channel(np.ascontiguousarray(matrix, np.float32), 1, method, limit, grid=marked(value))
    inputs: list[ir.Value | None] = [
        read,
        writer.constant(f"{value.name}/integers", integers),
        step,
        writer.constant(f"{value.name}/scale", scales),
        zero,
        writer.constant(f"{value.name}/zero_point", np.zeros(len(scales), np.int8)),
    ]
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else _taken_from_behind(writer, node, len(scales))
    if bias is not None:
        row = np.broadcast_to(bias.astype(np.float32).reshape(-1), scales.shape)
        inputs.append(writer.constant(f"{node.name}/bias", np.ascontiguousarray(row)))
    writer.replace(node, DOMAIN, "MatMulIntegerToFloat", inputs)


def _taken_from_behind(writer: Writer, node: ir.Node, columns: int) -> NDArray[Any] | None:
    """The bias that a float Add alone puts on the product, which then adds 0 and is left out by ONNX Runtime: a kernel less."""
    after = readers(node.outputs[0])
    if len(after) != 1 or after[0].op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    add = after[0]
    if add.outputs[0].is_graph_output():  # where ONNX Runtime leaves nothing out
        return None
    place = 1 if add.inputs[0] is node.outputs[0] else 0
    bias = constant(add.inputs[place])
    row = bias is not None and bias.dtype == np.float32 and bias.shape == (*[1] * (bias.ndim - 1), columns)
    if bias is None or not row or node.outputs[0].shape is None or bias.ndim > len(node.outputs[0].shape):
        return None
    add.replace_input_with(place, writer.constant(f"{add.name}/nothing", np.float32(0)))
    # What goes by one name in two graphs is compared: this is no longer the product alone.
    node.outputs[0].name = writer.free(f"{node.outputs[0].name}/biased")
    return bias


def _lstm(writer: Writer, node: ir.Node, limit: int) -> None:
    inputs: list[ir.Value | None] = [*node.inputs, *[None] * (8 - len(node.inputs))]
    scales: list[ir.Value | None] = []
    for place in (1, 2):
        value = node.inputs[place]
        known = constant(value)
        assert value is not None
        assert known is not None
        integers, steps = _by_direction(known.astype(np.float32), limit)
        inputs[place] = writer.constant(f"{value.name}/integers", integers)
        scales.append(writer.constant(f"{value.name}/scale", steps))
        scales.append(writer.constant(f"{value.name}/zero_point", np.zeros(steps.shape, np.int8)))
    kept = [node.attributes[name] for name in _LSTM_ATTRIBUTES if name in node.attributes]
    writer.replace(node, DOMAIN, "DynamicQuantizeLSTM", [*inputs, *scales], kept)


def _by_direction(weight: weights.Floats, limit: int) -> tuple[weights.Integers, weights.Floats]:
    """(directions, 4 hidden, inputs) -> int8 (directions, inputs, 4 hidden) and scales (directions, 4 hidden)."""
    parts = [weights.per_channel(np.ascontiguousarray(matrix.T), 1, "minmax", limit) for matrix in weight]
    return np.stack([integers for integers, _ in parts]), np.stack([steps for _, steps in parts])
