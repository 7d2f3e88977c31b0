"""Weight ranges per channel: exact maxima, and squared error close to that of a dense brute force."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.ranges import weight_ranges
from optimizer.errors import InputError


def error(weight: NDArray[np.float32], ranges: NDArray[np.float32], limit: int) -> NDArray[np.float64]:
    scale = (ranges / limit)[:, None]
    return ((np.clip(np.rint(weight / scale), -limit, limit) * scale - weight).astype(np.float64) ** 2).sum(axis=1)


def test_minmax_is_the_largest_magnitude_along_any_axis() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3, 5, 5)).astype(np.float32)
    np.testing.assert_array_equal(weight_ranges(weight, 0, "minmax"), np.abs(weight).max(axis=(1, 2, 3)))
    np.testing.assert_array_equal(weight_ranges(weight, 1, "minmax"), np.abs(weight).max(axis=(0, 2, 3)))
    np.testing.assert_array_equal(weight_ranges(weight, -1, "minmax"), np.abs(weight).max(axis=(0, 1, 2)))


@pytest.mark.parametrize("kind", ["normal", "laplace", "student"])
@pytest.mark.parametrize(("size", "limit"), [(9, 127), (64, 127), (576, 127), (576, 63), (4608, 127)])
def test_mse_costs_at_most_a_hundredth_more_than_the_best_of_two_thousand_ranges(kind: str, size: int, limit: int) -> None:
    draw = np.random.default_rng(size)
    numbers = {"normal": draw.standard_normal, "laplace": lambda s: draw.laplace(size=s), "student": lambda s: draw.standard_t(3, size=s)}
    weight = numbers[kind]((48, size)).astype(np.float32)
    largest = np.abs(weight).max(axis=1)
    best = np.min([error(weight, largest * share, limit) for share in np.linspace(0.2, 1, 2000, dtype=np.float32)], axis=0)
    found = error(weight, weight_ranges(weight, 0, "mse", limit), limit)
    assert found.sum() <= 1.01 * best.sum()
    assert (found <= error(weight, largest, limit) * (1 + 1e-4)).all()


def test_blocks_do_not_change_a_channel() -> None:
    weight = np.random.default_rng(0).standard_normal((700, 300)).astype(np.float32)
    np.testing.assert_array_equal(weight_ranges(weight, 0, "mse")[650:], weight_ranges(weight[650:], 0, "mse"))


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_a_channel_of_zeros_has_range_zero_and_broken_weights_are_refused(method: str) -> None:
    weight = np.ones((3, 4), np.float32)
    weight[1] = 0
    assert weight_ranges(weight, 0, method)[1] == 0
    weight[2, 2] = np.nan
    with pytest.raises(InputError, match="NaN"):
        weight_ranges(weight, 0, method)
