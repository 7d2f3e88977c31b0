"""The gate: does the engine lose less than the budget? Three verdicts from one-sided bounds on held-out samples.

The null hypothesis is "the loss is at least the budget": PASS where the upper bound is under it, FAIL where the lower bound is
over it, else INCONCLUSIVE.  How the bounds are made stands in `statistics`; how often they are wrong, in docs/gate.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from optimizer.data import Samples
from optimizer.engine import Arrays, Parity, Verdict
from optimizer.errors import InputError
from optimizer.parity.budget import absolute
from optimizer.parity.held_out import held_out
from optimizer.parity.lossless import judge_lossless
from optimizer.parity.metrics import Metric
from optimizer.parity.outputs import Outputs, collect
from optimizer.parity.power import Needed, needed_from_flips, needed_from_losses
from optimizer.parity.question import NoQuestion, Question, ask, question_from_words
from optimizer.parity.scores import Scores, in_blocks, scores_of
from optimizer.parity.statistics import Bounds, Contrast, clopper_pearson, difference, fewest_samples, mean, ratio
from optimizer.progress import Track, silent

__all__ = [
    "Gated",
    "NoQuestion",
    "Question",
    "ask",
    "gate",
    "held_out",
    "judge",
    "judge_lossless",
    "question_from_words",
    "undecided",
    "verdict_on",
    "with_minimum",
]


def judge(
    question: Question | NoQuestion,
    engine: Callable[[Arrays], Arrays],
    samples: Samples,
    *,
    gated_on: str,
    block: int = 1,
    track: Track = silent,
) -> Parity:
    """Runs the engine on the samples that the parent answered, and decides.

    `block` consecutive samples count as one: where they are a sequence, neighbours are no independent evidence.
    """
    if isinstance(question, NoQuestion):
        return undecided("none", gated_on, question.reason)
    answers = collect(engine, samples, question.metric, question.labels, like=question.parent.reading, track=track)
    return verdict_on(question, answers, gated_on=gated_on, block=block)


def verdict_on(question: Question, answers: Outputs, *, gated_on: str, block: int = 1) -> Parity:
    """The verdict on an engine's answers to the question."""
    if block > 1:
        question = _in_blocks(question, block)
    metric, parent = question.metric, question.scores
    engine = in_blocks(scores_of(metric, answers, question.parent, question.labels), block)
    if len(answers) != len(question.parent):
        raise InputError(f"The engine gave {len(answers)} answers where the parent gave {len(question.parent)}.", "Rebuild it.")
    budget = absolute(question.budget, parent.value, metric)
    part = Parity(
        verdict="fail",
        metric=metric.name,
        parent=parent.value,
        engine=engine.value,
        budget=budget,
        drop=None,
        low=None,
        high=None,
        samples=len(answers),
        samples_needed=None,
        gated_on=gated_on,
        reason="",
        notes=question.notes,
        threshold=question.threshold,
    )
    if engine.broken and not np.isfinite(engine.value):
        return replace(part, engine=None, reason=f"the engine gives NaN or infinity on {engine.broken} of {len(answers)} samples")
    drop = (parent.value - engine.value) * (1.0 if metric.higher_is_better else -1.0)
    bounds = _bounds(question, engine, drop, budget)
    needed = _needed(question, engine, drop, budget, block)
    verdict: Verdict = "pass" if bounds.high < budget else "fail" if bounds.low > budget else "inconclusive"
    fewest = fewest_samples(question.budget.value) * block
    reason = _reason(verdict, len(answers), drop, budget, needed)
    if verdict == "inconclusive" and parent.counted * block < fewest:
        of_what = "of the rarer class " if metric.of_rarer_class else ""
        reason += f"; nothing can pass a budget of {question.budget} below {fewest:,} samples {of_what}(here {parent.counted * block:,})"
    if engine.broken:
        reason += f"; it gives NaN or infinity on {engine.broken} samples, which count as wrong"
    verdict, reason = _with_minimum(question, engine, verdict, reason)
    total = None if needed is None else max(needed.median, len(answers) + 1) if verdict == "inconclusive" else needed.median
    return replace(part, verdict=verdict, drop=drop, low=bounds.low, high=bounds.high, samples_needed=total, reason=reason)


def _in_blocks(question: Question, block: int) -> Question:
    scores = in_blocks(question.scores, block)
    note = (
        f"neighbours in a sequence are no independent evidence: by how long the error stays alike, {block} consecutive samples count "
        f"as one, in all {len(scores.each):,}"
    )
    return replace(question, scores=scores, notes=(*question.notes, note))


def _bounds(question: Question, engine: Scores, drop: float, budget: float) -> Bounds:
    """One-sided 95 % bounds of the drop in the metric's own unit; for a relative budget those of the ratio times the parent's."""
    metric, parent, relative = question.metric, question.scores, question.budget.relative
    scale = parent.value if relative else 1.0
    if metric.name == "agreement" and engine.binary:
        bounds = clopper_pearson(int((engine.each == 0).sum()), len(engine.each))
    elif parent.binary and engine.binary:
        lost, won = _flips(parent, engine)
        right = int(parent.each.sum())
        bounds = (ratio(lost, won, right, len(parent.each)) if relative else difference(lost, won, len(parent.each))).times(scale)
    else:
        contrast = _contrast(metric, parent, engine)
        bounds = (contrast.ratio() if relative else contrast.difference()).times(scale)
        if parent.counted < fewest_samples(question.budget.value):
            bounds = Bounds(bounds.low, max(bounds.high, budget))
    return Bounds(min(bounds.low, drop), max(bounds.high, drop))  # a jackknife corrects its centre; rounding moves the others


