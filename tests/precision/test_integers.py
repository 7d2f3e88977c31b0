"""Integer operators of another tool's become Q/DQ with the same numbers, where a target reads nothing else; what can't be so is left."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from kernels.gpus import GPUS
from optimizer.backends.tensorrt.losses import losses_of
from optimizer.errors import UnavailableError
from optimizer.graph import infer_shapes
from optimizer.precision.integers import as_qdq
from optimizer.reference import Reference

L4 = GPUS["l4"]
GENERATOR = np.random.default_rng(0)

CONV = """
    g (float[1, 4, 8, 8] x) => (float[1, 6, 8, 8] y) {
        q = QuantizeLinear(x, xs, xz)
        c = QLinearConv <pads = [1, 1, 1, 1]> (q, xs, xz, w, ws, wz, ys, yz, b)
        p = MaxPool <kernel_shape = [2, 2], pads = [0, 0, 1, 1]> (c)
        y = DequantizeLinear(p, ys, yz)
    }
"""
MATMUL = """
    g (float[3, 16] x) => (float[3, 5] y) {
        q = QuantizeLinear(x, xs, xz)
        c = QLinearMatMul(q, xs, xz, w, ws, wz, ys, yz)
        y = DequantizeLinear(c, ys, yz)
    }
"""


def graph(text: str, **weights: Any) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>{text}')
    for node in proto.graph.node:
        node.name = f"{node.op_type}:{node.output[0]}"
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items())
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def convolution(zero: np.integer[Any], **others: Any) -> ir.Model:
    weights = {
        "w": GENERATOR.integers(-127, 128, (6, 4, 3, 3)).astype(np.int8),
        "ws": GENERATOR.uniform(0.01, 0.02, 6).astype(np.float32),
        "wz": np.zeros(6, np.int8),
        "b": GENERATOR.integers(-500, 500, 6).astype(np.int32),
    }
    return graph(CONV, xs=np.float32(0.05), xz=zero, ys=np.float32(0.1), yz=zero, **{**weights, **others})


def answers(model: ir.Model, x: np.ndarray) -> np.ndarray:
    with closing(Reference(model)) as reference:
        return reference.run({"x": x})["y"]


@pytest.mark.parametrize("zero", [np.int8(0), np.uint8(128)])
def test_a_quantized_convolution_is_a_convolution_between_q_and_dq_bit_for_bit(zero: np.integer[Any]) -> None:
    model = convolution(zero)
    found, layers = as_qdq(model)
    assert "QLinearConv:c" in layers
    assert [node.name for node in found.graph if node.op_type == "Conv"] == ["QLinearConv:c"]
    assert {value.dtype for node in found.graph for value in node.outputs} == {ir.DataType.INT8, ir.DataType.FLOAT}
    assert losses_of(found, L4).reasons == {}
    for scale in (0.1, 3.0, 100.0):  # the last one clips
        x = (scale * GENERATOR.standard_normal((1, 4, 8, 8))).astype(np.float32)
        np.testing.assert_array_equal(answers(found, x), answers(model, x))
    assert "QLinearConv" in {node.op_type for node in model.graph}  # the model that came in stays


def test_a_quantized_product_keeps_its_scale_a_column() -> None:
    weights = {"w": GENERATOR.integers(-127, 128, (16, 5)).astype(np.int8), "ws": GENERATOR.uniform(0.01, 0.1, 5).astype(np.float32)}
    zero = {"xz": np.int8(0), "wz": np.zeros(5, np.int8), "yz": np.int8(0)}
    model = graph(MATMUL, xs=np.float32(0.05), ys=np.float32(0.1), **weights, **zero)
    found, layers = as_qdq(model)
    assert layers == ("QLinearMatMul:c",)
    x = GENERATOR.standard_normal((3, 16)).astype(np.float32)
    np.testing.assert_array_equal(answers(found, x), answers(model, x))


def test_a_bias_in_int32_behind_q_dq_becomes_the_float_that_it_means() -> None:
    text = "g (float[2, 3] x) => (float[2, 3] y) { d = DequantizeLinear(b, s) y = Add(x, d) }"
    model = graph(text, b=np.array([1, -2, 300], np.int32), s=np.float32(0.5))
    found, layers = as_qdq(model)
    assert layers == ("DequantizeLinear:d",)
    assert [node.op_type for node in found.graph] == ["Add"]
    assert answers(found, np.zeros((2, 3), np.float32)).tolist() == [[0.5, -1, 150]] * 2


@pytest.mark.parametrize("zero", [np.uint8(0), np.uint8(7)])
def test_unsigned_numbers_around_another_point_stay_and_are_refused_with_the_layer(zero: np.integer[Any]) -> None:
    found, _ = as_qdq(convolution(zero))
    with pytest.raises(UnavailableError, match="'QuantizeLinear:q' is quantized to uint8"):
        losses_of(found, L4)


def test_unsigned_numbers_that_the_caller_gives_stay_as_they_are() -> None:
    text = "g (uint8[1, 4] x) => (float[1, 4] y) { y = DequantizeLinear(x, s, z) }"
    found, layers = as_qdq(graph(text, s=np.float32(0.1), z=np.uint8(128)))
    assert layers == ()
    assert found.graph.inputs[0].dtype == ir.DataType.UINT8


def test_ranges_found_at_every_run_are_refused_with_the_layer() -> None:
    text = """
        g (float[3, 16] x) => (float[3, 5] y) {
            q, s, z = DynamicQuantizeLinear(x)
            i = MatMulInteger(q, w, z)
            f = Cast <to = 1> (i)
            y = Mul(f, s)
        }
    """
    found, layers = as_qdq(graph(text, w=GENERATOR.integers(-127, 128, (16, 5)).astype(np.int8)))
    assert layers == ()
    with pytest.raises(UnavailableError, match="'DynamicQuantizeLinear:q' is a DynamicQuantizeLinear"):
        losses_of(found, L4)


def test_a_float_model_comes_back_as_it_is() -> None:
    model = graph("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    assert as_qdq(model) == (model, ())
