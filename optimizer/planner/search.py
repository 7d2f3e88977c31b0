"""The search: plans are proposed by moves, built, and screened on calibration samples; timing and the gate come after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from calibration.ranges import METHODS
from optimizer.backends import backend
from optimizer.engine import Arrays, Built, Candidate, Engine, Realised
from optimizer.errors import InputError, OptimizeError, UnavailableError
from optimizer.graph import free, quantized, weights_bytes
from optimizer.model import PLANNED, is_layer
from optimizer.plan import Plan, Precision
from optimizer.planner.distance import Distance, distance
from optimizer.planner.moves import everywhere, half, in_integers, mixed, on_half, ranged, unquantized, without_the_worst
from optimizer.planner.problem import Problem
from optimizer.planner.sensitivity import sensitivities
from optimizer.planner.tuning import tuned
from optimizer.precision import eligible, typed
from optimizer.progress import Track, silent
from optimizer.reference import Reference, simulated

_NEAR = 1e-3
"""A relative output error below which leaving layers out has nothing to win: half a percent of it can't be told from rounding."""

_FEW = 4
"""Samples that sensitivities are measured on: the difference between layers is orders of magnitude."""


def contest(problems: Sequence[Problem], feed: Arrays, folder: Path, track: Track = silent) -> Iterator[Candidate]:
    """The candidates of every problem, each of another backend: one after the other, each with its unquantized plan first.

    Where there are several a candidate is called by its backend, too; one that has nothing to offer leaves the others to it.

    Raises:
        OptimizeError: none of them has what was asked for; the first one's reason.
    """
    errors: list[OptimizeError] = []
    for problem in problems:
        try:
            for candidate in search(problem, feed, folder / problem.backend, track):
                yield candidate if len(problems) == 1 else replace(candidate, name=problem.named(candidate.name))
        except (UnavailableError, InputError) as error:
            errors.append(error)
    if len(errors) == len(problems):
        raise errors[0]


def owner(problems: Sequence[Problem], candidate: Candidate) -> Problem:
    """The problem that a candidate solves."""
    return next(problem for problem in problems if problem.backend == candidate.plan.backend)


def search(problem: Problem, feed: Arrays, folder: Path, track: Track = silent) -> Iterator[Candidate]:
    """Candidates as they come, the unquantized one first: built in folders of their own under `folder`, screened, not timed.

    The backend's knobs are chosen on the unquantized engine, by its time on `feed`, and are the same for all.  A plan that can't
    be built is a candidate too, with outcome "not built" and the reason.

    Raises:
        UnavailableError: the precision that was asked for by name can't be had from this backend for this target.
        InputError: it can be had only with calibration data, and there is none.
    """
    _refuse(problem)
    (first, plan), *_ = unquantized(problem)
    baseline = _built(problem, first, plan, folder / first, track)
    knobs, told = tuned(problem, baseline, feed, track)
    if told and knobs == problem.knobs:
        baseline = replace(baseline, plan=replace(baseline.plan, reason=f"{plan.reason}; {told}"))
    if knobs != problem.knobs:
        problem = replace(problem, knobs=knobs)
        baseline = _built(problem, first, replace(plan, knobs=knobs, reason=f"{plan.reason}; {told}"), folder / f"{first} tuned", track)
    yield baseline
    if problem.wanted in ("auto", "int8") and problem.given is None and (why := _without_static_int8(problem)):
        yield Candidate("int8", problem.plan(problem.capability.base, "left out"), outcome="not built", reason=why)
    for number, (name, plan) in enumerate(_plans(problem, first, track), 1):
        track(f"building {name}", number, 0)
        yield _built(problem, name, plan, folder / str(number), track)


def _without_static_int8(problem: Problem) -> str:
    """Why there will be no plan in static INT8; "" where there will be one, or none of this backend's at all."""
    if "int8" not in problem.capability.precisions:
        return ""
    if problem.table is None:
        return "static INT8 needs ranges, and there is no calibration data: give samples with --calibration"
    return "" if everywhere(problem, "int8") is not None else _no_int8(problem).reason


