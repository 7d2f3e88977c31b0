"""Layers that half precision or 8 bits would ruin: each wrong in numbers where the plan ignores it, right where it does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from calibration.observers import Statistics
from optimizer.model import Model
from optimizer.plan import Capability, Plan
from optimizer.precision import hazards, typed
from optimizer.reference import Reference, simulated

Arrays = dict[str, np.ndarray]


def observed(model: Model, feeds: Arrays) -> dict[str, Statistics]:
    """What calibration would see of every float tensor on these feeds."""
    made = [value.name for node in model.graph.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
    seen = Reference(model.graph, watch=made).run(feeds)
    return {name: Statistics.of(array) for name, array in {**feeds, **seen}.items() if array.dtype == np.float32}


def error(model: Model, plan: Plan, capability: Capability, feeds: Arrays) -> float:
    """The relative error of `y` in the simulation of a plan; inf where a number is not finite."""
    exact = Reference(model.graph).run(feeds)["y"].astype(np.float64)
    found = Reference(simulated(typed(model, plan, capability))).run(feeds)["y"].astype(np.float64)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact)) if np.isfinite(found).all() else np.inf


Check = Callable[..., dict[str, str]]


@pytest.fixture
def check(gpu: Capability) -> Check:
    """Checks that all in `precision` is wrong and that it is right with the hazards in FP32; returns these."""

    def run(model: Model, feeds: Arrays, precision: str, wrong: float, right: float) -> dict[str, str]:
        plan = Plan("any", "gpu", precision)
        found = hazards(model, observed(model, feeds), precision)
        assert error(model, plan, gpu, feeds) > wrong
        for layer, why in found.items():
            plan = plan.with_precision([layer], "fp32", why)
        assert error(model, plan, gpu, feeds) < right
        return found

    return run


VARIANCE = """g (float[4, 64] x) => (float[4, 1] y) <int64[1] axis = {1}, float two = {2}> {
  c = Relu(x)  q = SQUARE  e = ReduceMean(q, axis)  m = ReduceMean(c, axis)  mm = Mul(m, m)  v = Sub(e, mm)  y = Sqrt(v) }"""


@pytest.mark.parametrize("square", ["Mul(c, c)", "Pow(c, two)"])
def test_a_variance_of_squares_less_a_square_stays_in_float(model, check: Check, square: str) -> None:
    feeds = {"x": (8 + np.random.default_rng(0).standard_normal((4, 64)) * 0.6).astype(np.float32)}
    found = check(model(VARIANCE.replace("SQUARE", square)), feeds, "bf16", wrong=0.1, right=0.01)
    assert found.keys() == {"q", "e", "m", "mm", "v"}
    assert "v is a variance" in found["q"]


def test_what_the_variance_is_of_stays_in_float_too_where_its_mean_outgrows_its_spread(model, check: Check) -> None:
    feeds = {"x": (100 + np.random.default_rng(0).standard_normal((4, 64)) * 0.5).astype(np.float32)}
    found = check(model(VARIANCE.replace("SQUARE", "Mul(c, c)")), feeds, "bf16", wrong=0.1, right=0.02)
    assert "times as large as their spread" in found["c"]


SAFE = """g (float[4, 64] x) => (float[4, 1] y) <int64[1] axis = {1}> {
  m = ReduceMean(x, axis)  d = Sub(x, m)  q = Mul(d, d)  v = ReduceMean(q, axis)  y = Sqrt(v) }"""


def test_the_safe_form_of_a_variance_is_no_hazard(model) -> None:
    safe = model(SAFE)
    feeds = {"x": (8 + np.random.default_rng(0).standard_normal((4, 64)) * 0.8).astype(np.float32)}
    assert hazards(safe, observed(safe, feeds), "bf16") == {}
    assert hazards(safe, {}, "bf16") == hazards(safe, {}, "fp16") == {}


def test_a_difference_that_leaves_little_of_what_it_reads_gets_it_unrounded(model, check: Check) -> None:
    text = """g (float[4, 64] x, float[4, 64] z) => (float[4, 64] y) { a = Relu(x)  b = Relu(z)  d = Sub(a, b)  y = Tanh(d) }"""
    rng = np.random.default_rng(0)
    x = rng.uniform(100, 200, (4, 64)).astype(np.float32)
    near = {"x": x, "z": (x + rng.standard_normal((4, 64)) * 0.3).astype(np.float32)}
    found = check(model(text), near, "bf16", wrong=0.3, right=0.01)
    assert found.keys() == {"a", "b", "d"}
    far = model(text)
    assert hazards(far, observed(far, {"x": x, "z": x[::-1].copy()}), "bf16") == {}


POSITIONS = """g (float[1] x) => (float[600, 8] y)
<float zero = {0}, float one = {1}, float end = {600}, int64[1] last = {1},
 float[1, 8] frequency = {1, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.01}> {
  p = Range(zero, end, one)  r = Unsqueeze(p, last)  a = MatMul(r, frequency)  s = Sin(a)  y = Mul(s, x) }"""


def test_the_angles_of_positions_stay_in_float(model, check: Check) -> None:
    feeds = {"x": np.ones(1, np.float32)}
    found = check(model(POSITIONS), feeds, "bf16", wrong=0.2, right=0.01)
    assert found.keys() >= {"linear.a", "s"}
    small = model("g (float[1, 8] x) => (float[1, 8] y) { y = Sin(x) }")
    assert hazards(small, observed(small, {"x": np.linspace(-3, 3, 8, dtype=np.float32)[None]}), "bf16") == {}


def test_a_large_exponent_stays_in_float_and_a_small_one_need_not(model, check: Check) -> None:
    network = model("g (float[1, 64] x) => (float[1, 64] y) { a = Relu(x)  y = Exp(a) }")
    found = check(network, {"x": np.linspace(20, 40, 64, dtype=np.float32)[None]}, "bf16", wrong=0.03, right=0.01)
    assert found.keys() == {"a", "y"}
    assert hazards(network, observed(network, {"x": np.linspace(-40, 4, 64, dtype=np.float32)[None]}), "bf16") == {}


@pytest.mark.parametrize(
    ("precision", "terms", "hazard"), [("bf16", 256, False), ("bf16", 300, True), ("fp16", 2048, False), ("fp16", 3000, True)]
)
def test_a_running_sum_stays_in_float_where_it_outgrows_its_terms(model, precision: str, terms: int, hazard: bool) -> None:
    network = model(f"g (float[1, {terms}] x) => (float[1, {terms}] y) <int64 axis = {{1}}> {{ y = CumSum(x, axis) }}")
    found = hazards(network, {}, precision)
    assert bool(found) == hazard
    dtype = {"bf16": ir.DataType.BFLOAT16, "fp16": ir.DataType.FLOAT16}[precision].numpy()
    counted = np.arange(1, terms + 1, dtype=np.float32)
    assert bool((counted.astype(dtype).astype(np.float32) != counted).any()) == hazard


def test_long_sums_stay_in_float_and_means_and_short_ones_need_not(model) -> None:
    text = "g (float[2, {n}] x) => (float[2, 1] y) <int64[1] axis = {{1}}> {{ y = {operator}(x, axis) }}"
    for operator, n, hazard in (
        ("ReduceSum", 4096, True),
        ("ReduceSum", 1024, False),
        ("ReduceMean", 4096, False),
        ("ReduceL2", 4096, True),
    ):
        assert bool(hazards(model(text.format(operator=operator, n=n)), {}, "bf16")) == hazard, (operator, n)


MASKED = """g (float[1, 4, 16] x, float[1, 1, 16] keep) => (float[1, 4, 16] y) <float one = {1}, float far = {-3.4028235e38}> {
  n = Sub(one, keep)  mask = Mul(n, far)  s = Add(x, mask)  y = Softmax<axis = -1>(s) }"""


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_mask_beyond_the_type_is_brought_within_where_only_a_softmax_reads_it(model, gpu: Capability, precision: str) -> None:
    network = model(MASKED)
    keep = np.ones((1, 1, 16), np.float32)
    keep[..., 9:] = 0
    x = np.random.default_rng(0).standard_normal((1, 4, 16)).astype(np.float32)
    assert hazards(network, observed(network, {"x": x, "keep": keep}), precision) == {}
    for kept in (keep, np.zeros_like(keep), np.ones_like(keep)):
        feeds = {"x": x, "keep": kept}
        assert error(network, Plan("any", "gpu", precision), gpu, feeds) < 0.02, "also where a whole row is masked"
    graph = typed(network, Plan("any", "gpu", precision), gpu)
    assert "s" not in {value.name for node in graph.graph for value in node.outputs}, "another number, another name"
    assert {value.name for node in typed(network, Plan("any", "gpu", "fp32"), gpu).graph for value in node.outputs} >= {"s", "mask"}


def test_a_mask_that_leaves_the_model_stays_as_it_is_in_float(model, gpu: Capability) -> None:
    network = model(MASKED.replace("y = Softmax", "y = LogSoftmax"))
    found = hazards(network, {}, "bf16")
    assert found.keys() == {"mask", "s", "y"}
    keep = np.zeros((1, 1, 16), np.float32)
    feeds = {"x": np.zeros((1, 4, 16), np.float32), "keep": keep}
    plan = Plan("any", "gpu", "bf16")
    for layer, why in found.items():
        plan = plan.with_precision([layer], "fp32", why)
    assert error(network, plan, gpu, feeds) < 1e-6


NORMALIZED = """g (float[1, 4, 64] x) => (float[1, 4, 64] y) <float[4] s = {1, 1, 1, 1}> {
  y = InstanceNormalization<epsilon = EPSILON>(x, s, s) }"""


def test_a_normalization_whose_squares_outgrow_fp16_inside_is_told(model) -> None:
    network = model(NORMALIZED.replace("EPSILON", "0.00001"))
    x = np.random.default_rng(0).uniform(-1, 1, (1, 4, 64)).astype(np.float32)
    with np.errstate(over="ignore"):
        assert np.isinf((np.float16(300) * x.astype(np.float16)) ** 2).any()
    assert "inside" in hazards(network, observed(network, {"x": x * 300}), "fp16")["y"]
    assert hazards(network, observed(network, {"x": x * 100}), "fp16") == {}
    assert hazards(network, observed(network, {"x": x * 300}), "bf16") == {}


def test_an_epsilon_that_is_zero_in_fp16_is_told_though_it_is_an_attribute(model) -> None:
    network = model(NORMALIZED.replace("EPSILON", "1e-12"))
    assert "epsilon" in hazards(network, {}, "fp16")["y"]
    assert hazards(network, {}, "bf16") == {}


def test_a_division_by_what_fp16_takes_for_zero_stays_in_float_with_what_writes_it(model, check: Check) -> None:
    network = model("g (float[1, 64] x) => (float[1, 64] y) { q = Mul(x, x)  r = Reciprocal(q)  y = Tanh(r) }")
    feeds = {"x": np.linspace(5e-5, 0.5, 64, dtype=np.float32)[None]}
    found = check(model("g (float[1, 64] x) => (float[1, 64] y) { q = Mul(x, x)  y = Log(q) }"), feeds, "fp16", wrong=1e9, right=0.02)
    assert found.keys() == {"q", "y"}
    assert hazards(network, observed(network, feeds), "bf16") == {}


def test_int8_is_kept_from_a_range_that_a_mask_decides(model) -> None:
    network = model(MASKED.replace("-3.4028235e38", "-10000"))
    keep = np.ones((1, 1, 16), np.float32)
    keep[..., 9:] = 0
    x = np.random.default_rng(0).standard_normal((1, 4, 16)).astype(np.float32)
    assert hazards(network, observed(network, {"x": x, "keep": keep}), "int8").keys() == {"s"}
    assert hazards(network, observed(network, {"x": x, "keep": np.ones_like(keep)}), "int8") == {}


FRONT_END = """g (float[4, 64] x) => (float[4, 16] y) <float least = {1e-6}> {
  p = Mul(x, x)  m = MatMul(p, bands)  s = Add(m, least)  y = Log(s) }"""


def test_int8_is_kept_from_the_front_end_of_a_logarithm(model, cpu: Capability, ranged, sqnr) -> None:
    network = model(FRONT_END, {"bands": (64, 16)})
    weight = network.graph.graph.initializers["bands"]
    weight.const_value = ir.tensor(np.abs(weight.const_value.numpy()), name="bands")
    rng = np.random.default_rng(0)
    feeds = {"x": (10.0 ** rng.uniform(-3, 0, (4, 64)) * np.where(np.arange(4) < 3, 1e-2, 1)[:, None]).astype(np.float32)}
    found = hazards(network, observed(network, feeds), "int8")
    assert found.keys() == {"linear.m"}
    assert "(Log) makes much of little" in found["linear.m"]
    plan = ranged(network, Plan("any", "cpu", "fp32").with_precision(["linear.m"], "int8", ""), cpu, feeds)
    exact = Reference(network.graph).run(feeds)["y"]
    assert sqnr(exact, Reference(typed(network, plan, cpu)).run(feeds)["y"]) < 15, "what the plan without it gives"


def test_int8_is_kept_from_a_tensor_that_a_few_numbers_outgrow(model) -> None:
    network = model("g (float[4, 64] x) => (float[4, 16] y) { y = MatMul(x, weight) }", {"weight": (64, 16)})
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    assert hazards(network, observed(network, {"x": x}), "int8") == {}
    x[0, 0] = 2000
    assert "round" in hazards(network, observed(network, {"x": x}), "int8")["linear.y"]
    assert hazards(network, observed(network, {"x": x}), "int8_dynamic").keys() == {"linear.y"}


def test_networks_as_they_are_have_none(residual: Model, transformer: Model, recommender: Model, recurrent: Model, samples) -> None:
    for model in (residual, transformer, recommender, recurrent):
        feeds = {name: np.abs(array) if model is recommender else array for name, array in samples(model).items()}
        for precision in ("bf16", "fp16", "int8", "int8_dynamic", "fp32"):
            assert hazards(model, observed(model, feeds), precision) == {}


def test_statistics_of_nothing_and_of_infinities_are_no_hazard(model) -> None:
    network = model("g (float[1, 4] x) => (float[1, 4] y) { a = Sub(x, x)  b = Add(a, x)  y = Sin(b) }")
    empty = Statistics.nothing()
    infinite = Statistics.of(np.full(4, np.inf, np.float32))
    zero = Statistics.of(np.zeros(4, np.float32))
    for seen in (empty, infinite, zero):
        for precision in ("bf16", "fp16", "int8"):
            assert hazards(network, dict.fromkeys(("x", "a", "b", "y"), seen), precision) == {}
