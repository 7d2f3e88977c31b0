"""The rows that a layer meets, times its weight as a matrix, are its output: for every kind of window."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer.recovery.layers import laid_out, matrix, rows
from optimizer.reference import Reference

CONVOLUTIONS = [
    ("float[2, 4, 9, 8]", (6, 4, 3, 3), "pads = [1, 0, 2, 1]", "two"),
    ("float[1, 4, 9, 8]", (8, 2, 3, 2), "group = 2, strides = [2, 1]", "two"),
    ("float[1, 6, 9, 9]", (6, 1, 3, 3), "group = 6, dilations = [2, 2], pads = [2, 2, 2, 2]", "two"),
    ("float[1, 4, 9, 8]", (6, 4, 3, 3), 'auto_pad = "SAME_UPPER", strides = [2, 2]', "two"),
    ("float[1, 4, 9, 8]", (6, 4, 2, 2), 'auto_pad = "SAME_LOWER"', "two"),
    ("float[1, 4, 9, 8]", (6, 4, 2, 2), 'auto_pad = "VALID"', "two"),
    ("float[2, 4, 21]", (6, 4, 5), "strides = [3], pads = [2, 2]", "one"),
    ("float[1, 2, 4, 5, 6]", (6, 2, 2, 2, 2), "strides = [1, 2, 1]", "three"),
]


def layer(operator: str, x: str, shape: tuple[int, ...], attributes: str) -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["": 20]> g ({x} x) => (float[M] y) {{ y = {operator}<{attributes}>(x, w) }}'
    proto = onnx.parser.parse_model(text.replace("<>", ""))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    numbers = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(numbers, "w"))
    return ir.from_proto(proto)


@pytest.mark.parametrize(("x", "shape", "attributes", "_axes"), CONVOLUTIONS)
def test_rows_times_weight_is_the_convolution(x, shape, attributes, _axes):
    model = layer("Conv", x, shape, attributes)
    (node,) = model.graph
    array = np.random.default_rng(1).standard_normal([int(size) for size in model.graph.inputs[0].shape]).astype(np.float32)
    wanted = Reference(model).run({"x": array})["y"]
    found = rows(node, array, 10**6) @ matrix(node).transpose(0, 2, 1)  # (groups, rows, channels of a group)
    found = np.moveaxis(found, 0, 1).reshape(wanted.shape[0], -1, wanted.shape[1]).transpose(0, 2, 1).reshape(wanted.shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(laid_out(node, matrix(node)), node.inputs[1].const_value.numpy())


@pytest.mark.parametrize(
    ("operator", "x", "shape", "attributes"),
    [("MatMul", "float[2, 3, 7]", (7, 5), ""), ("Gemm", "float[3, 7]", (7, 5), ""), ("Gemm", "float[3, 7]", (5, 7), "transB = 1")],
)
def test_rows_times_weight_is_the_product(operator, x, shape, attributes):
    model = layer(operator, x, shape, attributes)
    (node,) = model.graph
    array = np.random.default_rng(1).standard_normal([int(size) for size in model.graph.inputs[0].shape]).astype(np.float32)
    found = rows(node, array, 10**6)[0] @ matrix(node)[0].T
    np.testing.assert_allclose(found, Reference(model).run({"x": array})["y"].reshape(-1, 5), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(laid_out(node, matrix(node)), node.inputs[1].const_value.numpy())


def test_of_many_rows_some_are_taken_evenly():
    model = layer("MatMul", "float[100, 3]", (3, 2), "")
    array = np.arange(300, dtype=np.float32).reshape(100, 3)
    found = rows(next(iter(model.graph)), array, 5)
    np.testing.assert_array_equal(found[0, :, 0], array[[0, 24, 49, 74, 99], 0])
