"""From a plan to something that runs: its engine where a backend can build it here, its simulation on the CPU elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from optimizer import relay
from optimizer.backends import backend, loader
from optimizer.engine import Built, Candidate, Engine, Realised
from optimizer.graph import free, weights_bytes
from optimizer.model import PLANNED, is_layer
from optimizer.plan import Plan
from optimizer.planner.problem import Problem
from optimizer.precision import typed
from optimizer.process import Workers
from optimizer.progress import Track
from optimizer.reference import Reference, simulated
from optimizer.regions import joined, split
from optimizer.relay import Line


def build(problem: Problem, plan: Plan, folder: Path, track: Track, workers: Workers | None = None) -> tuple[Path | None, Built]:
    """The engine of a plan in `folder`, or None where nothing here can build it, and what the build tells.

    Raises:
        OptimizeError: the backend can't take the plan.
    """
    if plan.regions:
        return _built_in_regions(problem, plan, folder, track, workers)
    builder = backend(problem.backend)
    try:
        graph = typed(problem.model, plan, problem.capability)
        if (missing := builder.missing(problem.target)) is not None:
            return None, _unbuilt(graph, missing)
        folder.mkdir(parents=True)
        return folder, builder.build(graph, problem.target, plan.knobs, folder, track, workers)
    finally:
        free(weights_bytes(problem.model.graph))


def opened(problem: Problem, candidate: Candidate) -> Engine:
    """The candidate as something that runs here: its engine, or where that can't run its simulation on the CPU."""
    if problem.capability.runs_here and candidate.folder is not None:
        return loader(problem.backend, candidate.folder)(candidate.plan.knobs)
    return simulation(problem, candidate.plan, optimized=True)


@contextmanager
def running(problem: Problem, candidate: Candidate) -> Iterator[Engine]:
    """The candidate opened, and closed on leaving."""
    engine = opened(problem, candidate)
    try:
        yield engine
    finally:
        engine.close()


def simulation(problem: Problem, plan: Plan, optimized: bool) -> Engine:
    """What a plan computes, on this CPU, whether or not anything here can build it."""
    threads = int(problem.knobs.get("threads", 1))
    return Reference(simulated_graph(problem, plan), threads=threads, optimized=optimized)


def simulated_graph(problem: Problem, plan: Plan) -> ir.Model:
    """The graph of a simulation: what the plan's engine computes, its precisions written out, with the layers and outputs of the model."""
    if plan.regions:
        return joined(problem.model.graph, [simulated_graph(*part) for part in parts(problem, plan)])
    return simulated(typed(problem.model, plan, problem.capability))


def parts(problem: Problem, plan: Plan) -> list[tuple[Problem, Plan]]:
    """The problem of each region of a plan, with the plan that solves it.

    Raises:
        InputError: the regions do not fit the model (see `regions.split`).
        UnavailableError: a backend is not here.
    """
    found = []
    for part in split(problem.model, plan):
        name = part.plan.backend
        capability = backend(name).capability(problem.target)
        found.append((replace(problem, model=part.model, backend=name, capability=capability), part.plan))
    return found


def _built_in_regions(problem: Problem, plan: Plan, folder: Path, track: Track, workers: Workers | None) -> tuple[Path | None, Built]:
    """Every region built by its own backend, what they tell put together in the order of the model's layers."""
    built = []
    for number, (part, own) in enumerate(parts(problem, plan)):
        place, told = build(part, own, relay.region(folder, number), track, workers)
        if place is None:
            return None, told
        built.append(told)
    model = problem.model
    relay.write(Line(tuple(region.backend for region in plan.regions), model.inputs, model.outputs), folder)
    order = {layer.name: number for number, layer in enumerate(model.layers)}
    return folder, Built(
        realised=tuple(sorted((layer for told in built for layer in told.realised), key=lambda layer: order.get(layer.layer, len(order)))),
        memory={kind: sum(told.memory[kind] for told in built) for kind in built[0].memory if all(kind in told.memory for told in built)},
        launches=tuple(launch for told in built for launch in told.launches),
        notes=tuple(dict.fromkeys(note for told in built for note in told.notes)),
    )


def _unbuilt(graph: ir.Model, why: str) -> Built:
    """What is told of a plan that nothing here can build: what was planned for each layer, and that nobody has seen it realised."""
    planned = [(node.name or "", node.op_type, node.metadata_props.get(PLANNED, "")) for node in graph.graph if is_layer(node)]
    return Built(
        tuple(Realised(name, op, how, "unknown", reason="built on the target, by the handover") for name, op, how in planned), notes=(why,)
    )
