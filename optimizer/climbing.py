"""The ladder of one build: its forms from the source framework to the engine, and the samples and sizes they are held side by side in."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from kernels.target import this_cpu
from optimizer import importers
from optimizer.backends import backend
from optimizer.data import Samples
from optimizer.engine import Arrays, Candidate, Engine, Rung, SourceRun
from optimizer.errors import OptimizeError
from optimizer.importers import ImportRequest
from optimizer.model import Model
from optimizer.parity.divergence import Form, Running, graph_form
from optimizer.parity.ladder import Climbed, Sizes, climb, start
from optimizer.parity.metrics import METRICS, Metric, default_metric
from optimizer.plan import Plan, Shape
from optimizer.planner.engines import opened, simulated_graph
from optimizer.planner.problem import Problem
from optimizer.progress import Track
from optimizer.reference import Reference
from optimizer.sequence import error_over_time, states_of
from optimizer.sizes import shapes_of

SOURCE = "source"
GRAPHS = ("imported", "fused")
"""The rungs below any choice of precision."""

_FEW = 4
"""Samples in the data's own sizes: every form is run on them, and some are slow."""

_BATCH = 4
"""Samples in one feed where the batch is free."""

_ENGINE = "engine.onnx"
"""An engine in this file shows its tensors: it is a graph."""


def sizes_of(feeds: Sequence[Arrays], model: Model, asked: Mapping[str, Shape]) -> Sizes:
    """The feeds of the ladder by size: as the data has them; the smallest and the largest of it, or that --shapes asks for; a batch."""
    every = shapes_of(feeds[0], model.inputs, asked)
    sizes: dict[str, Sequence[Arrays]] = {"the usual shapes": feeds[:_FEW]}
    if not all(shape.fixed for shape in every.values()):
        for what, shapes in (
            ("smallest", {name: shape.smallest for name, shape in every.items()}),
            ("largest", {name: shape.largest for name, shape in every.items()}),
        ):
            sizes[f"the {what} shapes ({_words(shapes)})"] = [{name: np.resize(feeds[0][name], shape) for name, shape in shapes.items()}]
        return sizes
    if len({_words(_shapes(feed)) for feed in feeds}) > 1:
        by_size = sorted(feeds, key=lambda feed: sum(array.size for array in feed.values()))
        for what, feed in (("smallest", by_size[0]), ("largest", by_size[-1])):
            sizes[f"the {what} shapes ({_words(_shapes(feed))})"] = [feed]
    if _batch_is_free(model):
        alike = [feed for feed in feeds if _shapes(feed) == _shapes(feeds[0])]
        several = [alike[index % len(alike)] for index in range(_BATCH)]
        sizes[f"a batch of {_BATCH}"] = [{name: np.concatenate([feed[name] for feed in several]) for name in feeds[0]}]
    return sizes


def _shapes(feed: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feed.items()}


def _words(shapes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in shapes.items())


def _batch_is_free(model: Model) -> bool:
    """Whether all inputs have one free dimension first: samples can be put one behind the other."""
    first = {spec.shape[0] if spec.shape else 0 for spec in model.inputs}
    return len(first) == 1 and isinstance(next(iter(first)), str)


def climb_to_fused(
    how: ImportRequest, imported: Model, fused: Model, sizes: Sizes, metric: Metric, track: Track
) -> tuple[Climbed, tuple[str, ...]]:
    """Source framework, imported graph, fused graph; what is to be said where the source framework can't be run."""
    graphs = [graph_form(name, model.graph, this_cpu().cores) for name, model in zip(GRAPHS, (imported, fused), strict=True)]
    track(f"parity ladder: {SOURCE}", 0, 0)
    try:
        running = importers.running(how, imported)
    except OptimizeError as error:
        return _from_imported(graphs, sizes, metric, track, error.reason)
    with closing(running):
        climbed = start(source_form(imported, running), sizes)
        if not climbed.parent.outputs:
            return _from_imported(graphs, sizes, metric, track, "; ".join(climbed.parent.failures.values()))
        for form in graphs:
            climbed = climb(climbed, form, sizes, metric, track)
    failures = climbed.parent.failures.items()
    return climbed, tuple(f"The parent itself does not run with {size}, so nothing was compared there: {why}" for size, why in failures)


