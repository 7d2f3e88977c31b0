"""The numbers of quantized weights."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from optimizer.precision import weights

SEEDS = st.integers(0, 10_000)


def drawn(seed: int, spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((8, 5, 3)) * np.exp(rng.normal(0, spread, (8, 1, 1)))).astype(np.float32)


@given(SEEDS, st.sampled_from([0, 1, 2]), st.sampled_from([63, 127]))
def test_a_weight_is_off_by_half_a_step_of_its_channel_at_most(seed: int, axis: int, limit: int):
    weight = drawn(seed)
    integers, scale = weights.per_channel(weight, axis, "minmax", limit)
    found = integers * np.moveaxis(scale[:, None, None], 0, axis)
    assert scale.dtype == np.float32
    assert np.abs(integers.astype(int)).max() == limit
    assert (np.abs(found - weight) <= np.moveaxis(scale[:, None, None], 0, axis) * 0.5001).all()


@given(SEEDS, st.sampled_from([np.float32, np.float16]))
def test_a_weight_with_ratios_is_as_exact_as_one_with_a_scale_a_channel(seed: int, half: type):
    weight = drawn(seed, spread=2)
    integers, scale, ratios = weights.with_ratios(weight, 0, "minmax", 127, half)
    assert (ratios.astype(half) == ratios).all()
    error = np.abs(integers * (scale * ratios)[:, None, None] - weight).max(axis=(1, 2))
    assert (error <= np.abs(weight).max(axis=(1, 2)) / 127 * 0.52).all()


@given(SEEDS)
def test_ratios_lie_around_one(seed: int):
    ratios = weights.with_ratios(drawn(seed), 0, "minmax", 127, np.float16)[2]
    np.testing.assert_allclose(np.exp(np.log(ratios).mean()), 1, rtol=1e-2)


def test_a_channel_of_zeros_has_scale_one_and_does_not_move_the_others():
    weight = drawn(0)
    weight[3] = 0
    integers, scale, ratios = weights.with_ratios(weight, 0, "minmax", 127, np.float16)
    assert not integers[3].any()
    assert ratios[3] == 1
    others = [0, 1, 2, 4, 5, 6, 7]
    np.testing.assert_array_equal(integers[others], weights.with_ratios(weight[others], 0, "minmax", 127, np.float16)[0])
    assert weights.per_channel(weight, 0, "minmax", 127)[1][3] == 1
    assert np.isfinite(scale)


def test_a_bias_never_leaves_int32():
    weight, bias = drawn(0), np.array([0, 1, -1, 1e6, -1e6, 1e-3, 5, 1e9], np.float32)
    activation = np.float32(1e-4)
    scale = weights.per_channel(weight * np.float32(1e-6), 0, "minmax", 127, weights.smallest_scale(bias, activation))[1]
    integers = weights.integer_bias(bias, scale * activation)
    assert integers.dtype == np.int32
    np.testing.assert_allclose(integers * (scale * activation).astype(np.float64), bias, rtol=1e-6, atol=1e-6)
