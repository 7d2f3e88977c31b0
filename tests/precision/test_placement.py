"""Which layers may be INT8: each rule where it holds and where it does not, with the reason it gives."""

from dataclasses import replace

import numpy as np
import pytest

from optimizer.plan import Plan
from optimizer.precision import eligible, typed
from optimizer.reference import Reference

ERF_GELU = """g (float[1, 8, 32] x) => (float[1, 8, 32] y) <float root = {1.4142135}, float one = {1}, float half = {0.5}> {
  h = MatMul(x, weight)  d = Div(h, root)  e = Erf(d)  p = Add(e, one)  m = Mul(h, p)  k = Mul(m, half)  y = Add(k, x) }"""

NORM = """g (float[1, 8, 32] x) => (float[1, 8, 32] y) <float two = {2}, float tiny = {0.00001}, int64[1] last = {-1}> {
  mean = ReduceMean(x, last)  d = Sub(x, mean)  s = Pow(d, two)  v = ReduceMean(s, last)  ve = Add(v, tiny)  r = Sqrt(ve)
  n = Div(d, r)  g1 = Mul(n, gain)  g2 = Add(g1, shift)  y = Add(g2, x) }"""


@pytest.mark.parametrize("precision", ["int8", "int8_dynamic"])
def test_nothing_on_the_way_of_an_index_is_quantized(recommender, cpu, precision):
    reasons = eligible(recommender, cpu, precision)
    assert reasons["linear.h"] is None, "its input was cut from the same tensor, but no index comes from it"
    if precision == "int8":
        assert reasons["dense"] == "x carries indices, which must stay exact"
        assert reasons["flat"] == "codes carries indices, which must stay exact"


@pytest.mark.parametrize("style", ["cpu", "gpu"])
def test_an_index_in_a_float_input_names_the_same_row_in_an_int8_graph(recommender, style, samples, ranged, request):
    capability = request.getfixturevalue(style)
    feeds = samples(recommender)
    feeds["x"][:, 16] = [4093.0, 2049.0, 4999.0, 3.0]
    layers = [name for name, reason in eligible(recommender, capability, "int8").items() if reason is None]
    plan = ranged(recommender, Plan("any", style, capability.base, dict.fromkeys(layers, "int8")), capability, feeds)
    graph = typed(recommender, plan, capability)
    np.testing.assert_array_equal(Reference(graph, watch=("ids",)).run(feeds)["ids"], [4093, 2049, 4999, 3])


def test_a_layer_that_reads_a_tensor_with_indices_whole_is_not_quantized(model, cpu):
    text = """g (float[4, 16] x) => (float[4, 8] y) <int64[1] axes = {1}> {
      ids = Cast<to = 7>(x)  rows = Gather(table, ids)  s = ReduceSum<keepdims = 0>(rows, axes)  h = MatMul(x, weight)  y = Add(h, s) }"""
    both = model(text, {"table": (100, 8), "weight": (16, 8)})
    assert eligible(both, cpu, "int8")["linear.h"] == "x carries indices, which must stay exact"


@pytest.mark.parametrize(("text", "inside"), [(ERF_GELU, {"p", "m", "k"}), (NORM, {"ve", "g1", "g2"})])
def test_parts_of_a_pattern_that_fuses_are_not_quantized(text, inside, model, cpu):
    reasons = eligible(model(text, {"weight": (32, 32), "gain": (32,), "shift": (32,)}), cpu, "int8")
    told = {name for name, reason in reasons.items() if reason == "it is part of a normalization or activation that fuses to one kernel"}
    assert told == inside
    assert reasons["y"] is None, "the residual Add behind it may be"


def test_a_weight_that_only_the_run_knows_keeps_its_layer_in_float(model, cpu, gpu):
    text = "g (float[1, 8, 6, 6] x, float[8, 8, 1, 1] w) => (float[1, 8, 6, 6] y) { y = Conv(x, w) }"
    for capability in (cpu, gpu):
        assert eligible(model(text), capability, "int8")["conv.y"] == "its weight or bias is computed at run time"


def test_constants_of_elementwise_layers_are_not_rounded_to_8_bits(model, cpu):
    text = "g (float[1, 64] x) => (float[1, 64] y) { h = Relu(x)  s = Add(h, bias)  y = Mul(s, h) }"
    reasons = eligible(model(text, {"bias": (64,)}), cpu, "int8")
    assert reasons["s"] == "one of its operands is a constant, which 8 bits would only round"
    assert reasons["y"] is None


def test_a_layer_with_hardly_any_weights_is_not_worth_it(model, cpu):
    text = "g (float[1, 4, 6, 6] x) => (float[1, 8, 6, 6] y) { y = Conv(x, weight) }"
    assert eligible(model(text, {"weight": (8, 4, 1, 1)}), cpu, "int8")["conv.y"] == "its weight holds only 32 numbers"
    assert eligible(model(text, {"weight": (8, 4, 3, 3)}), cpu, "int8")["conv.y"] is None


@pytest.mark.parametrize(
    ("bias", "reason"),
    [((8,), None), ((1, 8), None), ((1,), None), ((3, 8), "its bias is no row of one number a column")],
)
def test_a_gemm_takes_a_bias_of_one_number_a_column(bias, reason, model, cpu):
    text = "g (float[3, 32] x) => (float[3, 8] y) { y = Gemm(x, weight, bias) }"
    assert eligible(model(text, {"weight": (32, 8), "bias": bias}), cpu, "int8")["linear.y"] == reason


def test_layers_that_hold_no_floats_can_not_be_int8(model, cpu):
    text = "g (int64[4] i) => (int64[4] j) <int64[1] one = {1}> { j = Add(i, one) }"
    assert eligible(model(text), cpu, "int8") == {"j": "it computes with integers"}


def test_an_operator_of_another_domain_is_no_operator_of_onnx(model, cpu):
    text = "g (float[1, 64] x) => (float[1, 64] y) { y = com.microsoft.MatMul(x, weight) }"
    other = model(text, {"weight": (64, 64)})
    assert eligible(other, cpu, "int8")["linear.y"] == "MatMul has no INT8 kernel"


def test_float32_is_open_to_every_layer_unless_the_backend_refuses(transformer, gpu):
    assert set(eligible(transformer, gpu, "fp32").values()) == {None}
    turing = replace(gpu, refusals={"fp32:MatMul": "no FP32 products here"})
    assert eligible(transformer, turing, "fp32")["linear.q0"] == "no FP32 products here"


@pytest.mark.parametrize("precision", ["int8", "int8_dynamic"])
def test_what_only_a_run_decides_stays_float_with_the_reason(model, cpu, precision):
    branching = model("""b (float[1, 32] x, bool flag) => (float[1, 32] y) {
      y = If (flag) <then_branch = yes () => (float[1, 32] t) { t = MatMul (x, weight) },
                     else_branch = no () => (float[1, 32] e) { e = Relu (x) }> }""")
    assert list(eligible(branching, cpu, precision).values()) == [
        "what is inside it stays in FP32: only a run tells which of it is computed, and how often"
    ]
    assert list(eligible(branching, cpu, "fp32").values()) == [None]
