"""Factors a channel, of SmoothQuant and of cross-layer equalization: they even out what they should, and stay finite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration import equalization, smoothing

Factors = Callable[[NDArray[np.float64], NDArray[np.float64], float], NDArray[np.float64]]


def test_full_strength_evens_out_the_activation_and_none_the_weight() -> None:
    draw = np.random.default_rng(0)
    activation, weight = np.exp(draw.normal(size=30)), np.exp(draw.normal(size=30))
    np.testing.assert_allclose(np.ptp(activation / smoothing.factors(activation, weight, 1.0)), 0, atol=1e-12)
    np.testing.assert_allclose(np.ptp(weight * smoothing.factors(activation, weight, 0.0)), 0, atol=1e-12)


def test_equalization_makes_both_ranges_of_a_channel_one() -> None:
    draw = np.random.default_rng(0)
    first, second = np.exp(draw.normal(size=30)), np.exp(draw.normal(size=30))
    found = equalization.factors(first, second)
    ratio = (first / found) / (second * found)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)


@pytest.mark.parametrize("factors", [smoothing.factors, equalization.factors])
def test_a_channel_that_one_side_never_uses_keeps_factor_one_and_no_factor_overflows(factors: Factors) -> None:
    activation = np.array([0.0, 1.0, 1e-30, 1e30, 5.0])
    weight = np.array([1.0, 0.0, 1.0, 1.0, 1.0])
    found = factors(activation, weight, 0.7)
    np.testing.assert_array_equal(found[:2], 1.0)
    assert np.isfinite(found).all()
    assert (found > 0).all()
    assert found.max() / found.min() <= 2.0**32
    np.testing.assert_array_equal(factors(np.zeros(3), np.ones(3), 0.5), 1.0)
