"""Equalization and smoothing leave the function as it is, make hard models easy for INT8, and keep away where they can't."""

import numpy as np
import pytest

from optimizer.graph import sha256
from optimizer.recovery import scaling
from optimizer.recovery.equalization import equalization
from optimizer.recovery.ranges import ranges
from optimizer.recovery.smoothing import smoothing
from optimizer.reference import float64

HARD = [("depthwise", equalization), ("encoder", smoothing)]


@pytest.mark.parametrize(("name", "step"), HARD)
def test_the_function_stays_the_same(name, step, capability, feeds, planned, request):
    model = request.getfixturevalue(name)
    samples = feeds(model)
    form, plan = planned(model, capability, samples)
    before = sha256(model.graph)
    found = step(form, plan, capability, samples)
    assert found.plan.recovery == (step.__name__,)
    assert sha256(model.graph) == before, "what was given has changed"
    for feed in feeds(model, 3, seed=9):
        for output, exact in float64(model.graph, feed).items():
            other = float64(found.form.model.graph, feed)[output]
            # Nothing but the new weights' own rounding to float32.
            np.testing.assert_allclose(other, exact, rtol=0, atol=2e-6 * np.abs(exact).max())


@pytest.mark.parametrize(("name", "step"), HARD)
def test_held_out_samples_lose_a_fraction_of_what_they_lost(name, step, capability, feeds, planned, off, request):
    model = request.getfixturevalue(name)
    samples, unseen = feeds(model), feeds(model, 16, seed=5)
    form, plan = planned(model, capability, samples)
    found = step(form, plan, capability, samples)
    assert off(model, found.form, found.plan, capability, unseen) < 0.4 * off(model, form, plan, capability, unseen)


@pytest.mark.parametrize(("name", "step"), HARD)
def test_the_same_samples_give_the_same_bits(name, step, inputs_only, feeds, planned, request):
    model = request.getfixturevalue(name)
    samples = feeds(model)
    form, plan = planned(model, inputs_only, samples)
    first, second = (step(form, plan, inputs_only, samples) for _ in range(2))
    assert sha256(first.form.model.graph) == sha256(second.form.model.graph)
    assert first.plan == second.plan


def test_factors_go_into_a_normalization_that_nobody_else_reads_and_into_a_mul_elsewhere(encoder, inputs_only, feeds, planned):
    samples = feeds(encoder)
    form, plan = planned(encoder, inputs_only, samples)
    graph = smoothing(form, plan, inputs_only, samples).form.model.graph.graph
    added = [node for node in graph if node.op_type == "Mul"]
    gain = next(node for node in graph if node.name == "n").inputs[1].const_value.numpy()
    assert gain.max() / gain.min() < 20, "the outliers are still in the normalization"
    assert [node.inputs[0].name for node in added] == ["n2"], "the residual reads n2 as it was"
    assert next(node for node in graph if node.name == "h0").inputs[0] is added[0].outputs[0]
    assert next(node for node in graph if node.name == "y").inputs[1].name == "n2"


def test_new_tensors_have_statistics_and_ranges(encoder, inputs_only, feeds, planned):
    samples = feeds(encoder)
    form, plan = planned(encoder, inputs_only, samples)
    found = smoothing(form, plan, inputs_only, samples)
    (new,) = found.plan.ranges.keys() - plan.ranges.keys()
    assert found.form.table.statistics[new].count == found.form.table.statistics["n2"].count
    assert found.plan.ranges["n"].high < 0.2 * plan.ranges["n"].high


def test_even_channels_are_left_alone(even, inputs_only, feeds, planned):
    samples = feeds(even)
    form, plan = planned(even, inputs_only, samples)
    assert smoothing(form, plan, inputs_only, samples) is None


def test_equalization_has_nothing_to_do_between_layers_that_are_no_relu_apart(encoder, inputs_only, feeds, planned):
    samples = feeds(encoder)
    form, plan = planned(encoder, inputs_only, samples)
    assert equalization(form, plan, inputs_only, samples) is None


PAIR = """
pair (float[1, 4, 6, 6] x) => (BEHIND)
<float low = {0.0}, float high = {6.0}>
{
  c = Conv<kernel_shape = [1, 1]>(x, first_weight, first_bias)
  r = ACTIVATION
  y = Conv<kernel_shape = [1, 1]>(r, second_weight)
}"""


def unequal_pair(weights):
    factor = np.geomspace(0.02, 50, 16)
    weights["first_weight"] *= factor.reshape(-1, 1, 1, 1)
    weights["first_bias"] *= factor
    weights["second_weight"] /= factor.reshape(1, -1, 1, 1)


