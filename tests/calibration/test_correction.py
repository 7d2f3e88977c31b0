"""Bias correction: the mean of the output error, from the weight's error or from outputs, leaves the bias."""

from __future__ import annotations

import numpy as np

from calibration.correction import Shift, shift


def test_the_shift_of_a_weight_is_the_mean_of_what_it_does_to_the_output() -> None:
    draw = np.random.default_rng(0)
    rows, difference = draw.standard_normal((2, 40, 6)) + 1, draw.standard_normal((2, 3, 6))
    np.testing.assert_allclose(shift(difference, rows.mean(axis=1)), (rows @ difference.transpose(0, 2, 1)).mean(axis=1), rtol=1e-12)


def test_a_bias_is_corrected_by_the_mean_over_all_samples() -> None:
    found = Shift.of(np.array([1.0, -2.0], np.float32)).merge(Shift.of(np.array([3.0, 0.0], np.float32)))
    corrected = found.corrected(np.array([10.0, 10.0]))
    assert corrected.dtype == np.float32
    np.testing.assert_array_equal(corrected, [8.0, 11.0])
    assert found.square == 5.0
