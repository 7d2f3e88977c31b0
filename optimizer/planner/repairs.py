"""Repairs: a fast plan that loses too much, given back the least precision that makes it honest.

First comes what costs no speed, recovery; then layers are given back, and what is left lowered is recovered anew.  Each is a
generator of proposals that is sent back what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from calibration.ranges import METHODS
from optimizer.engine import Candidate
from optimizer.errors import OptimizeError
from optimizer.plan import Plan
from optimizer.planner.plans import half, in_integers, ranged
from optimizer.planner.problem import Problem
from optimizer.planner.sensitivity import sensitivities
from optimizer.planner.state import Mended, Proposal, State, speed
from optimizer.planner.switches import Switches
from optimizer.recovery import STEPS, Step, grid_of, noted

Proposals = Generator[Proposal, Candidate, None]

_FEW = 16
"""Of so many screening samples one measures sensitivities, and two at least: the difference between layers is orders of magnitude."""

WORTH = 0.97
"""Of the error before, what a step of recovery may leave at most: less of a gain is chance on so few samples."""

_FINE = 24
"""Parts of all layers below which a bisection does not look."""

_RUIN = 1e6
"""The error of outputs that are no numbers."""

_NOTHING = 0.02
"""Of a unit's time, the least that its lower precision is taken to save: where it saves nothing it goes back first."""


@dataclass(frozen=True)
class Broken:
    """A fast plan that loses too much: as it was `found`, with the recovery that is `best` for it, and the float plan below it.

    `problem` is the form of the model before recovery.  A layer that is given back gets the precision that `floor` has for it.
    """

    problem: Problem
    found: Candidate
    best: Candidate
    floor: Plan

    @property
    def name(self) -> str:
        """The best one's name without its backend's, which a proposal gets anew."""
        return own_name(self.problem, self.best)

    @property
    def lowered(self) -> list[str]:
        """The layers that can be given back, in the graph's order: where some are in INT8, those alone."""
        plan = self.found.plan
        lower = [layer.name for layer in self.problem.model.layers if plan.precision(layer.name) != self.floor.precision(layer.name)]
        return [name for name in lower if plan.precision(name).startswith("int8")] if in_int8(plan) else lower


def own_name(problem: Problem, candidate: Candidate) -> str:
    return candidate.name.removeprefix(f"{problem.backend} ")


def floor(state: State, problem: Problem, plan: Plan) -> Plan | None:
    """The float plan below an INT8 plan: all in FP32, or the fastest honest half-precision plan where that is its base.

    None where no half-precision plan is honest, or nothing is below.
    """
    full = problem.plan("fp32", "") if "fp32" in problem.capability.precisions else None
    if plan.base == "fp32" or not in_int8(plan):
        return full
    halves = [one for one in state.candidates if one.plan.base == plan.base and not in_int8(one.plan) and problem.solves(one.plan)]
    honest = [one for one in halves if state.honest(one)]
    if honest:
        return max(honest, key=speed).plan
    return half(problem, plan.base) if full is None else None


def recovery(state: State, problem: Problem, broken: Candidate) -> Generator[Proposal, Candidate, Candidate]:
    """The same layers, with what loses less: each step of recovery that brings the outputs nearer is kept; gives the best."""
    best = broken
    if "int8" not in broken.plan.precisions.values() or not problem.screening or problem.table is None:
        return best
    for step in STEPS:
        found = _recovering(state, problem, own_name(problem, best), best.plan, step)
        if found is None:
            continue
        plan = replace(found.plan, reason=f"{best.plan.reason}; {found.note}")
        tried = yield Proposal(problem, f"{own_name(problem, broken)} with {_listed(plan.recovery)}", plan)
        if tried.outcome != "not built" and (tried.distance or 0.0) < WORTH * (best.distance or 0.0):
            best = tried
    return best


def _recovering(state: State, problem: Problem, name: str, plan: Plan, step: Step) -> Mended | None:
    """What a step makes of the plan that is called `name`; one that fails is told and makes nothing."""
    try:
        return state.recovering(plan, step)
    except OptimizeError as error:
        state.not_built(problem, f"{name} with {step.__name__}", f"{error.reason} {error.remedy}")
        return None


def behind(state: State, broken: Broken) -> Proposals:
    """The first layers given back, as few as it takes: what reads raw inputs of a huge range stands there."""
    yield from _fewest(state, broken, [(layer,) for layer in broken.lowered], "behind {} layers", "the first {} of {} lowered layers are")


def cheapest(state: State, broken: Broken) -> Proposals:
    """The layers given back that lose most for the time they save, as few as it takes.

    What each loses is measured alone on a few calibration samples, and squared errors add up; what it saves is the difference of its
    times in the engine that nothing was lowered in and in this one.  A layer that runs inside another one's kernel goes with it.
    """
    problem, plan = broken.problem, broken.found.plan
    if not problem.screening or not broken.lowered:
        return
    units = _units(broken)
    found = state.journal.once("alone", [plan, broken.floor], dict[str, float], partial(_losses, state, broken, units))
    now = _times(broken.found)
    before = _times(state.plain(problem)) if now else {}

    def loss_for_time(unit: str) -> float:
        layers = units[unit]
        without, within = sum(before.get(layer, 0.0) for layer in layers), sum(now.get(layer, 0.0) for layer in layers)
        return found[unit] ** 2 / max(without - within, _NOTHING * without, 1e-9)

    order = sorted((unit for unit in units if found[unit] > 0.0), key=loss_for_time, reverse=True)
    why = (
        "{} of "
        + f"{len(order)} groups of layers that lose most in {plan.base.upper() if not in_int8(plan) else 'INT8'} for what they save are"
    )
    yield from _fewest(state, broken, [units[unit] for unit in order], "without {} layers", why)


