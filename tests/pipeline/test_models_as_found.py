"""Models as other people's tools write them go through a whole build, or are refused in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import optimizer
from optimizer.backends import tensorrt
from optimizer.errors import InputError, UnavailableError
from optimizer.planner import finals

needs_tensorrt = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")

DRAW = np.random.default_rng(0)

Found = Callable[..., dict[str, Any]]


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Found:
    """`found(text, weights, data, **words)`: the report of a build of the model that `text` describes."""
    monkeypatch.setattr(finals, "RACE_SECONDS", 0.3)

    def build(text: str, weights: dict[str, Any], data: dict[str, Any], outside: bool = False, **words: Any) -> dict[str, Any]:
        proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
        proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
        onnx.save(proto, tmp_path / "model.onnx", save_as_external_data=outside, location="weights.bin", size_threshold=0)
        if data:
            np.savez(tmp_path / "data.npz", **data)
            words["calibration"] = str(tmp_path / "data.npz")
        optimizer.build(tmp_path / "model.onnx", tmp_path / "out", threads=1, **words)
        return json.loads((tmp_path / "out" / "report.json").read_text())

    return build


def floats(*shape: int) -> np.ndarray:
    return DRAW.standard_normal(shape).astype(np.float32)


PRODUCT = "g (float[N, 8] x) => (float[N, 4] y) { y = MatMul(x, w) }"


def test_a_model_that_gives_integers_alone(found: Found) -> None:
    text = "g (float[N, 8] x) => (int64[N, 1] k) { y = MatMul(x, w) k = ArgMax<axis = 1>(y) }"
    assert found(text, {"w": floats(8, 4)}, {"x": floats(12, 8)})["verdict"] == "pass"


@pytest.mark.parametrize("target", ["cpu", pytest.param("l4", marks=needs_tensorrt), "h100"])
def test_small_weights_in_a_file_beside_the_model(found: Found, target: str) -> None:
    text = "g (float[N, 64] x) => (float[N, 64] y) { a = MatMul(x, w) b = Add(a, c) y = Gather<axis = 1>(b, order) }"
    weights = {"w": floats(64, 64), "c": floats(64), "order": np.arange(64)[::-1].copy()}
    assert found(text, weights, {"x": floats(12, 64)}, outside=True, target=target)["verdict"] == "pass"


def test_a_scalar_input_beside_a_batch(found: Found) -> None:
    text = "g (float[N, 8] x, float s) => (float[N, 4] y) { a = MatMul(x, w) y = Mul(a, s) }"
    data = {"x": floats(12, 8), "s": floats(12)}
    assert found(text, {"w": floats(8, 4)}, data)["verdict"] == "pass"


def test_a_half_precision_model_is_offered_int8_and_keeps_its_types(found: Found) -> None:
    text = "g (float16[N, 64] x) => (float16[N, 64] y) { y = MatMul(x, w) }"
    report = found(text, {"w": floats(64, 64).astype(np.float16)}, {"x": floats(12, 64).astype(np.float16)})
    assert report["verdict"] == "pass"
    assert any("int8" in one["name"] and one["outcome"] != "not built" for one in report["candidates"])
    assert any("count as FP32" in note for note in report["notes"])


def test_free_dimensions_without_data_get_a_size_that_the_model_takes(found: Found) -> None:
    text = 'g (float[N, L] x) => (float[N, M] y) { p = Constant<value = int64[4] {0, 3, 0, 3}>() y = Pad<mode = "reflect">(x, p) }'
    assert found(text, {}, {})["verdict"] == "pass"


def test_a_batch_that_does_not_fit_is_refused_by_the_input_s_name(found: Found) -> None:
    text = (
        "g (float[N, 8] x, float[2, N, 4] state) => (float[N, 4] y) { a = MatMul(x, w) s = ReduceSum<keepdims = 0>(state) y = Add(a, s) }"
    )
    with pytest.raises(InputError, match="'state' has shape"):
        found(text, {"w": floats(8, 4)}, {"x": floats(12, 8), "state": floats(12, 2, 4)})


BRANCH = """g (float[N, 8] x, int64 rate) => (float y) {
    a = MatMul(x, w)
    sixteen = Constant<value = int64 {16000}>()
    c = Equal(rate, sixteen)
    b = If(c)<then_branch = one () => (float[] one_b) { one_b = Sigmoid(a) },
              else_branch = two () => (float[] two_b) { two_b = Relu(a) }>
    y = ReduceMean<keepdims = 0>(b)
}"""


def test_an_output_behind_a_branch_keeps_its_number_of_dimensions(found: Found) -> None:
    data = {"x": floats(12, 8), "rate": np.full(12, 16000)}
    report = found(
        BRANCH.replace("float y)", "float[N, 4] b)").replace("y = ReduceMean<keepdims = 0>(b)", ""),
        {"w": floats(8, 4)},
        data,
        target="h100",
    )
    assert report["verdict"] == "pass"


def test_layers_of_integers_do_not_keep_a_target_from_fp16(found: Found) -> None:
    text = "g (int64[N, 6] i) => (float[N, 6, 4] y) { j = Add(i, one) e = Gather(t, j) y = MatMul(e, w) }"
    weights = {"one": np.array(1), "t": floats(20, 8), "w": floats(8, 4)}
    report = found(text, weights, {"i": DRAW.integers(0, 10, (12, 6))}, target="h100" if find_spec("tensorrt_rtx") is None else "t4")
    assert report["candidates"][0]["name"] == "fp16"


def test_fp32_by_name_where_the_target_has_none_is_refused(found: Found) -> None:
    with pytest.raises(UnavailableError, match="FP32 matrices"):
        found(PRODUCT, {"w": floats(8, 4)}, {"x": floats(12, 8)}, target="t4", precision="fp32")


def test_a_model_that_is_quantized_already_says_so(found: Found) -> None:
    text = """g (float[N, 8] x) => (float[N, 4] y) { s = Constant<value = float {0.05}>() z = Constant<value = int8 {0}>()
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, w) }"""
    report = found(text, {"w": floats(8, 4)}, {"x": floats(12, 8)})
    assert any("quantized already" in note for note in report["notes"])
    with pytest.raises(UnavailableError, match="float model"):
        found(text, {"w": floats(8, 4)}, {"x": floats(12, 8)}, precision="int8")


@needs_tensorrt
def test_int8_plans_that_can_t_be_built_leave_the_others(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(graph: Any, *others: Any) -> Any:
        if any(node.op_type == "QuantizeLinear" for node in graph.graph):
            raise UnavailableError("TensorRT-RTX can't build it.", "Take another.")
        return build(graph, *others)

    wide = "g (float[N, 256] x) => (float[N, 256] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }"
    build = tensorrt.build
    monkeypatch.setattr(tensorrt, "build", refused)
    report = found(wide, {"w": floats(256, 256)}, {"x": floats(12, 256)}, target="l4")
    assert report["verdict"] == "pass"
    assert {one["outcome"] for one in report["candidates"] if one["name"].startswith("int8")} == {"not built"}
    with pytest.raises(UnavailableError, match="INT8 can't be had"):
        found(wide, {"w": floats(256, 256)}, {"x": floats(12, 256)}, target="l4", precision="int8")


@needs_tensorrt
def test_a_model_without_a_layer_for_int8_says_why_there_is_no_int8_plan(found: Found) -> None:
    report = found(PRODUCT, {"w": floats(8, 4)}, {"x": floats(12, 8)}, target="l4")
    (missing,) = (one for one in report["candidates"] if one["name"] == "int8")
    assert missing["outcome"] == "not built"
    assert "No layer of this model" in missing["reason"]


def test_a_model_without_any_layer_is_built_and_has_no_int8_plan(found: Found) -> None:
    report = found("g (float[N, 8] x) => (float[N, 8] y) { y = Identity(x) }", {}, {"x": floats(12, 8)})
    assert report["verdict"] == "pass"
    assert any("No layer of this model" in one["reason"] for one in report["candidates"])


def test_a_branch_that_the_datas_size_decides_is_quantized_where_sizes_are_fixed(found: Found) -> None:
    """For a GPU free sizes are fixed: the If that asks for one is gone, and its branch's tensors, seen for the first time, calibrated."""
    text = """g (float[N, M] x) => (float[N, P] y) <int64 one = {1}, int64 wide = {64}> {
        s = Shape(x) m = Gather(s, one) c = Equal(m, wide)
        y = If(c) <
            then_branch = yes () => (float[N, 64] t) { h = MatMul(x, w) r = Relu(h) k = MatMul(r, w) q = Relu(k) t = MatMul(q, w) },
            else_branch = no () => (float[N, M] e) { e = Identity(x) }
        >
    }"""
    report = found(text, {"w": floats(64, 64)}, {"x": floats(40, 64)}, target="h100", precision="int8")
    layers = {layer["name"]: layer["planned"] for layer in report["precision"]["layers"]}
    assert [name for name, planned in layers.items() if planned == "int8"] == ["If:y.then.MatMul", "If:y.then.MatMul#2"]
    assert {"x", "r"} <= {tensor["name"] for tensor in report["calibration"]}
    assert any("Free dimensions are fixed" in note for note in report["notes"])


def test_a_branch_that_a_run_decides_stays_float_and_is_told(found: Found) -> None:
    text = """g (float[N, 64] x) => (float[N, 64] y) <float zero = {0}> {
        s = ReduceSum<keepdims = 0>(x) c = Greater(s, zero) a = MatMul(x, w)
        y = If(c) <then_branch = yes () => (float[N, 64] t) { t = MatMul(a, w) }, else_branch = no () => (float[N, 64] e) { e = Neg(a) }>
    }"""
    report = found(text, {"w": floats(64, 64)}, {"x": floats(40, 64)}, precision="int8")
    layer = next(layer for layer in report["precision"]["layers"] if layer["op"] == "If")
    assert layer["realised"] == "fp32"
    assert "what is inside it stays in FP32" in layer["reason"]
