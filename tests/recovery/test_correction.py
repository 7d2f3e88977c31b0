"""Bias correction: the mean error of each layer's output goes to about nothing, where the layer has a place for it."""

from dataclasses import replace

import numpy as np
import pytest

from optimizer.precision import typed
from optimizer.recovery.correction import correction
from optimizer.reference import Reference, simulated

LAYER = """
layer (float[1, 8, 6, 6] x) => (float[1, 12, 6, 6] y)
{
  y = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, weight)
}"""

PRODUCT = """
product (float[1, 5, 32] x) => (float[1, 5, 4] z)
{
  a = MatMul(x, weight)
  y = Add(bias, a)
  z = MatMul(y, tail)
}"""

BARE = """
bare (float[1, 5, 32] x) => (float[1, 5, 12] y)
{
  y = MatMul(x, weight)
}"""


def mean_error(model, form, plan, capability, samples):
    """The mean of each channel's error at y, root mean square over the channels."""
    exact, lowered = (Reference(graph, watch=["y"]) for graph in (model.graph, simulated(typed(form.model, plan, capability))))
    found = np.stack([lowered.run(feed)["y"].astype(np.float64) - exact.run(feed)["y"] for feed in samples])
    channel = 2 if found.ndim == 5 else found.ndim - 1
    return float(np.sqrt(np.square(found.mean(axis=tuple(a for a in range(found.ndim) if a != channel))).mean()))


KINDS = {"conv": (LAYER, {"weight": (12, 8, 3, 3)}), "matmul": (PRODUCT, {"weight": (32, 12), "bias": (12,), "tail": (12, 4)})}


@pytest.mark.parametrize(("text", "shapes"), KINDS.values(), ids=KINDS)
def test_the_mean_error_goes_to_nothing(text, shapes, model, capability, feeds, planned):
    layer = model(text, shapes)
    capability = replace(capability, weight_limit=15)  # so that there is something to correct
    samples = [{"x": np.maximum(feed["x"], 0)} for feed in feeds(layer)]
    form, plan = planned(layer, capability, samples)
    found = correction(form, plan, capability, samples)
    before, after = (mean_error(layer, one, two, capability, samples) for one, two in ((form, plan), (found.form, found.plan)))
    # What is left is the rounding of the bias or the output to integers or to FP16.
    assert after < 0.1 * before


def test_a_product_that_nothing_is_added_to_has_no_place_for_a_bias(model, inputs_only, feeds, planned):
    bare = model(BARE, {"weight": (32, 12)})
    samples = feeds(bare)
    form, plan = planned(bare, inputs_only, samples)
    assert correction(form, plan, inputs_only, samples) is None


def test_errors_without_a_mean_are_left_alone(model, inputs_only, feeds, planned):
    layer = model(LAYER, {"weight": (12, 8, 3, 3)})
    samples = feeds(layer)
    form, plan = planned(layer, inputs_only, samples)
    assert correction(form, plan, inputs_only, [*samples, *({"x": -feed["x"]} for feed in samples)]) is None


def test_a_bias_that_two_layers_share_is_corrected_for_one(model, inputs_only, feeds, planned):
    text = """
    shared (float[1, 8, 6, 6] x) => (float[1, 12, 6, 6] y, float[1, 12, 6, 6] z)
    {
      y = Conv<kernel_shape = [1, 1]>(x, weight, bias)
      z = Conv<kernel_shape = [1, 1]>(x, other, bias)
    }"""
    layer = model(text, {"weight": (12, 8, 1, 1), "other": (12, 8, 1, 1), "bias": (12,)})
    coarse = replace(inputs_only, weight_limit=15)
    samples = [{"x": np.maximum(feed["x"], 0)} for feed in feeds(layer)]
    form, plan = planned(layer, coarse, samples)
    only = replace(plan, precisions={"y": "int8", "z": "fp32"})
    found = correction(form, only, coarse, samples)
    nodes = {node.name: node for node in found.form.model.graph.graph}
    assert nodes["z"].inputs[2].name == "bias"
    assert nodes["y"].inputs[2].name != "bias"
