"""What the bucket counts say about the numbers in between: their mass, spread evenly inside each bucket."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.observers import Statistics

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Density:
    """Mass by position, ascending: bucket i holds `mass[i]` evenly between `low[i]` and `high[i]`, all float64 (k,).

    The outermost buckets end at the exact minimum and maximum. `before[m]` (k + 1,) is the m-th moment of all buckets below
    each: 0 the mass, 1 the sum, 2 the sum of squares.
    """

    low: Float
    high: Float
    mass: Float
    before: tuple[Float, Float, Float]

    @classmethod
    def of(cls, seen: Statistics) -> Density:
        """The density of what was seen, which must not be nothing."""
        low, high, mass = seen.intervals()
        low, high = np.clip(low, seen.minimum, seen.maximum), np.clip(high, seen.minimum, seen.maximum)
        first, second = _moments(low, high)
        return cls(low, high, mass, (_sums(mass), _sums(mass * first), _sums(mass * second)))

    @property
    def total(self) -> float:
        return float(self.before[0][-1])

    @property
    def mean_square(self) -> float:
        return float(self.before[2][-1]) / self.total

    def below(self, points: Float) -> Float:
        """The mass below each point: float64, shape of `points`."""
        # Flat over the gaps between buckets, straight inside them; the two ends of each bucket are the corners.
        at = np.column_stack([self.low, self.high]).reshape(-1)
        corner = np.column_stack([self.before[0][:-1], self.before[0][1:]]).reshape(-1)
        return np.interp(points, at, corner)

    def moments_below(self, points: Float) -> tuple[Float, Float, Float]:
        """Mass, sum and sum of squares of what lies below each point: float64, shape of `points`."""
        bucket = np.searchsorted(self.low, points, side="right") - 1
        inside = np.maximum(bucket, 0)
        low, width = self.low[inside], (self.high - self.low)[inside]
        part = np.clip((points - low) / np.where(width > 0, width, 1.0), 0.0, 1.0)
        # A bucket without width (all its numbers are one number) lies below every point right of it.
        part = np.where(width > 0, part, (points > low).astype(np.float64))
        part = np.where(bucket >= 0, part, 0.0) * self.mass[inside]
        first, second = _moments(low, np.minimum(points, low + width))
        return (
            self.before[0][inside] + part,
            self.before[1][inside] + part * first,
            self.before[2][inside] + part * second,
        )

    def quantiles(self, *shares: float) -> tuple[float, ...]:
        """The points below which these shares (0 to 1) of the mass lie."""
        wanted = np.asarray(shares) * self.total
        bucket = np.clip(np.searchsorted(self.before[0], wanted, side="left") - 1, 0, len(self.mass) - 1)
        part = np.clip((wanted - self.before[0][bucket]) / self.mass[bucket], 0.0, 1.0)
        return tuple((self.low[bucket] + part * (self.high - self.low)[bucket]).tolist())


def _moments(low: Float, high: Float) -> tuple[Float, Float]:
    """Mean and mean square of an even spread between two points."""
    return (low + high) / 2, (low * low + low * high + high * high) / 3


def _sums(values: Float) -> Float:
    return np.concatenate([[0.0], np.cumsum(values)])
