"""How far a lower precision takes the outputs from the parent's: for screening inside the search, never for a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.engine import Arrays, Candidate
from optimizer.parity.outputs import Reading, samples_of
from optimizer.planner.flips import Flips, change, flips

Run = Callable[[Arrays], Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class Distance:
    """`error` is the relative root-mean-square error of the worst output over all samples (inf where a number is not
    finite, or their number is another);

    `flips` are the decisions that change, None where the outputs are none.
    """

    error: float
    flips: Flips | None = None

    @property
    def agreement(self) -> float | None:
        """The share of decisions that stayed the same on these samples."""
        return None if self.flips is None else 1.0 - self.flips.observed


def distance(parent: Sequence[Mapping[str, NDArray[Any]]], run: Run, feeds: Sequence[Arrays], reading: Reading | None = None) -> Distance:
    """The distance of what `run` gives on `feeds` from what the parent gave there; `reading` is how decisions are read (`flips.read`)."""
    off: dict[str, float] = {}
    size: dict[str, float] = {}
    changes = []
    for wanted, feed in zip(parent, feeds, strict=True):
        got = run(feed)
        for name, want in wanted.items():
            if want.dtype.kind != "f":
                continue
            exact, other = want.astype(np.float64), got[name].astype(np.float64)
            alike = exact.shape == other.shape and bool(np.isfinite(other).all())
            off[name] = off.get(name, 0.0) + (float(np.square(other - exact).sum()) if alike else math.inf)
            size[name] = size.get(name, 0.0) + float(np.square(exact).sum())
        if reading is not None and (decides := reading.output) is not None:
            rows = zip(samples_of(feed, wanted), samples_of(feed, got), strict=True)
            changes += [change(want[decides], other[decides], reading) for want, other in rows if want[decides].size]
    errors = [math.sqrt(off[name] / size[name]) if size[name] > 0 else (math.inf if off[name] > 0 else 0.0) for name in off]
    return Distance(max(errors, default=0.0), flips(changes, reading is not None and reading.whole) if changes else None)


def screened(candidate: Candidate, found: Distance) -> Candidate:
    """The candidate with all that its screening found."""
    predicted = found.flips
    if predicted is None:
        return replace(candidate, distance=found.error)
    return replace(
        candidate,
        distance=found.error,
        agreement=found.agreement,
        flip_rate=predicted.rate,
        flip_low=predicted.low,
        flip_high=predicted.high,
    )
