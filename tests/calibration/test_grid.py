"""Grids compute as QuantizeLinear and DequantizeLinear do."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from calibration.grid import INT8, UINT8, Grid
from calibration.ranges import Range


def onnx_runtime(array: np.ndarray, scale: np.float32, zero_point: int, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    kind = TensorProto.INT8 if grid.signed else TensorProto.UINT8
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    constants = [helper.make_tensor("s", TensorProto.FLOAT, [], [scale]), helper.make_tensor("z", kind, [], [zero_point])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])]
    outputs = [helper.make_tensor_value_info("q", kind, [None]), helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])]
    graph = helper.make_graph(nodes, "qdq", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return tuple(ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": array}))


@pytest.mark.parametrize("grid", [UINT8, INT8], ids=["uint8", "int8"])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 6.0), (-0.27, 8.0), (-2.0, -1.0)])
def test_quantizing_gives_the_integers_and_numbers_of_onnx_runtime(low: float, high: float, grid: Grid) -> None:
    scale, zero_point = grid.quantization(Range("minmax", low, high))
    numbers = np.linspace(low - 2, high + 2, 5001, dtype=np.float32)
    integers, dequantized = onnx_runtime(numbers, scale, zero_point, grid)
    found = grid.quantize(numbers, scale, zero_point)
    assert found.dtype == integers.dtype
    np.testing.assert_array_equal(found, integers)
    np.testing.assert_array_equal(grid.dequantize(found, scale, zero_point), dequantized)


def test_zero_is_a_point_of_every_grid_and_the_range_is_covered() -> None:
    draw = np.random.default_rng(0)
    for low, high in np.sort(draw.normal(size=(200, 2)), axis=1):
        for grid in (UINT8, INT8):
            scale, zero_point = grid.quantization(Range("minmax", low, high))
            levels = grid.levels(np.array([scale]), np.array([zero_point]))[0]
            assert 0.0 in levels
            assert levels[0] <= min(low, 0) + scale
            assert levels[-1] >= max(high, 0) - scale
            assert not grid.symmetric or zero_point == 0


def test_a_scale_never_vanishes() -> None:
    assert UINT8.quantization(Range("minmax", 0.0, 1e-40))[0] >= np.finfo(np.float32).tiny
    assert INT8.quantization(Range("minmax", 0.0, 0.0)) == (1.0, 0)
