"""Moves: from the state of a search to plans worth measuring, in the order of what they usually give for a second of search.

A move is a generator: it yields a proposal and is sent back what was measured of it. A new idea is a new function here and a
place in MOVES; the loop never learns of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial

from calibration.ranges import METHODS
from optimizer.engine import Candidate
from optimizer.errors import UnavailableError
from optimizer.fusion.rewrites import EVERYWHERE, offers
from optimizer.graph import quantized
from optimizer.plan import Plan, Precision, Rewrite
from optimizer.planner.plans import everywhere, half, mixed, on_half, ranged, unquantized
from optimizer.planner.problem import Problem
from optimizer.planner.repairs import REPAIRS, Broken, floor, given_back, in_int8, own_name, recovery
from optimizer.planner.state import GIVEN, Proposal, State, speed
from optimizer.planner.stretches import by_engine
from optimizer.planner.tuning import tuned
from optimizer.precision import eligible, quantized_tensors

Proposals = Generator[Proposal, Candidate, None]

ALONE = 3
"""Places of a rewrite that are tried one by one where all together did not pay, the dearest first."""

REPAIRED = 3
"""Plans that are mended, the fastest first."""

REWRITING = 0.15
"""The part of the time for the search that exact rewrites may take."""

NEARLY = 0.98
"""What looks slower than this beside the best is not held against it in pairs."""

_FEW = 4
"""Layers that a reason names."""

ALMOST = 0.97
"""A mended plan with so much of the broken one's speed needs no further repair."""

FLOATS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")

_RANGED_ON = 8
"""Screening samples that range methods are compared on."""


@dataclass(frozen=True)
class Move:
    """A step of the search. One that is `optional` is cut short where the time is up."""

    name: str
    run: Callable[[State], Proposals]
    optional: bool = True


def unlowered(state: State) -> Proposals:
    """Each backend's unquantized engine, with the knobs that it runs fastest with."""
    for problem in list(state.bases):
        name, plan = next(unquantized(problem))
        found = yield Proposal(problem, name, plan)
        if found.outcome == "not built":
            continue
        chosen = state.journal.once("knobs", [plan, problem.choices], Tuned, partial(_tuned, state, problem, found))
        if chosen.told:
            state.settle_knobs(problem, found, replace(found.plan, knobs=chosen.knobs, reason=f"{plan.reason}; {chosen.told}"))
    if not state.able:
        raise UnavailableError(state.candidates[0].reason, "Choose another target; optimize inspect tells what each can take.")


@dataclass(frozen=True)
class Tuned:
    """The knobs that an engine runs fastest with, and what was measured, in words ("" where nothing was)."""

    knobs: dict[str, int | float | str | bool]
    told: str


def _tuned(state: State, problem: Problem, candidate: Candidate) -> Tuned:
    knobs, told = tuned(problem, state.ready(candidate), state.feed, state.track)
    return Tuned(dict(knobs), told)


def rewritten(state: State) -> Proposals:
    """Exact rewrites, each kept only where it makes the unquantized engine faster here: all places of a rule, else one by one."""
    if not state.timeable or any(problem.given is not None for problem in state.bases):
        return
    for base in list(state.able):
        form, best = base, state.plain(base)
        tried = set[tuple[str, str]]()
        until = state.clock.left - REWRITING * state.clock.seconds / len(state.bases)
        while (chosen := _next_rewrite(form, tried)) is not None and not state.time_is_up(
            ["exact rewrites", form.plan("fp32", ""), chosen], until
        ):
            tried.add((chosen.rule, chosen.layer))
            changed = form.rewritten([chosen])
            name, plan = next(unquantized(changed))
            found = yield Proposal(changed, f"{name} {_told(changed)}", replace(plan, reason=_at(changed)))
            if found.outcome != "not built" and speed(found) > NEARLY * speed(best) and state.faster(found, best):
                form, best = state.form(changed), found
        if _next_rewrite(form, tried) is not None:
            state.left_out.append("exact rewrites")
        state.prefer(form)


