"""How far arrays of two forms of a model are apart, also where one framework lays them out in another way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_AXES = 5
"""Axes up to which every order of them is tried."""


@dataclass(frozen=True)
class Difference:
    """How far outputs are from the parent's: energy of parent and error, largest difference; any NaN or infinity makes them inf."""

    signal: float = 0.0
    error: float = 0.0
    max_abs: float = 0.0

    def __add__(self, other: Difference) -> Difference:
        return Difference(self.signal + other.signal, self.error + other.error, max(self.max_abs, other.max_abs))

    @property
    def relative(self) -> float:
        """Root of error energy over signal energy."""
        return math.sqrt(self.error / self.signal) if self.signal else (math.inf if self.error else 0.0)

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise in dB; infinite where nothing differs."""
        return -20.0 * math.log10(self.relative) if self.relative else math.inf


def difference(parent: NDArray[Any], other: NDArray[Any]) -> Difference:
    """Of two arrays of one shape, in float64. Places where both hold the same NaN or infinity count as equal; words are equal or not."""
    if parent.shape != other.shape:
        return Difference(1.0, math.inf, math.inf)
    if parent.dtype.kind not in "fiub" and parent.dtype.name != "bfloat16":
        return Difference() if np.array_equal(parent, other) else Difference(1.0, math.inf, math.inf)
    one, two = parent.astype(np.float64), other.astype(np.float64)
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    gap = np.where(same, 0.0, two) - np.where(same, 0.0, one)
    gap = np.where(np.isfinite(gap), np.abs(gap), np.inf)
    finite = one[np.isfinite(one)]
    return Difference(float(finite @ finite), float(np.square(gap).sum()), float(gap.max(initial=0.0)))


def total(parts: Iterable[Difference]) -> Difference:
    """Of several arrays together."""
    return sum(parts, Difference())


@dataclass(frozen=True)
class Layout:
    """How an array of another framework is turned into the graph's: axes of size 1 dropped, the others in this order, reshaped."""

    order: tuple[int, ...]
    shape: tuple[int, ...]

    def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array in the graph's layout; as it is where it has other sizes than the layout was made for."""
        squeezed = array.squeeze()
        if squeezed.ndim != len(self.order) or squeezed.size != math.prod(self.shape):
            return array
        return squeezed.transpose(self.order).reshape(self.shape)


def layout(shown: NDArray[Any], wanted: NDArray[Any]) -> Layout | None:
    """The order of axes in which `shown` has the shape of `wanted` and, of several such, is nearest to it.

    None where there is none.  Two axes of one size are not exchanged where the shapes fit as they are, except that channels may come
    first in one and last in the other.
    """
    orders = list(_orders(shown.shape, wanted.shape))
    if not orders:
        return None
    return min((Layout(order, wanted.shape) for order in orders), key=lambda one: difference(wanted, one.of(shown)).error)


def _orders(shown: Sequence[int], wanted: Sequence[int]) -> Iterator[tuple[int, ...]]:
    here, there = _sizes(shown), _sizes(wanted)
    straight = tuple(range(len(here)))
    if here == there:
        yield straight
        last = len(here) - 1
        channels_moved = (last, *range(last)) if shown and shown[0] == 1 else (0, last, *range(1, last))
        if last >= 2 and tuple(here[axis] for axis in channels_moved) == there:
            yield channels_moved
    elif sorted(here) == sorted(there) and len(here) <= _MOST_AXES:
        yield from (order for order in permutations(straight) if tuple(here[axis] for axis in order) == there)


def other_length(shown: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether two shapes are those of one result, cut or padded along one axis."""
    here, there = sorted(_sizes(shown)), sorted(_sizes(wanted))
    return len(here) == len(there) and sum(one not in here for one in there) == 1 and sum(one not in there for one in here) == 1


def _sizes(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