def _flips(parent: Scores, engine: Scores) -> tuple[int, int]:
    """Samples that only the parent has right, and samples that only the engine has right."""
    return int(((parent.each == 1) & (engine.each == 0)).sum()), int(((parent.each == 0) & (engine.each == 1)).sum())


def _contrast(metric: Metric, parent: Scores, engine: Scores) -> Contrast:
    """The paired scores, with the most that one sample can take: 1 of a bounded score, else the worst seen of either."""
    if parent.pseudo is not None and engine.pseudo is not None:
        return Contrast(parent.pseudo, engine.pseudo, metric.higher_is_better, abs(parent.value), parent.counted)
    worst = 1.0 if metric.bounded or parent.within_one else float(max(np.abs(parent.each).max(), np.abs(engine.each).max()))
    return Contrast(parent.each, engine.each, metric.higher_is_better, worst, len(parent.each))


def _needed(question: Question, engine: Scores, drop: float, budget: float, block: int) -> Needed | None:
    """How many samples would decide, in whole blocks."""
    needed = _blocks_needed(question, engine, drop, budget)
    if needed is None:
        return None
    return Needed(needed.median * block, needed.low * block, None if needed.high is None else needed.high * block)


def _blocks_needed(question: Question, engine: Scores, drop: float, budget: float) -> Needed | None:
    metric, parent, count = question.metric, question.scores, len(engine.each)
    if parent.binary and engine.binary:
        return needed_from_flips(*_flips(parent, engine), count, budget)
    contrast = _contrast(metric, parent, engine)
    shares = contrast.loss - (question.budget.value * contrast.parent if question.budget.relative else 0.0)
    variance = float(shares.var(ddof=1)) * count / len(shares) if len(shares) > 1 else float("nan")
    needed = needed_from_losses(drop, variance, count, budget, contrast.worst * count / contrast.samples)
    floor = fewest_samples(question.budget.value) * count // max(contrast.samples, 1)
    return None if needed is None else replace(needed, median=max(needed.median, floor), low=max(needed.low, floor))


def _reason(verdict: Verdict, samples: int, drop: float, budget: float, needed: Needed | None) -> str:
    if verdict == "pass":
        return "the upper bound of the drop is under the budget"
    if verdict == "fail":
        return "the lower bound of the drop is over the budget"
    if needed is None:
        return f"the drop of {drop:.4g} that was seen is not under the budget of {budget:.4g}: more samples would not turn it into a PASS"
    more = max(needed.median - samples, 1)
    span = f"{needed.low:,} and {needed.high:,}" if needed.high is not None else f"{needed.low:,} and more than can be told"
    return f"about {more:,} more samples would decide it (in all about {needed.median:,}, between {span})"


def with_minimum(parity: Parity, question: Question, engine: Callable[[Arrays], Arrays], samples: Samples, track: Track = silent) -> Parity:
    """A verdict that was found without the question (an engine with no lossy step) together with its --min-metric: an engine as
    exact as a ruined parent can't pass either."""
    if question.min_metric is None:
        return parity
    answers = collect(engine, samples, question.metric, question.labels, like=question.parent.reading, track=track)
    scores = scores_of(question.metric, answers, question.parent, question.labels)
    verdict, reason = _with_minimum(question, scores, parity.verdict, parity.reason)
    return replace(parity, verdict=verdict, reason=reason)


def _with_minimum(question: Question, engine: Scores, verdict: Verdict, reason: str) -> tuple[Verdict, str]:
    """The verdict together with --min-metric, which the engine's own bound must keep whatever the parent does."""
    wanted, metric = question.min_metric, question.metric
    if wanted is None:
        return verdict, reason
    own = _own_bounds(metric, engine)
    surely, perhaps = (own.low >= wanted, own.high >= wanted) if metric.higher_is_better else (own.high <= wanted, own.low <= wanted)
    if surely:
        return verdict, reason
    side = f"{own.low:.4g} to {own.high:.4g}"
    if not perhaps:
        return "fail", f"the engine's own {metric.name}, {side}, does not reach the {wanted:g} that --min-metric asks"
    if verdict == "fail":
        return verdict, reason
    return "inconclusive", f"the engine's own {metric.name}, {side}, does not surely reach the {wanted:g} that --min-metric asks"


def _own_bounds(metric: Metric, engine: Scores) -> Bounds:
    if engine.binary:
        return clopper_pearson(int(engine.each.sum()), len(engine.each))
    if engine.pseudo is not None:
        return mean(engine.pseudo, abs(engine.value), engine.counted)
    worst = 1.0 if metric.bounded or engine.within_one else float(np.abs(engine.each).max())
    return mean(engine.each, worst, len(engine.each))


def undecided(metric: str, gated_on: str, reason: str) -> Parity:
    """INCONCLUSIVE without a number: nothing was there to judge by."""
    return Parity("inconclusive", metric, None, None, None, None, None, None, 0, None, gated_on, reason)


@dataclass(frozen=True)
class Gated:
    """What became of each candidate, None where it was not asked; `shipped` is the last that passed, if any."""

    tries: tuple[tuple[str, Parity | None], ...]
    shipped: str | None


def gate(candidates: Sequence[tuple[str, Callable[[], Parity]]]) -> Gated:
    """Fixed-sequence testing of candidates ordered from the safest to the fastest, each at the full 5 %.

    The first that does not pass ends it.  For one that is too bad to ship, it must itself pass falsely, and the first such in
    the order must do so before any other can: so the chance stays 5 % however many there are.
    """
    tries: list[tuple[str, Parity | None]] = []
    shipped: str | None = None
    going = True
    for name, judged in candidates:
        parity = judged() if going else None
        tries.append((name, parity))
        going = parity is not None and parity.verdict == "pass"
        shipped = name if going else shipped
    return Gated(tuple(tries), shipped)
