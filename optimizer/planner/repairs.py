"""Repairs: a fast plan that loses too much, given back the least precision that makes it honest.

Each is a generator of proposals that is sent back what was measured, from the one that usually costs the least speed on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

from optimizer.engine import Candidate
from optimizer.errors import OptimizeError
from optimizer.plan import Plan, Precision
from optimizer.planner.plans import in_integers, ranged, without_the_worst
from optimizer.planner.problem import Problem
from optimizer.planner.sensitivity import sensitivities
from optimizer.planner.state import Proposal, State
from optimizer.recovery import STEPS

Proposals = Generator[Proposal, Candidate, None]

_FEW = 4
"""Samples that sensitivities are measured on: the difference between layers is orders of magnitude."""

WORTH = 0.97
"""Of the error before, what a step of recovery may leave at most: less of a gain is chance on so few samples."""

_SHARES = (0.9, 0.7, 0.5)
"""Shares of the time of the layers in question that stay lowered."""


def recovery(state: State, problem: Problem, broken: Candidate) -> Proposals:
    """The same layers, with what loses less: each step of recovery that brings the outputs nearer is kept."""
    if not any(how == "int8" for how in broken.plan.precisions.values()) or not problem.screening or problem.table is None:
        return
    best = broken
    for step in STEPS:
        try:
            found = state.recovering(best.plan, step)
        except OptimizeError as error:
            state.not_built(problem, f"{_own(problem, best)} with {step.__name__}", f"{error.reason} {error.remedy}")
            continue
        if found is None:
            continue
        plan = replace(found.plan, reason=f"{best.plan.reason}; {found.note}")
        tried = yield Proposal(problem, f"{_own(problem, broken)} with {' and '.join(plan.recovery)}", plan)
        if tried.outcome != "not built" and (tried.distance or 0.0) < WORTH * (best.distance or 0.0):
            best = tried


def behind(state: State, problem: Problem, broken: Candidate) -> Proposals:
    """The first layers in FP32, as few as it takes, found by bisection: what reads raw inputs of a huge range stands there."""
    order = [layer.name for layer in problem.model.layers if broken.plan.precision(layer.name) != "fp32"]
    if "fp32" not in problem.capability.precisions or len(order) < 2:
        return
    few, enough = 0, len(order)
    while enough - few > max(1, len(order) // 24):
        middle = (few + enough) // 2
        why = f"the first {middle} of {len(order)} lowered layers are given back, as few as calibration samples ask for"
        plan = again(problem, broken.plan, order[:middle], why)
        if plan is None:
            enough = middle
            continue
        found = yield Proposal(problem, f"{_own(problem, broken)} behind {middle} layers", plan)
        if state.honest(found):
            enough = middle
        else:
            few = middle


def dearest(state: State, problem: Problem, broken: Candidate) -> Proposals:
    """Only the layers that take most of the unquantized engine's time stay lowered."""
    times = _times(state.plain(problem))
    order = sorted((name for name in _lowered(broken.plan, problem) if times.get(name)), key=lambda name: -times[name])
    total, seen = sum(times[name] for name in order), set[int]()
    for share in _SHARES:
        kept, sum_ = 0, 0.0
        while kept < len(order) and sum_ < share * total:
            sum_ += times[order[kept]]
            kept += 1
        if kept in seen or not 0 < kept < len(order):
            continue
        seen.add(kept)
        others = [name for name in _lowered(broken.plan, problem) if name not in order[:kept]]
        plan = again(problem, broken.plan, others, f"only the {kept} layers that take {share:.0%} of the time are lowered")
        if plan is not None:
            yield Proposal(problem, f"{_own(problem, broken)} in {kept} layers", plan)


def without_broken(state: State, problem: Problem, broken: Candidate) -> Proposals:
    """Without the layers that lose most by themselves, each measured alone on a few calibration samples."""
    if not problem.screening:
        return
    plan = broken.plan
    lowered = [name for name in _lowered(plan, problem) if plan.precision(name).startswith("int8")]
    base = replace(plan, precisions={layer: how for layer, how in plan.precisions.items() if not how.startswith("int8")}, ranges={})
    nothing = state.error(problem, base, _FEW)

    def error(layers: Sequence[str]) -> float:
        alone = replace(base, precisions={**base.precisions, **{layer: plan.precision(layer) for layer in layers}})
        return max(state.error(problem, ranged(problem, alone, method_of(plan)), _FEW) - nothing, 0.0)

    for suffix, left in without_the_worst(plan, sensitivities(lowered, error, state.track)):
        if in_integers(problem, left):
            yield Proposal(problem, f"{_own(problem, broken)} {suffix}", ranged(problem, left, method_of(plan)))


def again(problem: Problem, plan: Plan, layers: Sequence[str], why: str) -> Plan | None:
    """The plan with `layers` back in float; None where nothing lowered would be left."""
    back: Precision = "fp32" if "fp32" in problem.capability.precisions else plan.base
    left = replace(plan, ranges={}).with_precision(layers, back, why)
    if left.lossless:
        return None
    if any(how.startswith("int8") for how in plan.precisions.values()) and not in_integers(problem, left):
        return None
    return ranged(problem, left, method_of(plan))


def method_of(plan: Plan) -> str:
    """The range method of a plan."""
    return next((chosen.method for chosen in plan.ranges.values()), "minmax")


def _lowered(plan: Plan, problem: Problem) -> list[str]:
    return [layer.name for layer in problem.model.layers if plan.precision(layer.name) != "fp32"]


def _times(candidate: Candidate) -> dict[str, float]:
    realised = candidate.built.realised if candidate.built is not None else ()
    return {one.layer: one.ms for one in realised if one.ms}


def _own(problem: Problem, candidate: Candidate) -> str:
    """The candidate's name without its backend's, which a proposal gets anew."""
    return candidate.name.removeprefix(f"{problem.backend} ")


REPAIRS: tuple[Callable[[State, Problem, Candidate], Proposals], ...] = (recovery, behind, dearest, without_broken)
