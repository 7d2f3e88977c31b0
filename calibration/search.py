"""The search for the interval with the least loss, shared by the range methods that have a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.density import Density

Float = NDArray[np.float64]

Loss = Callable[[Float, Float], Float]
"""The loss of many intervals at once: their low ends (n,) and high ends (n,) -> float64 (n,)."""

_FINEST = 1.004  # ends are told apart down to this factor


@dataclass(frozen=True)
class Looks:
    """How many candidates a look takes, the first and each later one, and over how many of its steps the second spreads.

    A loss that is smooth in the ends needs few; one that goes up and down as levels and bins fall together needs many.
    """

    first: int
    later: int
    spread: float


@dataclass(frozen=True)
class Care:
    """The looks along a line, and along each side of a plane."""

    line: Looks
    plane: Looks


SMOOTH = Care(Looks(32, 5, 1.0), Looks(12, 5, 1.0))
JAGGED = Care(Looks(400, 129, 8.0), Looks(24, 13, 1.0))


def least(loss: Loss, density: Density, symmetric: bool, care: Care) -> tuple[float, float]:
    """The interval around 0 with the least loss, as (low, high), for numbers of a density without zeros.

    A symmetric interval, or one with a single end away from 0, is searched along a line, any other in the plane of its two
    ends: a coarse look from each side's bulk to its outermost number, then ever finer looks around the best.
    """
    lowest, highest = min(float(density.low[0]), 0.0), max(float(density.high[-1]), 0.0)
    if symmetric:
        low, high = density.quantiles(0.25, 0.75)
        end = _searched(lambda ends: loss(-ends[0], ends[0]), [(max(-low, high), max(-lowest, highest))], care)
        return -end[0], end[0]
    share = float(density.below(np.zeros(1))[0]) / density.total
    low, high = density.quantiles(share / 2, (1 + share) / 2)
    sides = [(max(-low, 0.0), -lowest), (max(high, 0.0), highest)]
    ends = _searched(lambda ends: loss(-ends[0], ends[1]), sides, care)
    return 0.0 - ends[0], ends[1]


def _searched(loss: Callable[[Float], Float], sides: list[tuple[float, float]], care: Care) -> tuple[float, ...]:
    """The best end of each side, given the bulk and the reach of each; a side without reach stays at 0.

    `loss` takes the ends of n candidates as float64 (sides, n).
    """
    reach = np.array([side[1] for side in sides])
    plane = np.count_nonzero(reach) > 1
    looks = care.plane if plane else care.line
    ends = [_spaced(bulk, far, looks.first) for bulk, far in sides]
    factor = max(look[-1] / look[-2] if len(look) > 1 else 1.0 for look in ends) ** looks.spread
    if plane:
        ends = [np.append(look, 0.0) for look in ends]
    best, least = np.zeros(len(sides)), np.inf
    while True:
        candidates = np.stack([look.reshape(-1) for look in np.meshgrid(*ends, indexing="ij")])
        losses = loss(candidates)
        place = int(np.argmin(losses))
        if losses[place] < least:
            best, least = candidates[:, place], losses[place]
        if factor < _FINEST:
            return tuple(best.tolist())
        around = factor ** np.linspace(-1, 1, looks.later)
        ends = [np.unique(np.minimum(end * around, far)) for end, far in zip(best, reach, strict=True)]
        factor **= 0.5


def _spaced(bulk: float, reach: float, points: int) -> Float:
    """Ends from the bulk to the outermost number, each the same factor above the one before."""
    if reach == 0:
        return np.zeros(1)
    return np.geomspace(min(max(bulk, reach * 1e-6), reach / 2), reach, points)
