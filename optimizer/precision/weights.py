"""The numbers of quantized weights and biases: numpy in, numpy out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.weights import weight_ranges

Floats = NDArray[np.float32]
Integers = NDArray[np.int8] | NDArray[np.int32]

_BIAS_LIMIT = float(2**30)
"""A quantized bias stays a factor 2 below what int32 holds, room for the products that are added to it."""

_SMALLEST_RATIO = 2.0**-14
_LARGEST_RATIO = 2.0**15
"""Normal numbers of FP16: a channel further from the others is rounded as if it were at the bound."""


def per_channel(
    weight: Floats, axis: int, method: str, limit: int, smallest: Floats | None = None, grid: Floats | None = None
) -> tuple[NDArray[np.int8], Floats]:
    """int8 weights in -limit..limit and one float32 scale a channel of `axis`, none below `smallest` (a scale a channel).

    `grid` are scales (a scale a channel) that the weight was rounded to before: kept wherever its integers fit into the limit.
    A channel of zeros gets scale 1.
    """
    scale = (weight_ranges(weight, axis, method, limit) / limit).astype(np.float32)
    scale = np.where(scale > 0, scale, np.float32(1.0)).astype(np.float32)
    if grid is not None:
        scale = np.where(grid * (limit + 0.5) > _largest(weight, axis), grid, scale)
    if smallest is not None:
        scale = np.maximum(scale, smallest)
    return _rounded(weight, _along(scale, axis, weight.ndim), limit), scale


def smallest_scale(bias: Floats, activation_scale: np.float32) -> Floats:
    """The smallest weight scale a channel with which `bias` still fits in int32 at scale activation x weight."""
    return (np.abs(bias) / (np.float64(activation_scale) * _BIAS_LIMIT)).astype(np.float32)


def integer_bias(bias: Floats, scale: Floats) -> NDArray[np.int32]:
    """int32 bias at the scale of the accumulator, one scale a channel."""
    return np.rint(bias.astype(np.float64) / scale).astype(np.int32)


def with_ratios(
    weight: Floats, axis: int, method: str, limit: int, half: Any, grid: Floats | None = None
) -> tuple[NDArray[np.int8], np.float32, Floats]:
    """int8 weights rounded per channel, one scalar scale, and the ratio of each channel to it.

    weight is about scale * ratio * integers.  The scale is the geometric mean of the channels', so that a product before its
    ratio is neither much larger nor much smaller than after: in FP16 it could overflow or lose digits.  Ratios are numbers
    of the type `half` (float32 where none is wanted), and the integers are rounded with them as they are.  `grid`: see `per_channel`.
    """
    scales = per_channel(weight, axis, method, limit, grid=grid)[1].astype(np.float64)
    used = _largest(weight, axis) > 0
    middle = float(np.exp(np.log(scales[used]).mean())) if used.any() else 1.0
    ratios = np.where(used, np.clip(scales / middle, _SMALLEST_RATIO, _LARGEST_RATIO), 1.0)
    ratios = ratios.astype(half).astype(np.float32)
    return _rounded(weight, _along(np.float32(middle) * ratios, axis, weight.ndim), limit), np.float32(middle), ratios


def _largest(weight: Floats, axis: int) -> Floats:
    """The largest magnitude of each channel."""
    return np.abs(weight).max(axis=tuple(a for a in range(weight.ndim) if a != axis), initial=0.0)  # type: ignore[no-any-return]


def _rounded(weight: Floats, scale: Floats, limit: int) -> NDArray[np.int8]:
    integers: NDArray[np.int8] = np.clip(np.rint(weight / scale), -limit, limit).astype(np.int8)
    return integers


def _along(scale: Floats, axis: int, rank: int) -> Floats:
    """(channels,) as it broadcasts along `axis` of an array of `rank`."""
    return scale.reshape([-1 if place == axis else 1 for place in range(rank)])