def opened(problem: Problem, candidate: Candidate) -> Engine:
    """The candidate as something that runs here: its engine, or where that can't run its simulation on the CPU."""
    if problem.capability.runs_here and candidate.folder is not None:
        return backend(problem.backend).load(candidate.folder, candidate.plan.knobs)
    return _simulation(problem, candidate.plan, optimized=True)


def _refuse(problem: Problem) -> None:
    wanted, capability = problem.wanted, problem.capability
    if wanted != "auto" and wanted not in {precision.removesuffix("_dynamic") for precision in capability.precisions}:
        device = problem.target.device or problem.target.name
        why = capability.refusals.get(wanted, f"The backend {problem.backend} has no {wanted.upper()} for {device}.")
        others = sorted({precision.removesuffix("_dynamic") for precision in capability.precisions})
        raise UnavailableError(f"{why.rstrip('.')}.", f"Choose another precision: {', '.join(others)}, or auto.")
    if wanted == "int8" and problem.table is None and "int8_dynamic" not in capability.precisions:
        raise InputError("INT8 needs calibration data: its ranges have to come from somewhere.", "Give samples with --calibration.")


def _plans(problem: Problem, first: str, track: Track) -> Iterator[tuple[str, Plan]]:
    """What is tried beside the unquantized plan `first`."""
    if problem.given is not None:
        yield "given plan", replace(problem.given, knobs=problem.knobs, shapes=problem.shapes)
        return
    for precision in ("fp32", "bf16", "fp16"):
        if precision != first and (problem.wanted == precision or (problem.wanted == "auto" and precision in _halves(problem))):
            yield precision, half(problem, precision)
    if problem.wanted in ("auto", "int8"):
        yield from _int8(problem, track)


def _halves(problem: Problem) -> frozenset[Precision]:
    """Half precisions worth trying unasked: all of the backend's where they can be timed, else the usual one."""
    capability = problem.capability
    return capability.precisions & {"bf16", "fp16"} if capability.runs_here else frozenset({capability.base})


@dataclass(frozen=True)
class _Screened:
    """A plan with its ranges, and how far it takes the outputs on the screening samples."""

    plan: Plan
    distance: Distance


def _int8(problem: Problem, track: Track) -> Iterator[tuple[str, Plan]]:
    """The INT8 plans: static, dynamic, both together; each also without the layers that calibration shows to be broken."""
    capability = problem.capability
    dynamic = everywhere(problem, "int8_dynamic") if "int8_dynamic" in capability.precisions else None
    static = everywhere(problem, "int8") if "int8" in capability.precisions and problem.table is not None else None
    plans = {
        "int8": static,
        "int8 dynamic": dynamic,
        "int8 static and dynamic": mixed(problem, static, dynamic) if static is not None and dynamic is not None else None,
    }
    if problem.wanted == "int8" and not any(plans.values()):
        raise _no_int8(problem)
    methods: Sequence[str] = tuple(METHODS)
    measured: dict[Lowered, float] = {}
    for name, plan in plans.items():
        if plan is None:
            continue
        whole = _with_best_ranges(problem, plan, methods, track)
        if plan is static:
            methods = (_method(whole.plan),)  # the tensors of the plans to come are some of these
        yield name, whole.plan
        for precision in sorted(_halves(problem) - {whole.plan.base}):
            yield f"{name} on {precision}", on_half(problem, whole.plan, precision)
        if problem.screening and not whole.distance.error < _NEAR:
            yield from _without_broken(problem, name, whole.plan, measured, track)


def _no_int8(problem: Problem) -> UnavailableError:
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


Lowered = frozenset[tuple[str, Precision]]
"""Layers that are in INT8 while no others are, each with its kind."""


