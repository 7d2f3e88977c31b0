"""GPTQ: integers that leave less of a layer's error than rounding to nearest, for whatever the data's moments are."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration import gptq as method
from calibration.gptq import gptq, layer_error

Floats = NDArray[np.float64]


def layer(groups: int, channels: int, inputs: int, seed: int = 0) -> tuple[Floats, Floats]:
    """A weight and the moments of inputs that hang together, as they do behind a Relu."""
    draw = np.random.default_rng(seed)
    mixed = draw.standard_normal((groups, inputs, inputs)) / np.sqrt(inputs) + 0.3 * np.eye(inputs)
    rows = np.maximum(draw.standard_normal((groups, 8 * inputs, inputs)) @ mixed, 0)
    return draw.standard_normal((groups, channels, inputs)), rows.transpose(0, 2, 1) @ rows / rows.shape[1]


def nearest(weight: Floats, scale: Floats, limit: int) -> Floats:
    return np.clip(np.rint(weight / scale[:, :, None]), -limit, limit)


@pytest.mark.parametrize("limit", [127, 63, 7])
@pytest.mark.parametrize(("groups", "channels", "inputs"), [(1, 16, 200), (24, 1, 9), (4, 8, 36)])
def test_it_leaves_less_error_than_nearest(groups: int, channels: int, inputs: int, limit: int) -> None:
    weight, moments = layer(groups, channels, inputs)
    scale = np.abs(weight).max(axis=2) / limit
    found = gptq(weight, moments, scale, limit)
    assert found.dtype == np.int8
    assert found.shape == weight.shape
    assert np.abs(found).max() <= limit
    left = layer_error(found * scale[:, :, None] - weight, moments).sum()
    usual = layer_error(nearest(weight, scale, limit) * scale[:, :, None] - weight, moments).sum()
    assert left < 0.75 * usual


def test_inputs_that_do_not_hang_together_are_rounded_to_nearest() -> None:
    weight = np.random.default_rng(0).standard_normal((2, 5, 7))
    scale = np.abs(weight).max(axis=2) / 127
    np.testing.assert_array_equal(gptq(weight, np.stack([np.eye(7)] * 2), scale, 127), nearest(weight, scale, 127))


def test_bringing_later_inputs_up_to_date_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = layer(1, 6, 50)
    scale = np.abs(weight).max(axis=2) / 15
    whole = gptq(weight, moments, scale, 15)
    monkeypatch.setattr(method, "_BLOCK", 7)
    np.testing.assert_array_equal(gptq(weight, moments, scale, 15), whole)


def test_data_that_is_zero_everywhere_or_in_a_channel_does_no_harm() -> None:
    weight, moments = layer(1, 4, 10)
    scale = np.abs(weight).max(axis=2) / 127
    moments[:, 3], moments[:, :, 3] = 0, 0
    np.testing.assert_array_equal(gptq(weight, moments, scale, 127)[:, :, 3], nearest(weight, scale, 127)[:, :, 3])
    np.testing.assert_array_equal(gptq(weight, np.zeros_like(moments), scale, 127), nearest(weight, scale, 127))


def test_the_error_of_a_layer_is_the_mean_square_of_its_output() -> None:
    draw = np.random.default_rng(0)
    rows, difference = draw.standard_normal((50, 6)), draw.standard_normal((1, 3, 6))
    found = layer_error(difference, (rows.T @ rows / 50)[None])
    np.testing.assert_allclose(found[0], np.square(rows @ difference[0].T).mean(axis=0), rtol=1e-12)