def _fewest(state: State, broken: Broken, units: Sequence[Sequence[str]], name: str, why: str) -> Proposals:
    """The first units given back, as few as calibration samples ask for, found by bisection."""
    if len(units) < 2:
        return
    few, enough = 0, len(units)
    while enough - few > max(1, len(units) // _FINE):
        middle = (few + enough) // 2
        layers = [layer for unit in units[:middle] for layer in unit]
        plan = given_back(broken, layers, f"{why.format(middle, len(units))} given back, as few as calibration samples ask for")
        if plan is None:
            enough = middle
            continue
        found = yield Proposal(broken.problem, f"{broken.name} {name.format(len(layers))}", recovered_anew(state, broken, plan))
        if state.honest(found):
            enough = middle
        else:
            few = middle


def given_back(broken: Broken, layers: Iterable[str], why: str) -> Plan | None:
    """The plan without recovery, with `layers` and all that is not in INT8 as the floor has them; None where nothing lowered is left."""
    plan, base, problem = broken.found.plan, broken.floor, broken.problem
    back = set(layers)
    kept = {name: plan.precision(name) for name in broken.lowered if name not in back}
    if not kept:
        return None
    beside = base if in_int8(plan) else plan
    precisions = {**beside.precisions, **{name: base.precision(name) for name in back}, **kept}
    left = replace(plan, precisions=precisions, ranges={}, recovery=(), reasons={**plan.reasons, **dict.fromkeys(back, why)}, reason=why)
    if not in_int8(plan):
        return left
    return ranged(problem, left, method_of(plan)) if in_integers(problem, left) else None


def recovered_anew(state: State, broken: Broken, plan: Plan) -> Plan:
    """The plan with the steps of recovery that were best for the whole; one that fails or finds nothing is left out."""
    whole, steps = broken.best.plan, {step.__name__: step for step in STEPS}
    for name in whole.recovery:
        if name == "ranges":
            plan = _with_methods(state, plan, whole)
            continue
        found = _recovering(state, broken.problem, f"{broken.name} with layers given back", plan, steps[name])
        plan = found.plan if found is not None else plan
    return plan


def _with_methods(state: State, plan: Plan, whole: Plan) -> Plan:
    """The plan with the range methods that another one has for the same tensors."""
    problem = state.owner(plan)
    assert problem.table is not None
    statistics, grid = problem.table.statistics, grid_of(problem.capability)
    methods = {name: whole.ranges[name].method for name in plan.ranges if name in whole.ranges}
    ranges = {name: METHODS[method](statistics[name], grid) for name, method in methods.items()}
    return noted(replace(plan, ranges={**plan.ranges, **ranges}), "ranges")


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def method_of(plan: Plan) -> str:
    """The range method of a plan."""
    return next((chosen.method for chosen in plan.ranges.values()), "minmax")


def _units(broken: Broken) -> Mapping[str, tuple[str, ...]]:
    """The lowered layers by the one in whose kernel they run, in the graph's order; each by itself where no engine tells."""
    times = _times(broken.found)
    makers = {output: layer.name for layer in broken.problem.model.layers for output in layer.outputs}
    heads: dict[str, str] = {}
    for layer in broken.problem.model.layers:
        maker = next((makers[name] for name in layer.inputs if name in makers), None)
        inside = times and not times.get(layer.name) and maker is not None
        heads[layer.name] = heads.get(maker or "", layer.name) if inside else layer.name
    units: dict[str, tuple[str, ...]] = {}
    for name in broken.lowered:
        units[heads[name]] = (*units.get(heads[name], ()), name)
    return units


def _losses(state: State, broken: Broken, units: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    """By unit, how far it alone takes the outputs; numbers that are not finite count as a million."""
    samples = max(2, len(broken.problem.screening) // _FEW)
    with closing(Switches(broken.problem, broken.found.plan)) as switches:

        def error(several: Sequence[str]) -> float:
            return min(switches.error({layer for unit in several for layer in units[unit]}, samples), _RUIN)

        return dict(sensitivities(list(units), error, state.track))


def _times(candidate: Candidate) -> dict[str, float]:
    realised = candidate.built.realised if candidate.built is not None else ()
    return {one.layer: one.ms for one in realised if one.ms}


def in_int8(plan: Plan) -> bool:
    """Whether a plan has a layer in INT8."""
    return any(how.startswith("int8") for how in plan.precisions.values())


REPAIRS: tuple[Callable[[State, Broken], Proposals], ...] = (cheapest, behind)
