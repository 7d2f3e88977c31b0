"""AdaRound: each weight goes to one of its two neighbours on the grid, so that the layer's output stays nearer."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.adaround import adaround
from calibration.gptq import layer_error


@pytest.mark.parametrize(("groups", "channels", "inputs"), [(1, 12, 40), (16, 1, 9)])
def test_it_picks_neighbours_and_leaves_less_error_than_nearest(groups: int, channels: int, inputs: int) -> None:
    draw = np.random.default_rng(0)
    mixed = draw.standard_normal((groups, inputs, inputs)) / np.sqrt(inputs) + 0.3 * np.eye(inputs)
    rows = np.maximum(draw.standard_normal((groups, 400, inputs)) @ mixed, 0)
    moments = rows.transpose(0, 2, 1) @ rows / 400
    weight = draw.standard_normal((groups, channels, inputs))
    scale = np.abs(weight).max(axis=2) / 63
    found = adaround(weight, moments, scale, 63)
    exact = weight / scale[:, :, None]
    assert ((found == np.floor(exact)) | (found == np.floor(exact) + 1) | (np.abs(found) == 63)).all()
    left = layer_error(found * scale[:, :, None] - weight, moments).sum()
    usual = layer_error(np.rint(exact) * scale[:, :, None] - weight, moments).sum()
    assert left < 0.85 * usual
    np.testing.assert_array_equal(adaround(weight, moments, scale, 63), found)


def test_weights_that_lie_on_the_grid_stay_and_data_of_zeros_does_no_harm() -> None:
    weight = np.random.default_rng(0).integers(-63, 64, (1, 4, 8)) * 0.5
    scale = np.full((1, 4), 0.5)
    np.testing.assert_array_equal(adaround(weight, np.eye(8)[None], scale, 63) * 0.5, weight)
    assert np.abs(adaround(weight + 0.1, np.zeros((1, 8, 8)), scale, 63)).max() <= 63
