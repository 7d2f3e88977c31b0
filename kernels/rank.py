"""Where the centre of a few noisy numbers lies, and how surely: no assumption but that their noise is symmetric.

Hodges and Lehmann (1963): the median of all pairwise averages estimates the centre nearly as well as the mean does for
normal noise, and far better where there are outliers. Its interval inverts Wilcoxon's signed-rank test, whose null
distribution is exact, so that it holds at every size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_EXACT = 60


@dataclass(frozen=True)
class Centre:
    """Hodges-Lehmann centre with a two-sided interval; infinite ends where there are too few values for the level."""

    value: float
    low: float
    high: float


def centre(values: NDArray[np.float64], error: float) -> Centre:
    """The centre of `values`, float64 of shape (n,), n >= 1; the interval misses it with probability at most `error`."""
    count = len(values)
    rows, columns = np.triu_indices(count)
    averages = np.sort((values[rows] + values[columns]) / 2)
    left_out = averages_outside(count, error)
    if left_out == 0:
        return Centre(float(np.median(averages)), -math.inf, math.inf)
    return Centre(float(np.median(averages)), float(averages[left_out - 1]), float(averages[-left_out]))


def averages_outside(count: int, error: float) -> int:
    """The largest k for which P(W < k) <= error / 2, W being the signed-rank statistic of `count` values.

    The interval from the k-th smallest to the k-th largest pairwise average then covers the centre; 0: no k does.
    """
    if count > _EXACT:
        mean, variance = count * (count + 1) / 4, count * (count + 1) * (2 * count + 1) / 24
        return max(0, math.floor(mean + NormalDist().inv_cdf(error / 2) * math.sqrt(variance) + 0.5))
    ways = np.zeros(count * (count + 1) // 2 + 1)
    ways[0] = 1.0
    for rank in range(1, count + 1):
        ways[rank:] = ways[rank:] + ways[:-rank]
    return int(np.searchsorted(np.cumsum(ways) / 2.0**count, error / 2, side="right"))
