"""FP16 and BF16 graphs: what stays in float32, where Casts stand, and what can't be had."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer.errors import InputError, UnavailableError
from optimizer.model import FOR_LAYER, PLANNED
from optimizer.plan import Plan
from optimizer.precision import eligible, settled, typed
from optimizer.reference import Reference, simulated

FP16 = Plan("any", "gpu", "fp16")


def halves(graph: ir.Model) -> set[str]:
    return {value.name or "" for node in graph.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT16}


@pytest.mark.parametrize("name", ["residual", "transformer", "recommender", "recurrent"])
@pytest.mark.parametrize(("base", "decibels"), [("fp16", 55), ("bf16", 38)])
def test_a_half_precision_graph_is_valid_and_close_to_float(name, base, decibels, gpu, samples, sqnr, request):
    model = request.getfixturevalue(name)
    graph = typed(model, Plan("any", "gpu", base), gpu)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    assert [value.dtype for value in (*graph.graph.inputs, *graph.graph.outputs)] == [ir.DataType.FLOAT] * 2
    assert [value.name for value in graph.graph.outputs] == [value.name for value in model.outputs]
    feeds = samples(model)
    exact, found = Reference(model.graph).run(feeds), Reference(simulated(graph)).run(feeds)
    assert all(decibels < sqnr(exact[name], found[name]) < 120 for name in exact), "rounded, and only rounded"


@pytest.mark.parametrize("name", ["residual", "transformer", "recommender", "recurrent"])
def test_an_fp16_graph_loads_and_runs_in_onnx_runtime(name, gpu, samples, sqnr, request):
    model = request.getfixturevalue(name)
    feeds = samples(model)
    found = Reference(typed(model, FP16, gpu), optimized=True).run(feeds)
    exact = Reference(model.graph).run(feeds)
    assert all(sqnr(exact[output], found[output]) > 55 for output in exact)


def test_weights_are_half_and_every_layer_but_the_float_ones_writes_half(residual, gpu):
    graph = typed(residual, FP16, gpu)
    assert graph.graph.initializers["conv1_weight/float16"].dtype == ir.DataType.FLOAT16
    assert "conv1_weight" not in graph.graph.initializers, "no second copy of the weights"
    assert {"c1", "r1", "p1", "c2", "r2", "c3", "a", "r3", "g", "f"} <= halves(graph)
    casts = [node for node in graph.graph if node.op_type == "Cast"]
    assert len(casts) == 2
    assert all(FOR_LAYER in node.metadata_props for node in casts)


def test_a_layer_that_the_plan_keeps_in_float_is_an_island_between_casts(residual, gpu):
    graph = typed(residual, FP16.with_precision(["conv.c2"], "fp32", "it overflows"), gpu)
    conv = next(node for node in graph.graph if node.name == "conv.c2")
    assert conv.metadata_props[PLANNED] == "fp32"
    assert {value.dtype for value in (*conv.inputs, *conv.outputs)} == {ir.DataType.FLOAT}
    assert conv.inputs[0].producer().op_type == "Cast"
    assert conv.outputs[0].consumers()[0].op_type == "Cast"
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)


def test_an_index_in_a_float_input_names_the_same_row_in_half_precision(recommender, gpu, samples):
    feeds = samples(recommender)
    feeds["x"][:, 16] = [4093.0, 2049.0, 4999.0, 3.0]
    graph = typed(recommender, FP16, gpu)
    ids = Reference(simulated(graph), watch=("ids",)).run(feeds)["ids"]
    np.testing.assert_array_equal(ids, [4093, 2049, 4999, 3])
    plan = settled(recommender, FP16, gpu)
    assert plan.precision("rounded") == "fp32"
    assert "carries indices" in plan.reasons["rounded"]


def test_codes_that_are_compared_stay_exact_too(model, gpu):
    text = """g (float[4, 1] x) => (float[4, 64] y) {
      hit = Equal(x, codes)  hot = Cast<to = 1>(hit)  y = MatMul(hot, weight) }"""
    lookup = model(text, {"codes": (1, 3000), "weight": (3000, 64)})
    lookup.graph.graph.initializers["codes"].const_value = ir.tensor(np.arange(3000, dtype=np.float32)[None], name="codes")
    graph = typed(lookup, FP16, gpu)
    feeds = {"x": np.array([[2049.0], [5.0], [2999.0], [2048.0]], np.float32)}
    exact = Reference(lookup.graph).run(feeds)["y"]
    np.testing.assert_allclose(Reference(simulated(graph)).run(feeds)["y"], exact, rtol=1e-3, atol=1e-3)


def test_a_subgraph_stays_in_float_and_reads_float(model, gpu, samples):
    text = """g (bool c, float[2, 8] x) => (float[2, 8] y) {
      h = MatMul(x, weight)
      s = If (c) < then_branch = t () => (float[2, 8] a) { a = Mul(h, h) }, else_branch = e () => (float[2, 8] b) { b = Neg(h) } >
      y = Relu(s) }"""
    branching = model(text, {"weight": (8, 8)})
    graph = typed(branching, FP16, gpu)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    feeds = {"c": np.array(True), "x": samples(branching)["x"]}
    np.testing.assert_allclose(Reference(graph).run(feeds)["y"], Reference(branching.graph).run(feeds)["y"], rtol=2e-2, atol=1e-3)


def test_operators_and_inputs_without_a_half_form_stay_float(model, gpu):
    text = """g (float[1, 2, 4, 4] x) => (float[1, 2, 8, 8] y) <float[4] scales = {1, 1, 2, 2}> {
      h = Relu(x)  u = Resize<mode = "nearest">(h, , scales)  y = Neg(u) }"""
    upsampler = model(text)
    graph = typed(upsampler, FP16, gpu)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    resize = next(node for node in graph.graph if node.op_type == "Resize")
    assert resize.inputs[0].dtype == ir.DataType.FLOAT16
    assert resize.inputs[2].dtype == ir.DataType.FLOAT


def test_a_constant_made_at_run_time_has_the_type_of_its_layer(model, gpu, samples, sqnr):
    text = """g (float[N, 8] x) => (float[N, 8] y) {
      size = Shape(x)  ones = ConstantOfShape<value = float[1] {1}>(size)  s = Add(x, ones)  y = Sigmoid(s) }"""
    filled = model(text)
    graph = typed(filled, FP16, gpu)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    feeds = samples(filled)
    assert sqnr(Reference(filled.graph).run(feeds)["y"], Reference(simulated(graph)).run(feeds)["y"]) > 55


def test_an_overflow_shows_in_the_simulation_of_the_typed_graph(model, gpu):
    text = "g (float[1, 64] x) => (float[1, 64] y) { h = MatMul(x, weight)  y = Sqrt(h) }"
    loud = model(text, {"weight": (64, 64)})
    weight = loud.graph.graph.initializers["weight"]
    weight.const_value = ir.tensor(np.full((64, 64), 100, np.float32), name="weight")
    feeds = {"x": np.full((1, 64), 21.09375, np.float32)}
    assert Reference(loud.graph, watch=("h",)).run(feeds)["h"][0, 0] == 135_000
    assert Reference(simulated(typed(loud, FP16, gpu))).run(feeds)["y"][0, 0] == np.inf
    assert np.isfinite(Reference(simulated(typed(loud, Plan("any", "gpu", "bf16"), gpu))).run(feeds)["y"]).all()


def test_a_constant_beyond_fp16_is_an_error_that_names_the_layer(model, gpu):
    masked = model("g (float[1, 8] x) => (float[1, 8] y) <float low = {-3e38}> { y = Add(x, low) }")
    with pytest.raises(InputError, match=r"y has a constant of 3e\+38"):
        typed(masked, FP16, gpu)
    graph = typed(masked, FP16.with_precision(["y"], "fp32", "its constant"), gpu)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)


def test_an_infinite_constant_stays_infinite(model, gpu):
    masked = model("g (float[1, 8] x) => (float[1, 8] y) { y = Max(x, low) }", {"low": (1,)})
    masked.graph.graph.initializers["low"].const_value = ir.tensor(np.array([-np.inf], np.float32), name="low")
    found = Reference(typed(masked, FP16, gpu)).run({"x": np.ones((1, 8), np.float32)})["y"]
    np.testing.assert_array_equal(found, 1)


def test_a_precision_that_the_backend_lacks_is_refused(residual, cpu):
    assert set(eligible(residual, cpu, "bf16").values()) == {"this backend has no bf16 for the target"}
    with pytest.raises(UnavailableError, match="can't run in BF16"):
        typed(residual, Plan("any", "cpu", "fp32", {"conv.c1": "bf16"}), cpu)


def test_layers_that_hold_no_floats_are_told_apart(model, gpu):
    text = "g (int64[4] i, float[4] x) => (float[4] y) <int64[1] one = {1}> { j = Add(i, one)  y = Gather(x, j) }"
    reasons = eligible(model(text), gpu, "fp16")
    assert reasons == {"j": "it computes with integers", "y": None}
