"""What a graph gives when run as written, in float64, and as half precision on a GPU would compute it."""

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.errors import InputError
from optimizer.model import BY_NAME, PLANNED
from optimizer.reference import NoTruthError, Reference, float64, sensitivity, simulated

MLP = """<ir_version: 10, opset_import: ["": 20]>
mlp (float[1, 3] x) => (float[1, 2] y)
<float[3, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[4, 2] v = {1, -1, 1, -1, 1, -1, 1, -1}>
{
  h = MatMul(x, w)
  r = Relu(h)
  y = MatMul(r, v)
}"""

OVERFLOW = """<ir_version: 10, opset_import: ["": 20]>
half (float[2] x) => (float[2] y)
{
  h = Cast<to = 10>(x)
  squared = Mul(h, h)
  root = Sqrt(squared)
  y = Cast<to = 1>(root)
}"""

X = np.array([[1.0, -2.0, 0.5]], np.float32)


def test_any_tensor_can_be_watched_by_name():
    engine = Reference(ir.from_onnx_text(MLP), watch=("h", "x", "w", "y"))
    found = engine.run({"x": X})
    w = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    np.testing.assert_allclose(found["h"], X @ w)
    np.testing.assert_array_equal(found["x"], X)
    np.testing.assert_array_equal(found["w"], w)
    assert set(found) == {"h", "x", "w", "y"}
    assert [output.name for output in engine.outputs] == ["y"]


def test_watching_leaves_the_graph_alone():
    model = ir.from_onnx_text(MLP)
    Reference(model, watch=("h",))
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_weights_larger_than_the_inline_limit_arrive_unchanged():
    rng = np.random.default_rng(0)
    model = ir.from_onnx_text(MLP)
    weight = rng.standard_normal((3, 500)).astype(np.float32)
    model.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    model.graph.initializers["w"].shape = ir.Shape(weight.shape)
    model.graph.initializers["v"].const_value = ir.tensor(np.ones((500, 2), np.float32), name="v")
    model.graph.initializers["v"].shape = ir.Shape((500, 2))
    found = Reference(model).run({"x": X})
    np.testing.assert_allclose(found["y"][0, 0], np.maximum(X @ weight, 0).sum(), rtol=1e-5)
    exact = float64(model, {"x": X})
    np.testing.assert_allclose(exact["y"][0, 0], np.maximum(X.astype(np.float64) @ weight, 0).sum(), rtol=1e-14)
    assert "w" in model.graph.initializers


def test_the_optimized_engine_computes_the_same():
    plain = Reference(ir.from_onnx_text(MLP)).run({"x": X})
    np.testing.assert_allclose(Reference(ir.from_onnx_text(MLP), optimized=True).run({"x": X})["y"], plain["y"], rtol=1e-6)


def test_an_unknown_tensor_is_an_error_of_the_caller():
    with pytest.raises(ValueError, match="nowhere"):
        Reference(ir.from_onnx_text(MLP), watch=("nowhere",))


def test_a_model_that_onnx_runtime_refuses_is_an_input_error():
    with pytest.raises(InputError, match="can't load the model"):
        Reference(ir.from_onnx_text(MLP.replace("Relu(h)", "NoSuchOperator(h)")))


def test_data_of_the_wrong_shape_is_an_input_error():
    with pytest.raises(InputError, match="can't be run on this data"):
        Reference(ir.from_onnx_text(MLP)).run({"x": np.zeros((1, 7), np.float32)})


def test_float64_keeps_what_float32_rounds_away():
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (float[1] x) => (float[1] y) <float[1] big = {16777216}> { s = Add(x, big)  y = Sub(s, big) }"""
    feeds = {"x": np.array([0.25], np.float32)}
    assert Reference(ir.from_onnx_text(text)).run(feeds)["y"] == 0
    truth = float64(ir.from_onnx_text(text), feeds)["y"]
    assert truth.dtype == np.float64
    assert truth == 0.25


def test_float64_goes_through_casts_and_constants():
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (int64[1] x) => (float[1] y) { f = Cast<to = 1>(x)  third = Constant<value_float = 0.5>()  y = Mul(f, third) }"""
    assert float64(ir.from_onnx_text(text), {"x": np.array([16777217])})["y"] == 8388608.5


def test_float64_says_what_it_can_not_evaluate():
    text = """<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>
    g (float[1] x) => (float[1] y) { y = com.microsoft.Gelu(x) }"""
    with pytest.raises(NoTruthError, match=r"com\.microsoft"):
        float64(ir.from_onnx_text(text), {"x": np.ones(1, np.float32)})


def test_onnx_runtime_itself_hides_the_overflow_that_the_simulation_shows():
    feeds = {"x": np.array([367.4, 3.0], np.float32)}
    hidden = Reference(ir.from_onnx_text(OVERFLOW)).run(feeds)["y"]
    assert np.isfinite(hidden).all(), "ONNX Runtime computes half precision in float32 between operators"
    shown = Reference(simulated(ir.from_onnx_text(OVERFLOW))).run(feeds)["y"]
    np.testing.assert_array_equal(shown, [np.inf, 3.0])


def test_the_optimizer_of_onnx_runtime_does_not_undo_the_simulation():
    shown = Reference(simulated(ir.from_onnx_text(OVERFLOW)), optimized=True).run({"x": np.array([367.4, 3.0], np.float32)})["y"]
    assert shown[0] == np.inf


