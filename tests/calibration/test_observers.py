"""Counts are exact, and the same bits for any split, order and grouping of the data."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from calibration.density import Density
from calibration.observers import Statistics

numbers = arrays.arrays(np.float32, st.integers(0, 60), elements=st.floats(width=32))


@settings(deadline=None)
@given(numbers, st.lists(st.integers(0, 60), max_size=4), st.randoms())
def test_any_split_order_and_grouping_gives_the_same_bits(data: NDArray[np.float32], cuts: list[int], chance: object) -> None:
    whole = Statistics.of(data)
    parts = np.split(data, sorted(min(cut, data.size) for cut in cuts))
    chance.shuffle(parts)  # type: ignore[attr-defined]
    added = Statistics.nothing()
    for part in parts:
        added = added.then(part)
    merged = Statistics.nothing()
    for part in reversed(parts):
        merged = Statistics.of(part[::-1]).merge(merged)
    assert whole == added == merged
    assert math.copysign(1, whole.minimum) == math.copysign(1, merged.minimum)


@settings(deadline=None)
@given(numbers)
def test_minimum_maximum_and_counts_are_those_of_the_data(data: NDArray[np.float32]) -> None:
    seen = Statistics.of(data)
    finite = data[np.isfinite(data)]
    assert (seen.count, seen.nans, seen.infs) == (finite.size, np.isnan(data).sum(), np.isinf(data).sum())
    assert seen.counts.sum() == finite.size
    if finite.size:
        assert (seen.minimum, seen.maximum) == (finite.min(), finite.max())
    else:
        assert (seen.minimum, seen.maximum) == (math.inf, -math.inf)


@settings(deadline=None)
@given(numbers)
def test_each_number_lies_in_the_bucket_that_counts_it(data: NDArray[np.float32]) -> None:
    finite = data[np.isfinite(data)].astype(np.float64)
    low, high, mass = Statistics.of(data).intervals()
    assert (np.diff(low) >= 0).all()
    for a, b, count in zip(low, high, mass, strict=True):
        lowest = 2.0**-133
        inside = np.abs(finite) < lowest if a == b == 0 else (finite >= a) & (finite < b) if a >= 0 else (finite > a) & (finite <= b)
        assert inside.sum() == count
        assert b - a <= max(np.abs([a, b]).min() / 128, lowest)


def test_a_tensor_larger_than_a_block_and_not_contiguous_is_counted_whole() -> None:
    data = np.random.default_rng(0).standard_normal((1100, 2000), np.float32)
    assert Statistics.of(data.T) == Statistics.of(data[:, ::2]).merge(Statistics.of(data[:, 1::2]))


def test_magnitudes_are_the_statistics_of_the_absolute_values() -> None:
    data = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    found, exact = Statistics.of(data).magnitudes(), Statistics.of(np.abs(data))
    np.testing.assert_array_equal(found.buckets, exact.buckets)
    np.testing.assert_array_equal(found.counts, exact.counts)
    assert (found.maximum, found.minimum) == (exact.maximum, 0.0)
    assert Statistics.of(-np.abs(data)).magnitudes() == exact


def test_half_the_mass_lies_below_the_median_and_moments_are_those_of_the_data() -> None:
    data = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    density = Density.of(Statistics.of(data))
    points = np.linspace(-4, 4, 33)
    exact = [np.array([(data[data < point].astype(np.float64) ** power).sum() for point in points]) for power in (0, 1, 2)]
    np.testing.assert_allclose(density.below(points), exact[0], atol=100)
    for found, moment in zip(density.moments_below(points), exact, strict=True):
        np.testing.assert_allclose(found, moment, atol=200)
    np.testing.assert_allclose(density.quantiles(0.0, 0.5, 1.0), [data.min(), np.median(data), data.max()], rtol=1e-6, atol=2e-4)
