"""Observers: what is kept of the numbers a tensor held, as integer counts that merge exactly.

A float's upper 16 bits (sign, exponent, 7 bits of mantissa) are its bucket, so no range has to be known before the data
is seen, a bucket is never wider than 1/128 of its value, and counts of any split of the data add up to the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

BUCKETS = 1 << 16
_SIGN = 0x8000
_BLOCK = 1 << 18  # numbers counted at once, each widened to 8 bytes: they stay in the cache


@dataclass(frozen=True, eq=False)
class Statistics:
    """Exact minimum, maximum and bucket counts of the finite numbers seen; NaN and infinities are counted apart.

    `buckets` holds the buckets that are not empty, ascending, int32 (k,); `counts` how often each was hit, int64 (k,).
    Where nothing finite was seen, minimum is inf and maximum -inf.
    """

    minimum: float
    maximum: float
    count: int
    nans: int
    infs: int
    buckets: NDArray[np.int32]
    counts: NDArray[np.int64]

    @classmethod
    def nothing(cls) -> Statistics:
        """What merges with anything and changes nothing."""
        return cls(math.inf, -math.inf, 0, 0, 0, np.empty(0, np.int32), np.empty(0, np.int64))

    @classmethod
    def of(cls, batch: NDArray[Any]) -> Statistics:
        """The statistics of one array of floats, of any shape."""
        return cls.nothing().then(batch)

    def then(self, batch: NDArray[Any]) -> Statistics:
        """These statistics with one more array in them: `merge(of(batch))` without the step between."""
        numbers = np.ascontiguousarray(batch, np.float32).reshape(-1)
        if numbers.size == 0:
            return self
        nans = infs = 0
        low, high = float(numbers.min()), float(numbers.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = numbers[np.isfinite(numbers)]
            nans = int(np.isnan(numbers).sum())
            infs = numbers.size - finite.size - nans
            numbers = finite
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (math.inf, -math.inf)
        table = _counted(numbers)
        table[self.buckets] += self.counts
        return self._with(table, low, high, numbers.size, nans, infs)

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of both together; any order and any grouping gives the same bits."""
        table = np.zeros(BUCKETS, np.int64)
        table[self.buckets] = self.counts
        table[other.buckets] += other.counts
        return self._with(table, other.minimum, other.maximum, other.count, other.nans, other.infs)

    def intervals(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The buckets' two ends and what they hold, ascending by value: float64 (k,) each. Denormals next to 0 count as 0."""
        negative = np.searchsorted(self.buckets, _SIGN)
        order = np.concatenate([np.arange(negative, len(self.buckets))[::-1], np.arange(negative)])
        buckets = self.buckets[order]
        magnitude = (buckets & (_SIGN - 1)).astype(np.uint32)
        inner = (magnitude << 16).view(np.float32).astype(np.float64)
        outer = ((magnitude + 1) << 16).view(np.float32).astype(np.float64)
        outer = np.where(np.isinf(outer), 2.0**128, np.where(magnitude == 0, 0.0, outer))
        below_zero = buckets >= _SIGN
        return (
            np.where(below_zero, -outer, inner),
            np.where(below_zero, -inner, outer),
            self.counts[order].astype(np.float64),
        )

    def away_from_zero(self) -> Statistics:
        """These statistics without zeros and the denormals that count as such."""
        away = (self.buckets & (_SIGN - 1)) > 0
        counts = self.counts[away]
        return replace(self, count=int(counts.sum()), buckets=self.buckets[away], counts=counts)

    def magnitudes(self) -> Statistics:
        """The statistics of the absolute values; where numbers of both signs were seen their minimum is taken as 0."""
        table = np.zeros(BUCKETS, np.int64)
        np.add.at(table, self.buckets & (_SIGN - 1), self.counts)
        ends = sorted((abs(self.minimum), abs(self.maximum)))
        low = ends[0] if self.minimum > 0 or self.maximum < 0 else 0.0
        return Statistics.nothing()._with(table, low, ends[1], self.count, self.nans, self.infs)

    def _with(self, table: NDArray[np.int64], low: float, high: float, count: int, nans: int, infs: int) -> Statistics:
        buckets = np.flatnonzero(table != 0)
        return Statistics(
            # + 0.0 makes -0.0 and 0.0 one number: which of them comes out of min() depends on the order of the data.
            min(self.minimum, low) + 0.0,
            max(self.maximum, high) + 0.0,
            self.count + count,
            self.nans + nans,
            self.infs + infs,
            buckets.astype(np.int32),
            table[buckets],
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Statistics):
            return NotImplemented
        return (
            (self.minimum, self.maximum, self.count, self.nans, self.infs)
            == (other.minimum, other.maximum, other.count, other.nans, other.infs)
            and np.array_equal(self.buckets, other.buckets)
            and np.array_equal(self.counts, other.counts)
        )

    __hash__ = None  # type: ignore[assignment]


def _counted(numbers: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many finite numbers fall into each of the 65,536 buckets: float32 (n,) -> int64 (65536,)."""
    table = np.zeros(BUCKETS, np.int64)
    # Every second uint16 of the same memory is the upper half of a little-endian float32: no shifted copy is made.
    upper = numbers.astype("<f4", copy=False).view("<u2")[1::2]
    for start in range(0, len(upper), _BLOCK):
        # Widened apart from counting: numpy lets other threads run meanwhile, which it does not while it counts.
        counts = np.bincount(upper[start : start + _BLOCK].astype(np.intp))
        table[: len(counts)] += counts
    table[0] += table[_SIGN]  # minus zero is zero
    table[_SIGN] = 0
    return table
