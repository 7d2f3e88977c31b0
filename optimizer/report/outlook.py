"""What the build would give under another budget: the next faster plans, and by how much the best of those refused missed."""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.engine import Candidate, Parity
from optimizer.report.headline import NUMERIC, dropped, is_rate, needed, points, titled

_TIMES = (1.5, 2.0, 3.0, 5.0, 10.0, 20.0)
"""Budgets that are told, by the present one."""

_FASTER = 1.02
"""Times the speed of what ships from which on a plan would be worth another budget."""

_MOST = 3


def outlook(subject: Candidate, candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """Sentences: what a looser budget would buy, and where nothing faster than the unquantized engine passed, the closest miss."""
    return (*looser(subject, candidates), *filter(None, [closest_miss(subject, candidates)]))


def looser(subject: Candidate, candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """The fastest plan under each larger budget that would buy speed, by what the gate measured, else by what was predicted."""
    asked = _asked(subject, candidates)
    if asked is None or asked.budget is None:
        return ()
    told, speed = [], _own(subject) * _FASTER
    for times in _TIMES:
        budget = times * asked.budget
        within = [one for one in candidates if _ratio(one) > speed and (loss := _at_most(one, asked.metric)) is not None and loss < budget]
        if not within:
            continue
        best = max(within, key=_ratio)
        speed = _ratio(best) * _FASTER
        allowed = f"with {points(budget, asked.metric)} instead of {points(asked.budget, asked.metric)} allowed"
        told.append(f"{allowed}: {titled(best.name)} {_ratio(best):.2f}x, {_loss(best, asked.metric)}")
    return tuple(told[:_MOST])


def closest_miss(subject: Candidate, candidates: Sequence[Candidate]) -> str:
    """Of the plans that were judged and did not pass, the one whose bound is nearest to its budget; "" where a faster one passed."""
    if any(one.parity is not None and one.parity.verdict == "pass" and _ratio(one) > 1.0 for one in candidates):
        return ""
    missed = [
        (one, one.parity, one.parity.high / one.parity.budget)
        for one in candidates
        if one.parity is not None and one.parity.verdict != "pass" and one.parity.high is not None and one.parity.budget
    ]
    if not missed or (len(missed) == 1 and missed[0][0].name == subject.name):
        return ""
    one, parity, _ = min(missed, key=lambda miss: miss[2])
    speed = f" ({_ratio(one):.2f}x)" if one.timing is not None else ""
    lost = dropped(parity.drop, parity.low, parity.high, parity.metric)
    over = needed(parity) if parity.verdict == "inconclusive" else f"surely {_over(parity)} too much"
    return f"closest miss: {titled(one.name)}{speed}, {lost} where {points(parity.budget, parity.metric)} is allowed: {over}"


def _over(parity: Parity) -> str:
    """By how much even the lower bound of the drop is over the budget."""
    return points((parity.low or 0.0) - (parity.budget or 0.0), parity.metric)


def _asked(subject: Candidate, candidates: Sequence[Candidate]) -> Parity | None:
    """The question that lossy plans were asked: any one's answer tells its metric and its budget."""
    judged = [one.parity for one in (subject, *candidates) if one.parity is not None]
    return next((parity for parity in judged if parity.metric != NUMERIC and parity.budget is not None), None)


def _own(subject: Candidate) -> float:
    """The speed of what ships, or of the unquantized engine where nothing does."""
    return max(_ratio(subject), 1.0) if subject.parity is not None and subject.parity.verdict == "pass" else 1.0


def _ratio(one: Candidate) -> float:
    return one.timing.ratio if one.timing is not None else 0.0


def _at_most(one: Candidate, metric: str) -> float | None:
    """What a candidate surely loses no more of a metric than; None where nothing tells."""
    if one.parity is not None and one.parity.metric == metric and one.parity.high is not None:
        return one.parity.high
    if is_rate(metric):
        return one.flip_high
    return one.loss if metric == "cosine" and one.flip_rate is None else None


def _loss(one: Candidate, metric: str) -> str:
    if one.parity is not None and one.parity.metric == metric and one.parity.drop is not None:
        return f"measured drop {dropped(one.parity.drop, one.parity.low, one.parity.high, metric)}"
    return f"predicted drop at most {points(_at_most(one, metric), metric)}"