def _from_imported(graphs: Sequence[Form], sizes: Sizes, metric: Metric, track: Track, why: str) -> tuple[Climbed, tuple[str, ...]]:
    """The ladder without its lowest rung."""
    first, *others = graphs
    climbed = start(first, sizes)
    for form in others:
        climbed = climb(climbed, form, sizes, metric, track)
    note = f"The parent was not run in its own framework, so that the imported graph stands for it: {why}"
    missing = Rung(first.name, metric.name, None, None, None, climbed.sensed, note=note, against=SOURCE)
    return replace(climbed, rungs=(missing, *climbed.rungs)), (note,)


def source_form(imported: Model, running: SourceRun) -> Form:
    """The source framework as a form: it goes by the imported graph's tensors, which are its layers' results."""
    layers = {layer.outputs[0]: layer.name for layer in imported.layers if layer.outputs}
    return Form(SOURCE, imported.graph, lambda watch: _Source(running, {name: layers[name] for name in watch if name in layers}), own=False)


@dataclass(frozen=True)
class _Source:
    """A SourceRun that stays open when this is closed: a framework starts slowly."""

    running: SourceRun
    layers: Mapping[str, str]

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        outputs = self.running.run(feeds)
        shown = self.running.layers(feeds, list(self.layers.values())) if self.layers else {}
        return {tensor: shown[layer] for tensor, layer in self.layers.items() if layer in shown} | outputs

    def close(self) -> None:
        return


def climb_to_engine(
    climbed: Climbed,
    imported: Model,
    problem: Problem,
    subject: Candidate,
    sizes: Sizes,
    sequence: Samples | None,
    metric: Metric,
    track: Track,
) -> Climbed:
    """On from the fused graph: each precision of the plan, and the engine where it runs here.

    `sequence` are the samples over which a model that carries a state is compared step by step.
    """
    graph, forms = problem.model.graph, []
    for name, plan in _precisions(subject.plan):
        graph = simulated_graph(problem, plan)
        forms.append(graph_form(f"typed {name}", graph, this_cpu().cores))
    if problem.capability.runs_here and subject.folder is not None:
        forms.append(_engine_form(problem, subject, subject.folder, graph))
    for form in forms:
        climbed = climb(climbed, form, sizes, metric, track)
        if sequence is not None and states_of(sequence.preprocessing):
            *lower, rung = climbed.rungs
            climbed = replace(climbed, rungs=(*lower, replace(rung, over_time=_over_time(imported, form, sequence))))
    return climbed


def _over_time(imported: Model, form: Form, sequence: Samples) -> tuple[float, ...]:
    with closing(Reference(imported.graph, optimized=True)) as parent, closing(form.opened(())) as running:
        return error_over_time(parent.run, running.run, sequence)


def _precisions(plan: Plan) -> list[tuple[str, Plan]]:
    """The plan's float precision alone, then with its integers, by name."""
    floats = replace(plan, precisions={name: how for name, how in plan.precisions.items() if not how.startswith("int8")}, ranges={})
    integers = floats.precisions != plan.precisions
    steps = [(plan.base, floats)] if plan.base != "fp32" or not integers else []
    return [*steps, *([("int8", plan)] if integers else [])]


def _engine_form(problem: Problem, subject: Candidate, folder: Path, graph: ir.Model) -> Form:
    def running(watch: Sequence[str]) -> Running:
        file = folder / _ENGINE
        return _showing(problem, subject, file, watch) if watch and file.is_file() else opened(problem, subject)

    return Form("engine", graph, running, own=False)


def _showing(problem: Problem, subject: Candidate, file: Path, watch: Sequence[str]) -> Engine:
    """The engine with some of its tensors as outputs: its own files otherwise, loaded by its own backend."""
    engine = ir.load(file)
    present = {value.name for value in engine.graph.outputs}
    values = {value.name: value for node in engine.graph for value in node.outputs}
    engine.graph.outputs.extend(values[name] for name in watch if name in values and name not in present)
    with TemporaryDirectory(dir=file.parent) as scratch:
        for beside in file.parent.glob("engine.*"):
            shutil.copyfile(beside, Path(scratch) / beside.name)
        ir.save(engine, Path(scratch) / file.name)
        return backend(problem.backend).load(Path(scratch), subject.plan.knobs)


def read_as(asked: Metric | None, task: str | None, model: Model) -> Metric:
    """The metric by which the ladder reads outputs: the gate's, or what it would be by the model alone."""
    if asked is not None:
        return asked
    guessed, _ = default_metric(task, model.outputs, None)
    return guessed or METRICS["cosine"]


def fault_before_precision(rungs: Sequence[Rung]) -> Rung | None:
    """The rung at which import or fusion broke the model: no gate sees it, since that holds engines against the imported graph."""
    return next((rung for rung in rungs if rung.breaks and rung.rung in GRAPHS), None)