def _next_rewrite(form: Problem, tried: set[tuple[str, str]]) -> Rewrite | None:
    """What is worth trying next, the dearest first: a rule at all its places, and where that did not pay at a few of them alone."""
    alone = Counter(rule for rule, layer in tried if layer != EVERYWHERE)
    for one in offers(form.model):
        if (one.rule, one.layer) not in tried and (one.layer == EVERYWHERE or alone[one.rule] < ALONE):
            return one
    return None


def _told(form: Problem) -> str:
    counts = Counter(one.rule for one in form.rewrites)
    everywhere = {one.rule for one in form.rewrites if one.layer == EVERYWHERE}
    return "with " + ", ".join(rule if rule in everywhere or count == 1 else f"{rule} ({count})" for rule, count in counts.items())


def _at(form: Problem) -> str:
    places = ["every place" if one.layer == EVERYWHERE else one.layer for one in form.rewrites]
    more = f" and {len(places) - _FEW} more" if len(places) > _FEW else ""
    return f"exact rewrites at {', '.join(places[:_FEW])}{more}"


def by_name(state: State) -> Proposals:
    """A plan that was given, or the float precision that was asked for by name."""
    for problem in list(state.able):
        if problem.given is not None:
            form = problem.rewritten(problem.given.rewrites) if problem.given.rewrites else problem
            yield Proposal(form, GIVEN, replace(problem.given, knobs=problem.knobs, shapes=problem.shapes))
        for precision in FLOATS:
            if problem.given is None and problem.wanted == precision != state.plain(problem).plan.base:
                yield Proposal(problem, precision, half(problem, precision))


def halves(state: State) -> Proposals:
    """Everything in half precision, where the backend has it."""
    for problem in list(state.able):
        if problem.wanted == "auto" and problem.given is None:
            for precision in sorted(_halves(problem) - {"fp32"}):
                for form in state.preferred(problem):
                    yield Proposal(form, _called(form, precision), half(form, precision))


def _called(form: Problem, name: str) -> str:
    return f"{name} rewritten" if form.rewrites else name


def _halves(problem: Problem) -> frozenset[Precision]:
    """Half precisions worth trying unasked: all of the backend's where they can be timed, else the usual one."""
    capability = problem.capability
    return capability.precisions & {"bf16", "fp16"} if capability.runs_here else frozenset({capability.base})


def integers(state: State) -> Proposals:
    """INT8 wherever it can be: static, dynamic, both together; the rest in float or in half precision."""
    refused: UnavailableError | None = None
    some = False
    for problem in list(state.able):
        if problem.given is not None or problem.wanted not in ("auto", "int8"):
            continue
        if why := _without_static(problem):
            state.not_built(problem, "int8", why)
        method: Method | None = None
        for form in state.preferred(problem):
            plans = _int8(form)
            if not plans:
                refused = refused or no_int8(form)
            for name, plan in plans.items():
                some, whole = True, plan
                if quantized_tensors(form.model, plan, form.capability):
                    # Asked once a backend: it takes sessions, and is hardly ever another for another form of the same model.
                    method = method or state.journal.once("range method", plan, Method, partial(_best_method, state, form, plan))
                    whole = replace(ranged(form, plan, method.name), reason=f"{plan.reason}; {method.why}")
                yield Proposal(form, _called(form, name), whole)
                for precision in sorted(_halves(form) - {whole.base, "fp32"}):
                    yield Proposal(form, _called(form, f"{name} on {precision}"), on_half(form, whole, precision))
    if refused is not None and not some and any(problem.wanted == "int8" for problem in state.bases):
        raise refused


def _int8(problem: Problem) -> dict[str, Plan]:
    capability = problem.capability
    dynamic = everywhere(problem, "int8_dynamic") if "int8_dynamic" in capability.precisions else None
    static = everywhere(problem, "int8") if "int8" in capability.precisions and problem.table is not None else None
    both = mixed(problem, static, dynamic) if static is not None and dynamic is not None else None
    plans = {"int8": static, "int8 dynamic": dynamic, "int8 static and dynamic": both}
    return {name: plan for name, plan in plans.items() if plan is not None}


def _without_static(problem: Problem) -> str:
    """Why there will be no plan in static INT8; "" where there will be one, or none is the backend's to give."""
    if "int8" not in problem.capability.precisions:
        return ""
    if problem.table is None:
        return "static INT8 needs ranges, and there is no calibration data: give samples with --calibration"
    return "" if everywhere(problem, "int8") is not None else no_int8(problem).reason


