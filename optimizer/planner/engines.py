"""From a plan to something that runs: its engine where a backend can build it here, its simulation on the CPU elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from optimizer.backends import backend
from optimizer.engine import Built, Candidate, Engine, Realised
from optimizer.graph import free, weights_bytes
from optimizer.model import PLANNED, is_layer
from optimizer.plan import Plan
from optimizer.planner.problem import Problem
from optimizer.precision import typed
from optimizer.progress import Track
from optimizer.reference import Reference, simulated


def build(problem: Problem, plan: Plan, folder: Path, track: Track) -> tuple[Path | None, Built]:
    """The engine of a plan in `folder`, or None where nothing here can build it, and what the build tells.

    Raises:
        OptimizeError: the backend can't take the plan.
    """
    builder = backend(problem.backend)
    try:
        graph = typed(problem.model, plan, problem.capability)
        if (missing := builder.missing(problem.target)) is not None:
            return None, _unbuilt(graph, missing)
        folder.mkdir(parents=True)
        return folder, builder.build(graph, problem.target, plan.knobs, folder, track)
    finally:
        free(weights_bytes(problem.model.graph))


def opened(problem: Problem, candidate: Candidate) -> Engine:
    """The candidate as something that runs here: its engine, or where that can't run its simulation on the CPU."""
    if problem.capability.runs_here and candidate.folder is not None:
        return backend(problem.backend).load(candidate.folder, candidate.plan.knobs)
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
    return Reference(simulated(typed(problem.model, plan, problem.capability)), threads=threads, optimized=optimized)


def _unbuilt(graph: ir.Model, why: str) -> Built:
    """What is told of a plan that nothing here can build: what was planned for each layer, and that nobody has seen it realised."""
    planned = [(node.name or "", node.op_type, node.metadata_props.get(PLANNED, "")) for node in graph.graph if is_layer(node)]
    return Built(
        tuple(Realised(name, op, how, "unknown", reason="built on the target, by the handover") for name, op, how in planned), notes=(why,)
    )
