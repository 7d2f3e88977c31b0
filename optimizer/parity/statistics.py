"""One-sided 95 % bounds of what an engine loses against its parent on the same samples.

Right or wrong answers: Tango's score bound for a paired difference (Statistics in Medicine 17, 1998), for a relative budget
the score bound for the ratio of paired proportions (Nam and Blackwelder, Statistics in Medicine 21, 2002; Tang, Tang and
Chan, ibid. 22, 2003), which tests (1 - r) x parent - engine and so holds the parent's own sampling error.  Both are
asymptotic and go over 5 % where few answers change, so they are made safe in three ways, found and checked by enumeration
(benchmarks/gate.py): they are taken at 4.75 %, with the count of lost answers moved by the share of changed answers, and never
inside the exact bound (Clopper and Pearson, Biometrika 26, 1934) for the case in which all net changes go one way.

Scores that are any number, and one number over all: Student's t on the paired contrast (Fieller's solution for a relative
budget), as if LOST more samples had been lost entirely, since rare disasters may not have been seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from optimizer.parity.quantiles import beta_quantile, root, student_quantile

LEVEL = 0.05
"""The chance of a false PASS at the budget's edge, and of a false FAIL."""

_SCORE_LEVEL = 0.0475
_SCORE_Z = NormalDist().inv_cdf(1.0 - _SCORE_LEVEL)
_NEARLY_ALL = 1.0 - 1e-9