def no_int8(problem: Problem) -> UnavailableError:
    """Why no layer can be in INT8; of several reasons that of the layer with the most weights."""
    if quantized(problem.model.graph):
        return UnavailableError(
            "This model is quantized already, and what another tool has quantized stays as it is.",
            "Give the float model, or take --precision auto to have this one built as it is.",
        )
    barred = eligible(problem.model, problem.capability, "int8")
    largest = max(problem.model.layers, key=lambda layer: layer.parameters if barred.get(layer.name) else -1, default=None)
    device = problem.target.device or problem.target.name
    told = f"{largest.name}: {barred.get(largest.name)}" if largest is not None else "it has none"
    return UnavailableError(f"No layer of this model can run in INT8 on {device} ({told}).", "Choose another precision, or auto.")


@dataclass(frozen=True)
class Method:
    """A range method for all tensors of a plan, and why it."""

    name: str
    why: str


def _best_method(state: State, problem: Problem, plan: Plan) -> Method:
    """The one method whose ranges keep the outputs nearest on a few screening samples."""
    by_method = {method: ranged(problem, plan, method) for method in METHODS}
    errors = {method: state.error(problem, one, _RANGED_ON) for method, one in by_method.items()}
    best = min(errors, key=lambda method: errors[method])
    others = ", ".join(f"{method} {error:.3g}" for method, error in errors.items() if method != best)
    return Method(best, f"ranges by {best}: output error {errors[best]:.3g} on calibration samples ({others})")


def repaired(state: State) -> Proposals:
    """What is fast and loses too much, mended: half precision first, which INT8 stands on, then the fastest."""
    done: set[str] = set()
    for _ in range(REPAIRED):
        if (found := _worth_mending(state, done)) is None:
            return
        before = len(state.candidates)
        done.add(found.name)
        yield from _mended(state, found)
        done.update(one.name for one in state.candidates[before:])


def _mended(state: State, found: Candidate) -> Proposals:
    problem = state.owner(replace(found.plan, recovery=()))
    below = floor(state, problem, found.plan)
    if below is None:
        return
    broken = Broken(problem, found, found, below)
    on_floor = given_back(broken, (), f"{found.plan.reason}, as mended")
    if in_int8(found.plan) and on_floor is not None and _differ(problem, on_floor, found.plan):
        found = yield Proposal(problem, f"{own_name(problem, found)} mended", on_floor)
        if found.outcome == "not built":
            return
        broken = replace(broken, found=found)
    best = yield from recovery(state, problem, broken.found)
    broken = replace(broken, best=best)
    fast = ALMOST * speed(found)
    for repair in REPAIRS:
        if any(state.honest(one) and speed(one) > fast and not one.plan.lossless for one in state.candidates):
            return
        yield from repair(state, broken)


def _differ(problem: Problem, plan: Plan, other: Plan) -> bool:
    return any(plan.precision(layer.name) != other.precision(layer.name) for layer in problem.model.layers)


def _worth_mending(state: State, done: set[str]) -> Candidate | None:
    """Of the candidates that lose too much, are faster than all that do not and may ship, the one that is to be mended next."""
    able = [one for one in state.candidates if one.outcome != "not built" and state.may_ship(one)]
    best = max((speed(one) for one in able if state.honest(one)), default=0.0)
    broken = [one for one in able if one.name not in done and not one.plan.lossless and not state.honest(one)]
    broken = [one for one in broken if not one.plan.regions]  # repairs go by what one backend can do
    faster = [one for one in broken if not state.timeable or speed(one) > 1.02 * best]
    return max(faster, key=lambda one: (not in_int8(one.plan), speed(one)), default=None)


MOVES: tuple[Move, ...] = (
    Move("unquantized engines", unlowered, optional=False),
    Move("asked for", by_name, optional=False),
    Move("half precision", halves),
    Move("exact rewrites", rewritten),
    Move("INT8", integers, optional=False),
    Move("engine by layer", by_engine),
    Move("mending", repaired),
    Move("engine by layer of what was mended", by_engine),
)
