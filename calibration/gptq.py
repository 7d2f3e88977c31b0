"""GPTQ: integers for a weight whose rounding errors make up for each other on the data that the layer reads.

Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022.
One input after the other is rounded, and what that does to the layer's output is taken back, in the sense of least squares, by
the inputs that are still to come.  All a layer's data comes down to is the matrix of its inputs' second moments.

Weights are (groups, channels, inputs): a plain layer has one group, a depthwise convolution one a channel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DAMPING = 0.01
"""Share of the mean second moment that is added to each: what the data hardly moves must not take over everybody's error."""

_BLOCK = 128
"""Inputs after which the later ones are brought up to date, by one product of matrices instead of one an input."""


def gptq(weight: Floats, moments: Floats, scale: Floats, limit: int, damping: float = DAMPING) -> NDArray[np.int8]:
    """Integers in -limit..limit, int8 (groups, channels, inputs), so that scale * integers stands for `weight`.

    `moments` are mean products of inputs, float64 (groups, inputs, inputs), positive semidefinite; `scale` is (groups, channels).
    Inputs are rounded in the order of their second moments, the largest first, while there are most others to make up for it.

    Raises:
        numpy.linalg.LinAlgError: the moments hold what is not finite.
    """
    order = np.argsort(-np.diagonal(moments, axis1=1, axis2=2), axis=1, kind="stable")
    factor = _factor(np.take_along_axis(np.take_along_axis(moments, order[:, :, None], 1), order[:, None, :], 2), damping)
    # Inputs first, since they are gone through one by one.
    left = np.take_along_axis(weight.transpose(0, 2, 1), order[:, :, None], 1)
    rounded = np.empty(left.shape, np.int8)
    inputs = left.shape[1]
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        errors = np.empty_like(left[:, start:end])
        for place in range(start, end):
            integers = np.clip(np.rint(left[:, place] / scale), -limit, limit)
            rounded[:, place] = integers
            errors[:, place - start] = error = (left[:, place] - integers * scale) / factor[:, place, place, None]
            left[:, place + 1 : end] -= factor[:, place, place + 1 : end, None] * error[:, None, :]
        left[:, end:] -= factor[:, start:end, end:].transpose(0, 2, 1) @ errors
    return np.take_along_axis(rounded, np.argsort(order, axis=1)[:, :, None], 1).transpose(0, 2, 1)


def layer_error(difference: Floats, moments: Floats) -> Floats:
    """What a change of the weight does to the layer's output: mean square a channel, float64 (groups, channels)."""
    return np.maximum(((difference @ moments) * difference).sum(axis=2), 0.0)  # type: ignore[no-any-return]


def _factor(moments: Floats, damping: float) -> Floats:
    """The upper Cholesky factor of the inverse of the damped moments: row j tells how the inputs after j make up for j."""
    size = moments.shape[1]
    mean = np.trace(moments, axis1=1, axis2=2) / size
    # Where the data is all zeros any rounding is as good as any other.
    damped = moments + (np.where(mean > 0, damping * mean, 1.0))[:, None, None] * np.eye(size)
    return np.linalg.cholesky(np.linalg.inv(damped), upper=True)