@pytest.mark.parametrize(
    ("activation", "behind", "equalized"),
    [
        ("Relu(c)", "float[1, 16, 6, 6] y", True),
        ("LeakyRelu(c)", "float[1, 16, 6, 6] y", True),
        ("MaxPool<kernel_shape = [2, 2]>(c)", "float[1, 16, 5, 5] y", True),
        ("Clip(c, low, high)", "float[1, 16, 6, 6] y", False),
        ("Sigmoid(c)", "float[1, 16, 6, 6] y", False),
        ("Relu(c)", "float[1, 16, 6, 6] y, float[1, 16, 6, 6] r", False),
        ("Relu(c)", "float[1, 16, 6, 6] y, float[1, 16, 6, 6] c", False),
    ],
)
def test_factors_pass_what_is_homogeneous_and_read_by_nobody_else(activation, behind, equalized, model, inputs_only, feeds, planned):
    text = PAIR.replace("ACTIVATION", activation).replace("BEHIND", behind)
    weights = {"first_weight": (16, 4, 1, 1), "first_bias": (16,), "second_weight": (16, 16, 1, 1)}
    pair = model(text, weights, unequal_pair)
    samples = feeds(pair)
    form, plan = planned(pair, inputs_only, samples)
    found = equalization(form, plan, inputs_only, samples)
    assert (found is not None) == equalized
    if found is not None:
        for output, exact in float64(pair.graph, samples[0]).items():
            other = float64(found.form.model.graph, samples[0])[output]
            np.testing.assert_allclose(other, exact, rtol=0, atol=2e-6 * np.abs(exact).max())


MIXED = """
mixed (float[1, 6] x) => (float[1, 8] y, float[1, 8] z)
{
  a = MatMul(x, first_weight)
  b = Add(a, first_bias)
  r = Relu(b)
  y = Gemm<transB = 1>(r, second_weight, second_bias)
  z = MatMul(r, third_weight)
}"""


def test_a_product_with_its_add_is_a_source_for_several_readers(model, inputs_only, feeds, planned):
    shapes = {"first_weight": (6, 24), "first_bias": (24,), "second_weight": (8, 24), "second_bias": (8,), "third_weight": (24, 8)}

    def change(weights):
        factor = np.geomspace(0.02, 50, 24)
        weights["first_weight"] *= factor
        weights["first_bias"] *= factor
        weights["second_weight"] /= factor
        weights["third_weight"] /= factor[:, None]

    mixed = model(MIXED, shapes, change)
    samples = feeds(mixed)
    form, plan = planned(mixed, inputs_only, samples)
    found = equalization(form, plan, inputs_only, samples)
    for output, exact in float64(mixed.graph, samples[0]).items():
        other = float64(found.form.model.graph, samples[0])[output]
        np.testing.assert_allclose(other, exact, rtol=0, atol=2e-6 * np.abs(exact).max())


def test_ranges_help_where_a_method_cuts_off_a_tail_that_matters_little(depthwise, inputs_only, feeds, planned, off):
    samples = feeds(depthwise)
    samples[0]["x"][0, 0, 0, 0] = 200.0  # one wild number
    form, plan = planned(depthwise, inputs_only, samples)
    clean = samples[1:9]
    found = ranges(form, plan, inputs_only, clean)
    assert found.plan.ranges["x"].method != "minmax"
    assert found.plan.ranges["x"].high < 20
    assert off(depthwise, found.form, found.plan, inputs_only, clean) < 0.9 * off(depthwise, form, plan, inputs_only, clean)


RECURRENT = """
recurrent (float[4, 1, 8] x) => (float[1, 1, 16] state, float[4, 1, 8] m)
{
  n = LayerNormalization<axis = -1>(x, scale, shift)
  m = MatMul(n, weight)
  , state, cell = LSTM<hidden_size = 16>(n, w, r)
}"""

RECURRENT_WEIGHTS = {"scale": (8,), "shift": (8,), "weight": (8, 8), "w": (1, 64, 8), "r": (1, 64, 16)}


def test_ranges_are_compared_at_a_layer_whose_first_output_is_left_out(model, inputs_only, feeds, planned):
    recurrent = model(RECURRENT, RECURRENT_WEIGHTS)
    samples = feeds(recurrent)
    form, plan = planned(recurrent, inputs_only, samples)
    assert "n" in plan.ranges
    found = ranges(form, plan, inputs_only, samples)
    assert found is None or found.plan.recovery == ("ranges",)


def test_places_are_compared_in_parts_where_their_weights_are_large(encoder, inputs_only, feeds, planned, monkeypatch):
    samples = feeds(encoder)
    form, plan = planned(encoder, inputs_only, samples)
    whole = smoothing(form, plan, inputs_only, samples)
    monkeypatch.setattr(scaling, "_BYTES", 1)
    parts = smoothing(form, plan, inputs_only, samples)
    assert sha256(parts.form.model.graph) == sha256(whole.form.model.graph)
    assert parts.plan == whole.plan
