"""Range methods: from what was seen of a tensor to the interval that the integers will cover."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from calibration.density import Density
from calibration.divergence import Bins, divergence
from calibration.grid import Grid
from calibration.observers import Statistics
from calibration.search import JAGGED, SMOOTH, least
from calibration.squared_error import squared_error
from calibration.weights import weight_ranges

__all__ = ["METHODS", "Range", "entropy", "error", "minmax", "mse", "percentile", "sqnr_db", "weight_ranges"]


@dataclass(frozen=True)
class Range:
    """The interval that is represented; what lies outside is clipped. `method` is a key of METHODS."""

    method: str
    low: float
    high: float


def minmax(seen: Statistics, grid: Grid) -> Range:
    """All that was seen: nothing is clipped."""
    if seen.count == 0:
        return Range("minmax", 0.0, 0.0)
    if grid.symmetric:
        end = max(abs(seen.minimum), abs(seen.maximum))
        return Range("minmax", -end, end)
    return Range("minmax", seen.minimum, seen.maximum)


def percentile(seen: Statistics, grid: Grid, keep: float = 0.9999) -> Range:
    """The share `keep` of the numbers: of their magnitudes on a symmetric grid, else cut alike at both tails."""
    if seen.count == 0:
        return Range("percentile", 0.0, 0.0)
    if grid.symmetric:
        (end,) = Density.of(seen.magnitudes()).quantiles(keep)
        return Range("percentile", -end, end)
    return Range("percentile", *Density.of(seen).quantiles((1 - keep) / 2, (1 + keep) / 2))


def entropy(seen: Statistics, grid: Grid) -> Range:
    """The interval that keeps most of the information: least Kullback-Leibler divergence (see `divergence`)."""
    numbers = seen.away_from_zero()
    if numbers.count == 0:
        return Range("entropy", 0.0, 0.0)
    loss = partial(divergence, Bins.of(numbers), grid)
    return Range("entropy", *least(loss, Density.of(numbers), grid.symmetric, JAGGED))


def mse(seen: Statistics, grid: Grid) -> Range:
    """The interval with the least expected squared error of rounding and clipping."""
    numbers = seen.away_from_zero()
    if numbers.count == 0:
        return Range("mse", 0.0, 0.0)
    loss = partial(squared_error, Density.of(seen), grid)
    return Range("mse", *least(loss, Density.of(numbers), grid.symmetric, SMOOTH))


METHODS: Mapping[str, Callable[[Statistics, Grid], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


def error(seen: Statistics, grid: Grid, range: Range) -> float:
    """Expected squared error of one number under a range, from rounding and clipping; 0 where nothing was seen."""
    if seen.count == 0:
        return 0.0
    return float(squared_error(Density.of(seen), grid, np.array([range.low]), np.array([range.high]))[0])


def sqnr_db(seen: Statistics, grid: Grid, range: Range) -> float:
    """Mean square of the numbers over their expected squared error, in dB; inf where nothing is lost."""
    lost = error(seen, grid, range)
    return math.inf if lost == 0 else 10 * math.log10(max(Density.of(seen).mean_square, 1e-300) / lost)
