"""Which candidates the gate is asked about and in which order, and which of them are the front of speed against loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

from optimizer.engine import Candidate, Point

FINALISTS = 5

Speed = Callable[[Candidate], float]
"""How good a candidate is by what is sought: a positive number, larger is better, 0 where it was not measured."""

_NOTHING = 1e-6
"""Losses of lossy plans below this are equal: rounding, or a millionth of all decisions."""

_HOPELESS = 5.0
"""Times the budget from which on a loss is not worth a try, by its lower bound: with labels a changed decision often costs nothing,
since the parent was wrong there, or the candidate is right."""

_DOUBT = math.log(2.0)
"""Standard deviation of the logarithm of what a candidate will be seen to lose, given what is predicted."""


def by_time(one: Candidate) -> float:
    """How many times as fast as the baseline of the race."""
    return one.timing.ratio if one.timing is not None else 0.0


def predicted(one: Candidate) -> float:
    """`Candidate.loss`, inf where that is not known; of lossy plans at least a millionth, to which all smaller ones are equal."""
    loss = math.inf if one.loss is None else one.loss
    return loss if one.plan.lossless else max(loss, _NOTHING)


def faster(one: Candidate, _baseline: Candidate) -> bool:
    """Whether a candidate is faster than the baseline of the race for sure: the lower bound of its ratio is above 1."""
    return one.timing is not None and one.timing.low > 1.0


def finalists(
    candidates: Sequence[Candidate],
    baseline: str,
    allowed: float | None = None,
    speed: Speed = by_time,
    better: Callable[[Candidate, Candidate], bool] = faster,
) -> list[Candidate]:
    """At most five candidates from the front of speed against predicted loss, from the safest to the fastest.

    Where the baseline is among them it comes first, and a rival has to be `better` than it.  `allowed` is what may be lost, as a
    share of all decisions or in cosine (None: what the gate asks can't be predicted): rivals that are hopelessly beyond it are left out,
    and of the rest those stay that are likeliest to be what ships.  Order and choice depend on timings and calibration samples alone,
    never on the data that the gate will see, as fixed-sequence testing demands.
    """
    base = [one for one in candidates if one.name == baseline]
    rivals = [one for one in candidates if one.name != baseline and (not base or better(one, base[0]))]
    hopeful = [one for one in rivals if not _hopeless(one, allowed)]
    if not base and not hopeful:
        hopeful = sorted(rivals, key=safety)[:1]
    return [*base, *likeliest(sorted(undominated(hopeful, speed), key=safety), FINALISTS - len(base), allowed, speed)]


def front(candidates: Sequence[Candidate]) -> tuple[Point, ...]:
    """The front of latency against predicted loss over all that were timed and screened, from the fastest on."""
    known = [one for one in candidates if one.timing is not None and math.isfinite(predicted(one))]
    best = sorted(undominated(known, by_time), key=by_time, reverse=True)
    return tuple(
        Point(one.name, one.plan.built_by, one.timing.milliseconds, one.timing.ratio, predicted(one), one.flip_rate is not None)
        for one in best
        if one.timing is not None
    )


def leaner(candidates: Sequence[Candidate], baseline: str, allowed: float | None = None) -> list[Candidate]:
    """The order for a target where nothing can be timed: float plans first, then INT8 plans that are leaner for sure.

    By static counts: no more launches and fewer bytes moved than the last float plan.  What depends on the kernels that the
    target would choose is not decided here; where no float plan may ship, every INT8 plan may.
    """
    floats = [one for one in candidates if not _int8(one)]
    floats.sort(key=lambda one: one.name != baseline)
    rivals = [one for one in candidates if _int8(one) and (not floats or _leaner(one, floats[-1]))]
    hopeful = [one for one in rivals if not _hopeless(one, allowed)]
    if not floats and not hopeful:
        hopeful = sorted(rivals, key=safety)[:1]
    return [*floats, *likeliest(sorted(hopeful, key=safety), FINALISTS - len(floats), allowed, _lightness)]


def _int8(one: Candidate) -> bool:
    return any(precision.startswith("int8") for precision in one.plan.precisions.values())


def _leaner(one: Candidate, other: Candidate) -> bool:
    if one.built is None or other.built is None or not one.built.launches or not other.built.launches:
        return False
    return len(one.built.launches) <= len(other.built.launches) and _lightness(one) > _lightness(other)


def _lightness(one: Candidate) -> float:
    """One over the bytes that all launches move."""
    moved = sum(launch.bytes for launch in one.built.launches) if one.built is not None else 0
    return 1.0 / moved if moved else 0.0


def _hopeless(one: Candidate, allowed: float | None) -> bool:
    """Whether a candidate surely loses many times what is allowed, or gives no numbers where that would matter."""
    if allowed is None:
        return False
    return (one.flip_low if one.flip_low is not None else predicted(one)) > _HOPELESS * allowed


def likeliest(front: Sequence[Candidate], room: int, allowed: float | None, speed: Speed) -> list[Candidate]:
    """At most `room` of a front, from the safest to the fastest; first goes what the gate would gain least by.

    Without a candidate, the one before it would ship wherever this one passes and the next does not: it is worth that chance times
    what it is faster by.
    """
    left = [(one, _chance(one, place / len(front), allowed)) for place, one in enumerate(front)]
    while len(left) > max(room, 1):
        worth = []
        for place in range(1, len(left)):
            (before, _), (one, chance), (_, next_chance) = left[place - 1], left[place], (*left, (None, 0.0))[place + 1]
            slow, fast = speed(before), speed(one)
            worth.append((chance - next_chance) * (math.log(fast / slow) if fast > slow > 0 else 0.0))
        del left[1 + worth.index(min(worth))]
    return [one for one, _ in left]


def _chance(one: Candidate, place: float, allowed: float | None) -> float:
    """The chance to pass; without a budget that can be predicted it falls evenly with the place, from 0 for the safest to 1."""
    if allowed is None:
        return 1.0 - place
    loss = predicted(one)
    return NormalDist().cdf(math.log(allowed / loss) / _DOUBT) if 0.0 < loss < math.inf else float(loss == 0.0)


def undominated(candidates: Sequence[Candidate], speed: Speed) -> list[Candidate]:
    """Those that no other is at least as fast and as near as, and better in one of the two."""
    places = [(speed(one), -predicted(one)) for one in candidates]
    return [one for one, own in zip(candidates, places, strict=True) if not any(_dominates(other, own) for other in places)]


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] >= other[0] and one[1] >= other[1]


def safety(one: Candidate) -> tuple[float, float]:
    """A key from the safest on: by predicted loss, of equals by distance."""
    return predicted(one), _distance(one)


def _distance(one: Candidate) -> float:
    return one.distance if one.distance is not None else math.inf
