"""Why a plan won, in a few sentences from what was measured: which engine, what was rewritten and lowered, what each step gave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from optimizer.engine import Candidate
from optimizer.report.headline import predicted, titled

_FEW = 3
"""Layers, and rules of rewriting, that a sentence names."""

_WORTH_TELLING = 1.01


def why_it_won(subject: Candidate, candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """Sentences about the subject, and about those of `candidates`, in the order they were tried, that were a step on the way."""
    return tuple(filter(None, (_engine(subject), _rewrites(subject), _left(subject), _steps(subject, candidates))))


def _engine(subject: Candidate) -> str:
    """The engine, its speed, and in which precisions it runs how many layers."""
    layers = Counter(layer.realised for layer in subject.built.realised) if subject.built is not None else Counter[str]()
    counts = ", ".join(f"{count} in {titled(how)}" for how, count in layers.most_common() if how not in ("folded", "unknown"))
    runs = f"{titled(subject.name)} runs on {' and '.join(subject.plan.backends)}"
    timing = subject.timing
    fast = "" if timing is None or timing.versus == subject.name else f", {timing.ratio:.2f} times as fast as {titled(timing.versus)}"
    lost = predicted(subject)
    return f"{runs}{fast}{f'; layers: {counts}' if counts else ''}{f'; predicted to lose: {lost}' if lost else ''}."


def _rewrites(subject: Candidate) -> str:
    """Exact rewrites by rule, with the layers they are at, and the steps that recovered accuracy."""
    places: dict[str, list[str]] = {}
    for rewrite in subject.plan.rewrites:
        places.setdefault(rewrite.rule, []).append(rewrite.layer)
    rules = sorted(places, key=lambda rule: -len(places[rule]))
    told = [f"{rule} at {_named(places[rule])}" for rule in rules[:_FEW]]
    more = f" and {len(rules) - _FEW} more rules" if len(rules) > _FEW else ""
    exact = f"Rewritten exactly: {'; '.join(told)}{more}." if told else ""
    recovered = f"Accuracy recovered by {', '.join(subject.plan.recovery)}." if subject.plan.recovery else ""
    return " ".join(filter(None, (exact, recovered)))


def _left(subject: Candidate) -> str:
    """Layers that were given a higher precision than the lowest of the plan, by reason, where the plan has a reason."""
    plan = subject.plan
    if not any(how.startswith("int8") for how in plan.precisions.values()):
        return ""
    reasons: dict[str, list[str]] = {}
    for layer, why in plan.reasons.items():
        if not plan.precision(layer).startswith("int8"):
            reasons.setdefault(why, []).append(layer)
    most = sorted(reasons, key=lambda why: -len(reasons[why]))[:_FEW]
    return f"Not in INT8: {'; '.join(f'{_named(reasons[why])} ({why})' for why in most)}." if most else ""


def _steps(subject: Candidate, candidates: Sequence[Candidate]) -> str:
    """What each candidate that was the fastest when it was tried gave over the one before it, up to the subject's speed."""
    own = subject.timing.ratio if subject.timing is not None else 0.0
    steps = [
        f"{titled(one.name)} {one.gain:.2f}x{f' in {one.seconds:.3g} s' if one.seconds is not None else ''}"
        for one in candidates
        if one.gain is not None and one.gain >= _WORTH_TELLING and one.timing is not None and one.timing.ratio <= own
    ]
    return f"What each step gave over the fastest before it: {', '.join(steps)}." if steps else ""


def _named(layers: Iterable[str]) -> str:
    names = list(layers)
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")
