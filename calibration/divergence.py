"""What quantizing loses of the information in a tensor: Kullback-Leibler divergence, the entropy method of TensorRT.

TensorRT and ONNX Runtime histogram the numbers into bins of one width between the outermost two, merge bins into the levels
of the grid, spread each level over those of its bins that are not empty, and count what is clipped in the last bin.  Here
the bins are the float's own buckets, joined near zero to a resolution that follows the bulk: an outlier can't coarsen the
view of the rest, and what falls on both sides of a level's edge is shared out evenly inside the bucket (taken at its
midpoint, it would leave gaps that the data does not have).  Exact zeros are left out: every grid holds 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.density import Density
from calibration.grid import Grid
from calibration.observers import Statistics

Float = NDArray[np.float64]

_BULK = 0.999  # the magnitude that holds this share sets the resolution
_BINS = 2048  # at least so many bins fit into that magnitude's interval (TensorRT's number)


@dataclass(frozen=True)
class Bins:
    """Bins that are not empty, ascending; the other arrays run over `corners`, the two ends of each: float64 (2k,).

    Up to each corner: `mass`, `support` (width of the bins) and `certainty`, the sum of p log(p / width).
    """

    corners: Float
    mass: Float
    support: Float
    certainty: Float

    @property
    def total(self) -> float:
        return float(self.mass[-1])

    @classmethod
    def of(cls, seen: Statistics) -> Bins:
        """The bins of what was seen, which must not be nothing and hold no zeros."""
        low, high, mass = seen.intervals()
        (bulk,) = Density.of(seen.magnitudes()).quantiles(_BULK)
        # Powers of two, like the buckets' widths, so that each bucket lies in one bin and each bin starts at its multiple.
        width = np.maximum(high - low, 2.0 ** math.floor(math.log2(bulk / _BINS)))
        start = np.floor(low / width) * width
        first = np.flatnonzero(np.diff(start, prepend=-np.inf))
        start, width, mass = start[first], width[first], np.add.reduceat(mass, first)
        corners = np.clip(np.column_stack([start, start + width]), seen.minimum, seen.maximum)
        return cls(corners.reshape(-1), _corners(mass), _corners(width), _corners(mass * np.log(mass / width)))


def divergence(bins: Bins, grid: Grid, low: Float, high: Float) -> Float:
    """KL(P || Q) in nats of each interval (low[i], high[i]) on a grid: float64 (n,); inf where most is clipped.

    P is the mass by bin, what is clipped counted into the outermost levels. Q is the mass that lies inside the interval, each
    level's spread over the bins in it that are not empty. The sum over bins falls apart into what rounding loses in each
    level and what clipping adds to the outermost two, so that sums up to the levels' edges are all it takes.
    """
    scale, zero_point = grid.quantizations(low, high)
    edges = (np.arange(grid.lowest, grid.highest + 2) - zero_point[:, None] - 0.5) * scale.astype(np.float64)[:, None]
    below = np.interp(edges, bins.corners, bins.mass)
    shown = np.diff(below, axis=1)
    support = np.diff(np.interp(edges, bins.corners, bins.support), axis=1)
    inside = np.interp(edges[:, [0, -1]], bins.corners, bins.certainty)
    outside = np.stack([below[:, 0], bins.total - below[:, -1]], axis=1)
    return divergence_of_levels(shown, support, inside[:, 1] - inside[:, 0], outside)


def divergence_of_levels(shown: Float, support: Float, certainty: Float, outside: Float) -> Float:
    """The divergence from mass and support by level (n, levels), certainty inside (n,), mass clipped on each side (n, 2)."""
    kept, total = shown.sum(axis=1), shown.sum(axis=1) + outside.sum(axis=1)
    full = (shown > 0) & (support > 0)
    rounding = certainty - (shown * np.log(np.where(full, shown, 1.0) / np.where(full, support, 1.0))).sum(axis=1)
    # One number more in each outermost level, in P and Q, keeps a level that only clipping fills from costing infinitely much.
    last = shown[:, [0, -1]]
    clipping = ((last + outside + 1) * np.log((last + outside + 1) / (last + 1))).sum(axis=1)
    lost = (rounding + clipping) / (total + 2) + np.log((kept + 2) / (total + 2))
    return np.where(2 * kept >= total, lost, np.inf)


def _corners(values: Float) -> Float:
    """Sums up to the two ends of each bin: (k,) -> (2k,)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return np.column_stack([sums[:-1], sums[1:]]).reshape(-1)