def test_a_tensor_that_no_launch_writes_is_not_rounded():
    model = simulated(ir.from_onnx_text(OVERFLOW), written={"h", "root"})
    shown = Reference(model).run({"x": np.array([367.4, 3.0], np.float32)})["y"]
    np.testing.assert_allclose(shown, [np.float16(367.4), 3.0])


def test_a_simulated_tensor_keeps_its_name_and_is_rounded():
    shown = Reference(simulated(ir.from_onnx_text(OVERFLOW)), watch=("h", "squared")).run({"x": np.array([0.1, 1.7], np.float32)})
    half = np.array([0.1, 1.7], np.float16)
    np.testing.assert_array_equal(shown["h"], half.astype(np.float32))
    np.testing.assert_array_equal(shown["squared"], (half.astype(np.float32) ** 2).astype(np.float16).astype(np.float32))


def test_bfloat16_is_simulated_though_onnx_runtime_has_no_kernel_for_it():
    text = OVERFLOW.replace("to = 10", "to = 16")
    shown = Reference(simulated(ir.from_onnx_text(text))).run({"x": np.array([367.4, 1.00390625], np.float32)})["y"]
    assert np.isfinite(shown).all()
    assert shown[1] == 1.0


def test_a_half_precision_interface_stays_as_it_is():
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (float16[1] x) => (float16[1] y) { y = Mul(x, x) }"""
    shown = Reference(simulated(ir.from_onnx_text(text))).run({"x": np.array([300], np.float16)})["y"]
    assert shown.dtype == np.float16
    assert shown == np.inf


def test_half_precision_inside_a_branch_is_simulated_too():
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (bool c, float[1] x) => (float[1] y) {
      h = Cast<to = 10>(x)
      s = If (c) <
        then_branch = t () => (float16[1] a) { a = Mul(h, h) },
        else_branch = e () => (float16[1] b) { b = Neg(h) }
      >
      y = Cast<to = 1>(s)
    }"""
    engine = Reference(simulated(ir.from_onnx_text(text)))
    assert engine.run({"c": np.array(True), "x": np.array([367.4], np.float32)})["y"] == np.inf
    assert engine.run({"c": np.array(False), "x": np.array([2.0], np.float32)})["y"] == -2


@pytest.mark.parametrize(("gain", "low", "high"), [("{1}", 1e-7, 1e-6), ("{1000}", 1e-4, 1e-3)])
def test_sensitivity_grows_with_the_gain_of_the_model(gain: str, low: float, high: float):
    text = f"""<ir_version: 10, opset_import: ["": 20]>
    g (float[64] x) => (float[64] y) <float[1] k = {gain}, float[1] one = {{1}}> {{
      d = Sub(x, one)  s = Mul(d, k)  y = Add(s, one) }}"""
    engine = Reference(ir.from_onnx_text(text))
    assert low < sensitivity(engine.run, {"x": np.full(64, 1.0, np.float32)}) < high


def test_sensitivity_leaves_an_index_in_a_float_input_on_its_row():
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (float[1] x) => (float[1] y) <float[4] table = {1, 10, 100, 1000}> { i = Cast<to = 7>(x)  y = Gather(table, i) }"""
    engine = Reference(ir.from_onnx_text(text))
    assert sensitivity(engine.run, {"x": np.array([3.0], np.float32)}) == 0


def test_an_output_that_nobody_named_is_no_tensor_to_round():
    text = """<ir_version: 10, opset_import: ["": 22]>
    net (float16[1, 1, 2] x, float16[1, 8, 2] w, float16[1, 8, 2] r) => (float16[1, 1, 2] last) {
        every, last = LSTM <hidden_size = 2> (x, w, r)
    }"""
    typed = ir.from_onnx_text(text)
    typed.graph[0].outputs[0].name = ""
    exact = 1 / (1 + np.exp(-1.0))
    wanted = exact * np.tanh(exact * np.tanh(1.0))
    halves = np.full((1, 8, 2), 0.5, np.float16)
    found = Reference(simulated(typed)).run({"x": np.ones((1, 1, 2), np.float16), "w": halves, "r": halves})["last"]
    np.testing.assert_allclose(found.astype(np.float64), np.full((1, 1, 2), wanted), rtol=2e-3)


NAMED = """<ir_version: 10, opset_import: ["": 20]>
net (float[1, 64] x) => (float[1, 64] y)
{
  [half] h = Mul(x, x)
  [float] f = Add(h, x)
  [again] y = Tanh(f)
}"""


def test_an_engine_that_goes_by_names_is_simulated_as_if_its_types_were_written():
    model = ir.from_onnx_text(NAMED)
    for node in model.graph:
        node.metadata_props[PLANNED] = "fp32" if node.name == "float" else "bf16"
    x = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)

    def rounded(array):
        return array.astype(ir.DataType.BFLOAT16.numpy()).astype(np.float32)

    whole = Reference(model).run({"x": x})["y"]
    np.testing.assert_array_equal(Reference(simulated(model)).run({"x": x})["y"], whole)
    model.metadata_props[BY_NAME] = "true"
    found = Reference(simulated(model)).run({"x": x})["y"]
    np.testing.assert_allclose(found, rounded(np.tanh(rounded(rounded(rounded(x) ** 2) + x))), rtol=1e-6)
    assert np.abs(found - whole).max() > 1e-3
