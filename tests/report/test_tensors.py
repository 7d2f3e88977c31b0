"""A tensor's histogram is that of its values, and tells what its range clips."""

from __future__ import annotations

import numpy as np

from calibration.observers import Statistics
from calibration.ranges import Range
from optimizer.report.tensors import tensor_report_from


def test_the_bins_are_the_shares_of_the_values() -> None:
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    found = tensor_report_from("relu", "layer1.relu", Statistics.of(values), Range("mse", -2.0, 2.0))
    exact, _ = np.histogram(values, bins=len(found.bins), range=(found.minimum, found.maximum))
    np.testing.assert_allclose(found.bins, exact / len(values), atol=2e-3)
    np.testing.assert_allclose(sum(found.bins), 1.0, atol=1e-4)
    np.testing.assert_allclose(found.clipped, np.mean(np.abs(values) > 2), atol=1e-3)


def test_a_range_that_covers_everything_clips_nothing() -> None:
    seen = Statistics.of(np.array([0.0, 0.0, 6.0, 6.0], np.float32))
    assert tensor_report_from("relu6", "", seen, Range("minmax", 0.0, 6.0)).clipped == 0.0
    assert tensor_report_from("relu6", "", seen, Range("mse", 0.0, 3.0)).clipped == 0.5


def test_a_tensor_of_one_value_has_a_histogram_too() -> None:
    found = tensor_report_from("constant", "", Statistics.of(np.full(10, 2.5, np.float32)), Range("minmax", 0.0, 2.5))
    assert (found.minimum, found.maximum, found.clipped) == (2.5, 2.5, 0.0)
    assert sum(found.bins) == 1.0
