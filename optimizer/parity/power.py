"""How many samples would decide: those at which four of five evaluations would end in PASS."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from optimizer.parity.statistics import LEVEL, LOST

POWER = 0.8
_DRAWS = 1000
_MOST = 1e9

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Needed:
    """Samples in all for a PASS with 80 % power: the median over the true losses that fit what was seen, and a 80 % range.

    `high` is None where no number may be enough.
    """

    median: int
    low: int
    high: int | None


def needed_from_flips(lost: int, won: int, samples: int, budget: float) -> Needed | None:
    """For right/wrong answers and a budget in points, from the Jeffreys posterior of both rates; None where the loss is too big."""
    if (lost - won) / samples >= budget:
        return None
    draw = np.random.default_rng(0)
    cells = np.stack([draw.gamma(count + 0.5, size=_DRAWS) for count in (lost, won, samples - lost - won)])
    losing, winning, _ = cells / cells.sum(axis=0)
    return _summed_up(losing - winning, losing + winning, (lost - won) / samples, (lost + won) / samples, budget, worst=1.0)


def needed_from_losses(loss: float, variance: float, samples: int, budget: float, worst: float) -> Needed | None:
    """For other scores: mean and variance of the loss of a sample; `worst` is the most that one sample can lose."""
    if not loss < budget or not np.isfinite(variance):
        return None
    error = np.sqrt(variance / samples + LOST * (worst / samples) ** 2)
    losses = loss + error * np.random.default_rng(0).standard_normal(_DRAWS)
    return _summed_up(losses, np.full(_DRAWS, variance), loss, variance, budget, worst)


def _summed_up(losses: Floats, variances: Floats, loss: float, variance: float, budget: float, worst: float) -> Needed:
    every = np.sort(_samples(losses, variances, budget, worst))
    low, median, high = (float(every[int(share * (_DRAWS - 1))]) for share in (0.1, 0.5, 0.9))
    if not np.isfinite(median):
        median = float(_samples(np.array([loss]), np.array([variance]), budget, worst)[0])
    return Needed(int(np.ceil(median)), int(np.ceil(min(low, median))), int(np.ceil(high)) if np.isfinite(high) else None)


def _samples(losses: Floats, variances: Floats, budget: float, worst: float) -> Floats:
    """The n at which budget - loss covers the bound's reach at 5 % and the estimate's spread at 80 %; inf where nothing does."""
    certain, power = NormalDist().inv_cdf(1.0 - LEVEL), NormalDist().inv_cdf(POWER)
    low, high = np.ones_like(losses), np.full_like(losses, _MOST)
    for _ in range(60):
        n = np.sqrt(low * high)
        reach = LOST * worst + certain * np.sqrt(n * variances + LOST * worst**2) + power * np.sqrt(n * variances)
        enough = n * (budget - losses) >= reach
        low, high = np.where(enough, low, n), np.where(enough, n, high)
    return np.where(high >= _MOST * 0.999, np.inf, high)
