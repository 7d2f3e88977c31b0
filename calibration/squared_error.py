"""Expected squared error of rounding to a grid and clipping to its ends, from the density of what was seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibration.density import Density
from calibration.grid import Grid

Float = NDArray[np.float64]


def squared_error(density: Density, grid: Grid, low: Float, high: Float) -> Float:
    """Mean squared error of each interval (low[i], high[i]) on a grid: float64 (n,).

    All numbers between the midpoints of a level's neighbours become that level v, which costs sum(x^2) - 2 v sum(x) + v^2 n.
    """
    scale, zero_point = grid.quantizations(low, high)
    levels = grid.levels(scale, zero_point)
    below = density.moments_below((levels[:, :-1] + levels[:, 1:]) / 2)
    mass, first, second = (_between(moment, total[-1]) for moment, total in zip(below, density.before, strict=True))
    cost = second - 2 * levels * first + levels * levels * mass
    return np.maximum(cost.sum(axis=1), 0.0) / density.total  # type: ignore[no-any-return]


def _between(below: Float, total: float) -> Float:
    """What lies between neighbouring points, and outside the outermost: (n, k) -> (n, k + 1)."""
    return np.diff(below, axis=1, prepend=0.0, append=total)
