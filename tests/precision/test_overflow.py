"""Layers that half precision can't hold, found from what calibration saw."""

import numpy as np
import onnx_ir as ir
import pytest

from calibration.observers import Statistics
from optimizer.plan import Plan
from optimizer.precision import overflowing, typed
from optimizer.reference import Reference, simulated

CHAIN = """g (float[4, 64] x) => (float[4, 64] y) {
  h = MatMul(x, weight)  r = Relu(h)  n = LayerNormalization(r, gain)  y = Sigmoid(n) }"""


@pytest.fixture
def chain(model, samples):
    """A model whose product reaches `peak`, its feeds, and the statistics of its tensors."""

    def build(peak: float):
        loud = model(CHAIN, {"weight": (64, 64), "gain": (64,)})
        feeds = samples(loud)
        weight = loud.graph.graph.initializers["weight"]
        reached = np.abs(Reference(loud.graph, watch=["h"]).run(feeds)["h"]).max()
        weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(peak / reached), name="weight")
        seen = Reference(loud.graph, watch=["h", "r", "n", "y"]).run(feeds)
        return loud, feeds, {name: Statistics.of(array) for name, array in {**feeds, **seen}.items()}

    return build


def test_every_layer_that_touches_a_tensor_beyond_fp16_is_told_with_its_reason(chain):
    model, _feeds, statistics = chain(135_000)
    found = overflowing(model, statistics, "fp16")
    assert found.keys() >= {"linear.h", "r"}
    assert "y" not in found
    assert "h reaches 135000" in found["linear.h"]


def test_new_data_may_reach_twice_as_far_as_calibration_did(chain):
    model, _feeds, statistics = chain(40_000)
    assert "linear.h" in overflowing(model, statistics, "fp16")
    model, _feeds, statistics = chain(30_000)
    assert overflowing(model, statistics, "fp16") == {}


def test_bf16_overflows_nowhere(chain):
    model, _feeds, statistics = chain(135_000)
    assert overflowing(model, statistics, "bf16") == {}
    assert overflowing(model, statistics, "int8") == {}


def test_with_those_layers_in_float_the_simulation_is_finite_and_close(chain, gpu, sqnr):
    model, feeds, statistics = chain(135_000)
    plan = Plan("any", "gpu", "fp16")
    assert not np.isfinite(Reference(simulated(typed(model, plan, gpu)), watch=("r",)).run(feeds)["r"]).all()
    for layer, reason in overflowing(model, statistics, "fp16").items():
        plan = plan.with_precision([layer], "fp32", reason)
    found = Reference(simulated(typed(model, plan, gpu))).run(feeds)["y"]
    assert sqnr(Reference(model.graph).run(feeds)["y"], found) > 55


@pytest.mark.parametrize(("number", "words"), [(-3e38, "reaches 3e+38; FLOAT16 holds 65504"), (1e-12, "1e-12, is 0 in FLOAT16")])
def test_a_constant_that_fp16_can_not_hold_is_told(number, words, model):
    assert words in overflowing(_shifted(model, number), {}, "fp16")["y"]


@pytest.mark.parametrize("number", [0.0, 1e-5, np.inf])
def test_a_constant_that_fp16_holds_is_no_reason(number, model):
    assert overflowing(_shifted(model, number), {}, "fp16") == {}


def _shifted(model, number):
    shifted = model("g (float[1, 8] x) => (float[1, 8] y) <float shift = {0}> { y = Add(x, shift) }")
    shifted.graph.graph.initializers["shift"].const_value = ir.tensor(np.float32(number), name="shift")
    return shifted


def test_a_logarithm_of_what_a_small_constant_keeps_from_zero_stays_float(model, gpu):
    logarithm = model(
        """g (float[1, 8] x) => (float[1, 8] y) <float epsilon = {1e-10}> {
          safe = Add(x, epsilon)
          l = Log(safe)
          y = Relu(l)
        }"""
    )
    feeds = {"x": np.zeros((1, 8), np.float32)}
    found = overflowing(logarithm, {}, "fp16")
    assert set(found) == {"safe", "l"}
    plan = Plan("any", "gpu", "fp16")
    assert set(overflowing(logarithm, {}, "bf16")) == set()
    wrong = typed(logarithm, plan.with_precision(["safe"], "fp32", ""), gpu)
    right = typed(logarithm, plan.with_precision(["safe", "l"], "fp32", ""), gpu)
    assert not np.isfinite(Reference(simulated(wrong), watch=("l",)).run(feeds)["l"]).all()
    assert np.isfinite(Reference(simulated(right), watch=("l",)).run(feeds)["l"]).all()