def _without_broken(problem: Problem, name: str, plan: Plan, known: dict[Lowered, float], track: Track) -> Iterator[tuple[str, Plan]]:
    """The plan without its worst layers; `known` are errors that were measured for another plan, and gets those of this one."""
    lowered = [layer.name for layer in problem.model.layers if plan.precision(layer.name).startswith("int8")]
    base = replace(plan, precisions={layer: how for layer, how in plan.precisions.items() if not how.startswith("int8")}, ranges={})
    nothing = _screened(problem, base, _FEW).error

    def error(layers: Sequence[str]) -> float:
        lowered: dict[str, Precision] = {layer: plan.precision(layer) for layer in layers}
        if (key := frozenset(lowered.items())) not in known:
            alone = replace(base, precisions={**base.precisions, **lowered})
            measured = _screened(problem, ranged(problem, alone, _method(plan)), _FEW).error
            known[key] = max(measured - nothing, 0.0)
        return known[key]

    found = sensitivities(lowered, error, track)
    for suffix, left in without_the_worst(plan, found):
        if in_integers(problem, left):
            yield f"{name} {suffix}", ranged(problem, left, _method(plan))


def _method(plan: Plan) -> str:
    return next((chosen.method for chosen in plan.ranges.values()), "minmax")


def _with_best_ranges(problem: Problem, plan: Plan, methods: Sequence[str], track: Track) -> _Screened:
    """The plan with the ranges of the one method that keeps the outputs nearest on the screening samples."""
    tried: dict[str, _Screened] = {}
    for done, method in enumerate(methods):
        track("choosing ranges", done, len(methods))
        full = ranged(problem, plan, method)
        tried[method] = _Screened(full, _screened(problem, full, len(problem.screening)))
        if not full.ranges or len(methods) == 1:
            return tried[method]
    best = min(tried, key=lambda method: tried[method].distance.error)
    others = ", ".join(f"{method} {one.distance.error:.3g}" for method, one in tried.items() if method != best)
    chosen = tried[best]
    reason = f"{chosen.plan.reason}; ranges by {best}: output error {chosen.distance.error:.3g} on calibration samples ({others})"
    return replace(chosen, plan=replace(chosen.plan, reason=reason))


def _screened(problem: Problem, plan: Plan, samples: int) -> Distance:
    """The distance of a plan's simulation, on the first few screening samples."""
    engine = _simulation(problem, plan, optimized=False)
    try:
        return distance(problem.parent[:samples], engine.run, problem.screening[:samples])
    finally:
        engine.close()


def _simulation(problem: Problem, plan: Plan, optimized: bool) -> Engine:
    threads = int(problem.knobs.get("threads", 1))
    return Reference(simulated(typed(problem.model, plan, problem.capability)), threads=threads, optimized=optimized)


def _built(problem: Problem, name: str, plan: Plan, folder: Path, track: Track) -> Candidate:
    """One plan, built where a backend can build it, and screened."""
    builder = backend(problem.backend)
    candidate = Candidate(name, plan)
    try:
        graph = typed(problem.model, plan, problem.capability)
        if (missing := builder.missing(problem.target)) is None:
            folder.mkdir(parents=True)
            candidate = replace(candidate, folder=folder, built=builder.build(graph, problem.target, plan.knobs, folder, track))
        else:
            candidate = replace(candidate, built=_unbuilt(graph, missing))
        if not problem.screening:
            return candidate
        engine = opened(problem, candidate)
        try:
            found = distance(problem.parent, engine.run, problem.screening)
        finally:
            engine.close()
        return replace(candidate, distance=found.error, agreement=found.agreement)
    except OptimizeError as error:
        # Of INT8 there are several plans, of which another may do; where none does, the finals refuse it.
        if problem.given is not None or problem.wanted == name != "int8" or name == next(unquantized(problem))[0]:
            raise
        return replace(candidate, folder=None, outcome="not built", reason=f"{error.reason} {error.remedy}")
    finally:
        free(weights_bytes(problem.model.graph))


def _unbuilt(graph: ir.Model, why: str) -> Built:
    """What is told of a plan that nothing here can build: what was planned for each layer, and that nobody has seen it realised."""
    planned = [(node.name or "", node.op_type, node.metadata_props.get(PLANNED, "")) for node in graph.graph if is_layer(node)]
    return Built(
        tuple(Realised(name, op, how, "unknown", reason="built on the target, by the handover") for name, op, how in planned), notes=(why,)
    )