LOST = 1.3
"""Samples that count as lost beside those seen: makes the t bound of a rare event as wide as the exact one (k = 0: 3.17 for
Clopper-Pearson's 3.00, k = 1: 5.0 for 4.7, k = 5: 10.7 for 10.5)."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bounds:
    """One-sided 95 % bounds, each for itself: together they are a 90 % interval. Infinite where nothing can be said."""

    low: float
    high: float

    def times(self, factor: float) -> Bounds:
        return Bounds(self.low * factor, self.high * factor)


def fewest_samples(budget: float) -> int:
    """The samples below which nothing can pass: as many must be free of harm to rule out a rate of `budget`; 299 for 0.01."""
    return math.ceil(math.log(LEVEL) / math.log1p(-budget))


@lru_cache(maxsize=4096)
def clopper_pearson(count: float, samples: int) -> Bounds:
    """Exact bounds of a rate of which `count` in `samples` were seen; parts of a sample count as parts."""
    low = 0.0 if count == 0 else beta_quantile(LEVEL, count, samples - count + 1.0)
    high = 1.0 if count == samples else beta_quantile(1.0 - LEVEL, count + 1.0, samples - count)
    return Bounds(low, high)


def difference(lost: int, won: int, samples: int) -> Bounds:
    """Bounds of parent's rate - engine's rate, with `lost` answers right only in the parent and `won` only in the engine."""
    observed = (lost - won) / samples
    shift = (lost + won) / samples
    high = _crossing(lambda drop: _tango(lost, won, samples, drop, shift) + _SCORE_Z, observed, _NEARLY_ALL)
    low = _crossing(lambda drop: _tango(lost, won, samples, drop, -shift) - _SCORE_Z, observed, -_NEARLY_ALL)
    exact = _net(lost - won, samples, samples)
    return Bounds(min(low, exact.low, observed), max(high, exact.high, observed))


def _tango(lost: int, won: int, samples: int, drop: float, shift: float) -> float:
    """The score statistic of the hypothesis that the rate falls by `drop`; the nuisance is the rate of won answers.

    The variance is taken at the largest likelihood under the hypothesis, in closed form (Tango 1998, equation 5).
    """
    b = (2 * samples - lost + won) * drop - lost - won
    q = (math.sqrt(max(b * b + 8 * samples * won * drop * (1.0 - drop), 0.0)) - b) / (4 * samples)
    q = max(q, 0.0, -drop)
    return _standardised(lost - won - samples * drop + shift, samples * (2 * q + drop * (1.0 - drop)))


def ratio(lost: int, won: int, right: int, samples: int) -> Bounds:
    """Bounds of the part r of the parent's rate that the engine loses: engine's rate = (1 - r) x parent's rate.

    `right` counts the parent's right answers, those that the engine loses included; it must not be 0.
    """
    observed = (lost - won) / right
    shift = (lost + won) / samples
    high = _crossing(lambda r: _ratio_score(lost, won, right, samples, r, shift) + _SCORE_Z, observed, _NEARLY_ALL)
    low = _crossing(lambda r: _ratio_score(lost, won, right, samples, r, -shift) - _SCORE_Z, observed, -float(samples))
    exact = _net(lost - won, right, samples)
    return Bounds(min(low, exact.low, observed), max(high, exact.high, observed))


def _ratio_score(lost: int, won: int, right: int, samples: int, r: float, shift: float) -> float:
    """The score statistic of the hypothesis (1 - r) x parent = engine, for paired right/wrong answers.

    A sample counts -r where both are right, 1 - r where only the parent is, -1 where only the engine is.  With s the share of
    samples that anyone has right and y the rate of won answers, the hypothesis makes the other two cells (1 - r) s - (2 - r) y
    and r s + (1 - r) y; the likelihood's derivative along y is a parabola, whose larger root is the estimate.
    """
    keep, both, seen = 1.0 - r, right - lost, right + won
    share = seen / samples
    a = keep * (1.0 + keep) * seen
    b = share * (both * (1.0 + keep) * r - lost * keep * keep - won * (keep * keep - (1.0 + keep) * r))
    c = -won * keep * r * share * share
    y = (math.sqrt(max(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a)
    y = min(max(y, 0.0, -r * share / keep), keep * share / (1.0 + keep))
    variance = r * r * (keep * share - (1.0 + keep) * y) + keep * keep * (r * share + keep * y) + y
    return _standardised(lost - won - r * right + shift, samples * variance)


def _standardised(score: float, variance: float) -> float:
    return score / math.sqrt(variance) if variance > 0.0 else math.copysign(math.inf, score) if score else 0.0


def _crossing(function: Callable[[float], float], start: float, end: float) -> float:
    """Where a falling function crosses 0 between the observed value and the last possible one; the end where it does not."""
    start = min(start, _NEARLY_ALL)
    if start == end:
        return end
    if (function(end) > 0.0) == (end > start):
        return end
    return root(function, min(start, end), max(start, end))


def _net(net: int, lost_of: int, samples: int) -> Bounds:
    """Exact bounds for the case in which changes go one way only, so that `net` is their count: losses out of `lost_of`.

    With no net loss the upper bound stays that of none seen: this is what nobody can pass below.
    """
    high = clopper_pearson(max(net, 0), lost_of).high
    low = clopper_pearson(net, lost_of).low if net >= 0 else -clopper_pearson(-net, samples).high * samples / lost_of
    return Bounds(low, high)


@dataclass(frozen=True)
class Contrast:
    """Paired scores of parent and engine, float64, shape (n,) each: one a sample, or the pseudo-values of a jackknife.

    `worst` is the most that one sample can take from the mean's sum, and `samples` how many the mean is over.
    """

    parent: Floats
    engine: Floats
    higher_is_better: bool
    worst: float
    samples: int

    @property
    def loss(self) -> Floats:
        return self.parent - self.engine if self.higher_is_better else self.engine - self.parent

    def difference(self) -> Bounds:
        """Bounds of the mean loss."""
        return mean(self.loss, self.worst, self.samples)

    def ratio(self) -> Bounds:
        """Bounds of mean loss / parent's mean, by inverting the t test of loss - r x parent; the parent's mean is over 0."""
        loss, observed = self.loss, float(self.loss.mean() / self.parent.mean())

        def upper(r: float) -> float:
            return mean(loss - r * self.parent, self.worst, self.samples).high

        def lower(r: float) -> float:
            return mean(loss - r * self.parent, self.worst, self.samples).low

        return Bounds(-_outwards(lambda r: -lower(-r), -observed), _outwards(upper, observed))


def _outwards(function: Callable[[float], float], start: float) -> float:
    """Where a function that is over 0 at `start` first falls to 0 above it; infinity where it does not within a million."""
    step = 1e-3
    while step < 1e6:
        if function(start + step) <= 0.0:
            return root(function, start, start + step)
        step *= 2.0
    return math.inf


def mean(values: Floats, worst: float, samples: int) -> Bounds:
    """Bounds of a mean by Student's t, as if LOST more samples had moved it by `worst` each."""
    count = len(values)
    if count < 2 or not np.isfinite(values).all():
        return Bounds(-math.inf, math.inf)
    centre, unit = float(values.mean()), worst / samples
    spread = math.sqrt(float(values.var(ddof=1)) / count + LOST * unit * unit)
    reach = LOST * unit + _t(count - 1) * spread
    return Bounds(centre - reach, centre + reach)


@lru_cache(maxsize=256)
def _t(freedom: int) -> float:
    return student_quantile(1.0 - LEVEL, freedom)


def pseudo_values(value: Callable[[NDArray[np.intp]], float], samples: int, *, in_sequence: bool = False, blocks: int = 30) -> Floats:
    """Jackknife pseudo-values of a number over all samples, leaving out one of `blocks` random blocks at a time; float64, (blocks,).

    `value` computes the number from the indices of the samples that stay.  Blocks are drawn with a fixed seed, the same for
    parent and engine, and not in the data's order, which may be sorted by class; samples `in_sequence` depend on their neighbours,
    so there a block is a stretch of them.
    """
    blocks = min(blocks, samples)
    order = np.arange(samples) if in_sequence else np.random.default_rng(0).permutation(samples)
    total = value(np.arange(samples))
    parts = np.array_split(order, blocks)
    rest = [value(np.sort(np.concatenate([*parts[:i], *parts[i + 1 :]]))) if blocks > 1 else total for i in range(blocks)]
    return np.array([blocks * total - (blocks - 1) * part for part in rest], dtype=np.float64)
