"""Positions, codes and counts that are carried in floats stay exact: BF16 counts to 256, FP16 to 2,048."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.plan import Capability, Plan
from optimizer.precision import eligible, typed
from optimizer.reference import Reference, simulated

LENGTHS = """g (float[1, 400] x, int64[1] length) => (float[1, 400] y)
<float zero = {0}, float one = {1}, float end = {400}, float half = {0.5}> {
  p = Range(zero, end, one)  n = Cast<to = 1>(length)  shifted = Add(p, half)  inside = Less(shifted, n)
  z = Sub(x, x)  y = Where(inside, x, z) }"""

ROUND_TRIP = """g (float[1, 8] x, int64[1, 8] ids) => (float[1, 8] y)
<float[3000] table = {TABLE}, float one = {1}, int64 most = {2999}> {
  f = Cast<to = 1>(ids)  next = Add(f, one)  i = Cast<to = 7>(next)  k = Min(i, most)  r = Gather(table, k)  y = Mul(r, x) }"""


def wrong(model, capability: Capability, precision: str, feeds: dict[str, np.ndarray], forced: frozenset[str] = frozenset()) -> float:
    """The largest error of `y` with everything in `precision` that can be; `forced` names layers to leave in FP32."""
    verdicts = eligible(model, capability, precision)
    plan = Plan("any", "gpu", precision)
    for layer in {name for name, why in verdicts.items() if why is not None} | forced:
        plan = plan.with_precision([layer], "fp32", "")
    exact = Reference(model.graph).run(feeds)["y"]
    return float(np.abs(Reference(simulated(typed(model, plan, capability))).run(feeds)["y"] - exact).max())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_positions_that_are_compared_with_a_length_stay_exact(model, gpu: Capability, precision: str) -> None:
    network = model(LENGTHS)
    told = eligible(network, gpu, precision)
    assert "exact" in told["shifted"]
    assert told["z"] is None
    feeds = {"x": np.ones((1, 400), np.float32), "length": np.array([300])}
    assert wrong(network, gpu, precision, feeds) == 0


def test_in_bf16_they_would_have_taken_another_length() -> None:
    """What the rule prevents, in numbers: BF16 has no 299.5."""
    positions = np.arange(400, dtype=np.float32) + 0.5
    rounded = positions.astype(ir.DataType.BFLOAT16.numpy()).astype(np.float32)
    assert (positions < 300).sum() != (rounded < 300).sum()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_codes_that_go_through_floats_stay_exact(model, gpu: Capability, precision: str) -> None:
    network = model(ROUND_TRIP.replace("TABLE", ", ".join(str(number) for number in range(3000))))
    assert "exact" in eligible(network, gpu, precision)["next"]
    feeds = {"x": np.ones((1, 8), np.float32), "ids": np.array([[1, 255, 257, 513, 1001, 2047, 2049, 2500]])}
    exact = Reference(network.graph).run(feeds)["y"]
    np.testing.assert_array_equal(exact, feeds["ids"] + 1)
    assert wrong(network, gpu, precision, feeds, frozenset({"r", "y"})) == 0


def test_a_float_that_no_integer_made_may_be_compared_in_half_precision(model, gpu: Capability) -> None:
    network = model("g (float[1, 8] x) => (bool[1, 8] y) <float half = {0.5}> { s = Sigmoid(x)  t = Mul(s, s)  y = Greater(t, half) }")
    assert eligible(network, gpu, "bf16")["t"] is None


def test_an_image_that_becomes_integers_again_was_computed(model, gpu: Capability) -> None:
    network = model(
        """g (float[1, 3, 8, 8] x) => (uint8[1, 3, 8, 8] y) <float most = {255}> {
          c = Conv(x, weight)  s = Sigmoid(c)  b = Mul(s, most)  y = Cast<to = 2>(b) }""",
        {"weight": (3, 3, 1, 1)},
    )
    assert eligible(network, gpu, "bf16") == {"conv.c": None, "s": None, "b": None}
