"""Which candidates the gate is asked about, and in which order."""

from __future__ import annotations

import math
from collections.abc import Sequence

from optimizer.engine import Candidate

FINALISTS = 5


def finalists(candidates: Sequence[Candidate], baseline: str) -> list[Candidate]:
    """At most five candidates from the front of speed against distance, from the safest to the fastest.

    Where the baseline is among them it comes first, and a rival has to be faster than it for sure (the lower bound of its ratio
    is above 1).  Order and choice depend on timings and calibration samples alone, never on the data that the gate will see,
    as fixed-sequence testing demands.
    """
    base = [one for one in candidates if one.name == baseline]
    rivals = [one for one in candidates if one.name != baseline and (not base or (one.timing is not None and one.timing.low > 1.0))]
    front = [one for one in rivals if not any(_dominates(other, one) for other in rivals)]
    return [*base, *thinned(sorted(front, key=_distance), FINALISTS - len(base))]


def leaner(candidates: Sequence[Candidate], baseline: str) -> list[Candidate]:
    """The order for a target where nothing can be timed: float plans first, then INT8 plans that are leaner for sure.

    By static counts: no more launches and fewer bytes moved than the last float plan.  What depends on the kernels that the
    target would choose is not decided here; where no float plan may ship, every INT8 plan may.
    """
    floats = [one for one in candidates if not _int8(one)]
    floats.sort(key=lambda one: one.name != baseline)
    rivals = [one for one in candidates if _int8(one) and (not floats or _leaner(one, floats[-1]))]
    return [*floats, *thinned(sorted(rivals, key=_distance), FINALISTS - len(floats))]


def thinned(front: list[Candidate], room: int) -> list[Candidate]:
    """At most `room` of a front: both ends stay, the middle goes first."""
    kept = list(front)
    while len(kept) > room:
        del kept[max(1, len(kept) // 2)]
    return kept


def _int8(one: Candidate) -> bool:
    return any(precision.startswith("int8") for precision in one.plan.precisions.values())


def _leaner(one: Candidate, other: Candidate) -> bool:
    if one.built is None or other.built is None or not one.built.launches or not other.built.launches:
        return False
    moved, against = (sum(launch.bytes for launch in built.launches) for built in (one.built, other.built))
    return len(one.built.launches) <= len(other.built.launches) and moved < against


def _dominates(one: Candidate, other: Candidate) -> bool:
    faster, nearer = _speed(one) - _speed(other), _distance(other) - _distance(one)
    return faster >= 0 and nearer >= 0 and (faster > 0 or nearer > 0)


def _speed(one: Candidate) -> float:
    return one.timing.ratio if one.timing is not None else 0.0


def _distance(one: Candidate) -> float:
    return one.distance if one.distance is not None else math.inf
