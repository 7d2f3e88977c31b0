"""The finals: candidates timed against each other, the front gated on held-out data from the safest to the fastest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir

from kernels.timing import race
from optimizer.data import Samples
from optimizer.engine import Arrays, Candidate, Engine, Parity
from optimizer.parity.gate import Question, judge, judge_lossless
from optimizer.planner.pareto import finalists, leaner
from optimizer.planner.problem import Problem
from optimizer.planner.search import opened
from optimizer.progress import Track, silent

RACE_SECONDS = 20.0


def timed(problem: Problem, candidates: Sequence[Candidate], feed: Arrays, track: Track = silent) -> list[Candidate]:
    """The candidates with their timings against the first one, in interleaved pairs on this machine.

    Where the target is not here nothing is timed, and the candidates come back as they were.
    """
    runnable = [one for one in candidates if one.folder is not None]
    if not problem.capability.runs_here or not runnable:
        return list(candidates)
    with ExitStack() as stack:
        runs = {one.name: partial(stack.enter_context(_open(problem, one)).run, feed) for one in runnable}
        timings = race(runs, runnable[0].name, seconds=RACE_SECONDS, timed_on=problem.target.device, track=track)
    return [replace(one, timing=timings.get(one.name)) for one in candidates]


@contextmanager
def _open(problem: Problem, candidate: Candidate) -> Iterator[Engine]:
    engine = opened(problem, candidate)
    try:
        yield engine
    finally:
        engine.close()


@dataclass(frozen=True)
class Evidence:
    """What the gate judges by: held-out samples with the parent's scores on them (None without evaluation data).

    `feeds` are a few samples, of any origin, for engines with no lossy step, which are judged numerically.
    """

    parent: ir.Model
    feeds: Sequence[Arrays]
    question: Question | None
    samples: Samples | None


def gated(
    problem: Problem, candidates: Sequence[Candidate], evidence: Evidence, track: Track = silent
) -> tuple[list[Candidate], Candidate]:
    """All candidates with what became of them, and the one that ships or, where none passed, that the verdict is about.

    Fixed-sequence testing: each finalist at the full 5 %, from the safest to the fastest; the first that does not pass ends it
    and the last that passed ships, so the chance to ship one that is too bad stays at 5 % however many there are.
    """
    baseline = candidates[0].name
    wanted = [one for one in candidates if one.outcome != "not built" and _is_wanted(problem, one, baseline)]
    order = finalists(wanted, baseline) if problem.capability.runs_here else leaner(wanted, baseline)
    told = {one.name: one for one in candidates}
    shipped: Candidate | None = None
    subject = order[0]
    for number, finalist in enumerate(order):
        track(f"gate: {finalist.name}", number, len(order))
        parity = _judged(problem, finalist, evidence, track)
        told[finalist.name] = replace(
            finalist, parity=parity, outcome="passed" if parity.verdict == "pass" else "refused", reason=parity.reason
        )
        if parity.verdict != "pass":
            subject = shipped or told[finalist.name]
            break
        shipped = subject = told[finalist.name]
    told = {name: _explained(one, order, baseline) for name, one in told.items()}
    if shipped is not None:
        subject = told[shipped.name] = replace(told[shipped.name], outcome="shipped")
    return list(told.values()), subject


def _is_wanted(problem: Problem, candidate: Candidate, baseline: str) -> bool:
    """Whether a candidate may ship: with a precision asked for by name only plans that have it may, be they slower."""
    if problem.given is not None:
        return candidate.name != baseline
    if problem.wanted == "auto":
        return True
    if problem.wanted == "int8":
        return any(precision.startswith("int8") for precision in candidate.plan.precisions.values())
    return candidate.plan.base == problem.wanted and not any(one.startswith("int8") for one in candidate.plan.precisions.values())


def _judged(problem: Problem, candidate: Candidate, evidence: Evidence, track: Track) -> Parity:
    gated_on = problem.target.device if problem.capability.runs_here else "simulation"
    with _open(problem, candidate) as engine:
        if candidate.plan.lossless:
            return judge_lossless(evidence.parent, engine.run, evidence.feeds, gated_on=gated_on)
        if evidence.question is None or evidence.samples is None:
            return _nothing_to_judge(gated_on)
        return judge(evidence.question, engine.run, evidence.samples, gated_on=gated_on, track=track)


def _nothing_to_judge(gated_on: str) -> Parity:
    why = "there is no evaluation data: what a lower precision loses can't be told without held-out samples"
    return Parity("inconclusive", "none", None, None, None, None, None, None, 0, None, gated_on, why)


def _explained(candidate: Candidate, order: Sequence[Candidate], baseline: str) -> Candidate:
    """A candidate that was not asked, with the reason."""
    if candidate.parity is not None or candidate.outcome == "not built":
        return candidate
    if candidate.name in {one.name for one in order}:
        return replace(candidate, outcome="not finalist", reason="a safer candidate did not pass, which ended the sequence")
    timing = candidate.timing
    if timing is not None and timing.low <= 1.0:
        why = f"not faster than {baseline} here: {timing.ratio:.2f}x [{timing.low:.2f}, {timing.high:.2f}]"
        return replace(candidate, outcome="slower", reason=why)
    if timing is None:
        return replace(candidate, outcome="not finalist", reason=candidate.reason or _heavier(candidate, order))
    return replace(candidate, outcome="not finalist", reason="another candidate is as fast and nearer to the parent")


def _heavier(candidate: Candidate, order: Sequence[Candidate]) -> str:
    if candidate.built is None or not candidate.built.launches:
        return "not timed, and its launches can't be counted here"
    counts: Mapping[str, tuple[int, int]] = {
        one.name: (len(one.built.launches), sum(launch.bytes for launch in one.built.launches))
        for one in (candidate, *order)
        if one.built is not None
    }
    own = counts[candidate.name]
    others = "; ".join(
        f"{name} {launches} launches, {moved / 1e6:.2f} MB" for name, (launches, moved) in counts.items() if name != candidate.name
    )
    return f"not timed, and by static counts not leaner: {own[0]} launches, {own[1] / 1e6:.2f} MB moved, against {others}"
