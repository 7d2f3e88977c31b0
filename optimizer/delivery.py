"""The second half of a build, for one target: search, finals, ladder, and what is written into its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from kernels.target import Target
from optimizer.backends import backend, missing, serving
from optimizer.engine import Candidate, Parity, Rung
from optimizer.errors import InputError, UnavailableError
from optimizer.graph import clone, fixed
from optimizer.model import SHAPES, Model
from optimizer.package.handover import write_handover
from optimizer.package.passport import Passport, seal
from optimizer.parity.ladder import rungs
from optimizer.plan import Capability, Knobs, Plan, Shape
from optimizer.planner.finals import Evidence, gated, timed
from optimizer.planner.problem import Problem
from optimizer.planner.search import opened, search
from optimizer.precision import typed
from optimizer.preparation import PACKAGES, Prepared
from optimizer.progress import Track
from optimizer.provenance import from_json, to_json, versions
from optimizer.reference import Reference, simulated
from optimizer.report.report import Data, Provenance, Report, TensorReport, report_from
from optimizer.report.tensors import tensor_report_from
from optimizer.report.views import html, junit

VERDICT_CODES = {"pass": 0, "fail": 3, "inconclusive": 4}
SHIPPED = (VERDICT_CODES["pass"], VERDICT_CODES["inconclusive"])
"""Exit codes with which an engine is written; its passport holds the verdict."""


def deliver(prepared: Prepared, target: Target, folder: Path, scratch: Path, track: Track) -> Report:
    """Build for `target` into `folder`: the engine and its passport where the verdict allows, the report in any case.

    Raises:
        UnavailableError: target, backend or precision can't be had.
    """
    problem, notes = _problem(prepared, target)
    candidates = list(search(problem, prepared.numeric[0], scratch, track))
    candidates = timed(problem, candidates, prepared.numeric[0], track)
    evidence = Evidence(prepared.imported.graph, prepared.numeric, prepared.question, prepared.evaluation)
    candidates, subject = gated(problem, candidates, evidence, track)
    assert subject.parity is not None
    parity, code = _demands(prepared, subject, subject.parity)
    if code in SHIPPED:
        subject = replace(subject, outcome="shipped")
        candidates = [subject if one.name == subject.name else one for one in candidates]
    report = report_from(
        model=problem.model,
        target=target,
        requested=prepared.request.precision,
        subject=subject,
        candidates=candidates,
        parity=parity,
        provenance=_provenance(prepared),
        exit_code=code,
        ladder=_ladder(prepared, problem, subject, track),
        calibration=_tensors(prepared, subject.plan),
        notes=(*prepared.notes, *notes, *prepared.imported.source.notes),
        folders=(folder, scratch, prepared.request.folder),
    )
    if code in SHIPPED:
        _ship(prepared, problem, subject, candidates, folder)
    _tell(report, folder)
    if code in SHIPPED:
        seal(folder, _passport(prepared, problem, subject, report, folder))
    return report


def _problem(prepared: Prepared, target: Target) -> tuple[Problem, tuple[str, ...]]:
    """What is searched for this target: one backend that serves it, its knobs, the model in shapes that it can take."""
    request = prepared.request
    chosen = _backend(request.backends, target)
    capability = backend(chosen).capability(target)
    model, notes = _shaped(prepared, capability)
    knobs, choices = _knobs(chosen, target, request.threads)
    problem = Problem(
        model=model,
        backend=chosen,
        target=target,
        capability=capability,
        knobs=knobs,
        choices=choices,
        wanted=request.precision,
        table=prepared.table,
        screening=prepared.screening,
        parent=prepared.parent,
        shapes=request.shapes,
        given=_given(request.plan) if request.plan is not None else None,
    )
    return problem, notes


def _backend(asked: Sequence[str], target: Target) -> str:
    """The backend to build with. A GPU without one gets the handover alone, from the backend that types its graph."""
    for name in asked:
        if (why := missing(name, target)) is not None:
            raise UnavailableError(f"The backend {name} can't build for {target.name}: {why}.", "Leave out --backend, or choose another.")
    if asked:
        return asked[0]
    found = serving(target)
    if not found and target.kind == "gpu":
        return "tensorrt"
    if not found:
        raise UnavailableError(f"No backend builds for {target.name} here.", "optimize doctor tells what is missing.")
    return found[0]


def _knobs(name: str, target: Target, threads: int | None) -> tuple[Knobs, Mapping[str, Sequence[int | float | str | bool]]]:
    """The first choice of each knob, the number of threads as asked, and what the tuner may choose from: threads, if not asked."""
    choices = backend(name).knobs(target)
    knobs = {knob: values[0] for knob, values in choices.items()}
    if "threads" not in knobs:
        return knobs, {}
    if threads is None:
        return knobs, {"threads": choices["threads"]}
    return {**knobs, "threads": threads}, {}


def _shaped(prepared: Prepared, capability: Capability) -> tuple[Model, tuple[str, ...]]:
    """The fused model as the backend can take it, with a note where that is not how it came.

    Free dimensions stay free, their sizes noted in the graph's metadata, where the backend takes them or a range was asked for;
    else they are fixed to the sizes that the data has.
    """
    model, asked = prepared.fused, prepared.request.shapes
    free = [spec.name for spec in model.inputs if any(isinstance(size, str) for size in spec.shape)]
    if not free:
        return model, ()
    usual = {name: tuple(prepared.numeric[0][name].shape) for name in free}
    shapes = {name: asked.get(name, Shape(size, size, size)) for name, size in usual.items()}
    if capability.dynamic_shapes or not any(shape.fixed for shape in shapes.values()):
        graph = clone(model.graph)
        graph.metadata_props[SHAPES] = json.dumps({name: [one.smallest, one.usual, one.largest] for name, one in shapes.items()})
        return model.with_graph(graph), ()
    sizes = {name: shape.usual for name, shape in shapes.items()}
    told = ", ".join(f"{name}={'x'.join(str(size) for size in shape)}" for name, shape in sizes.items())
    note = f"Free dimensions are fixed, as the data has them: {told}. For a range give --shapes name=smallest:usual:largest."
    return model.with_graph(fixed(model.graph, sizes)), (note,)


def _given(path: Path) -> Plan:
    try:
        return from_json(path.read_bytes(), Plan, path.name)
    except OSError as error:
        raise InputError(f"The plan {path.name} can't be read: {error.strerror}.", "Give the plan.json of an engine folder.") from None


def _demands(prepared: Prepared, subject: Candidate, parity: Parity) -> tuple[Parity, int]:
    """The verdict after what was demanded beside the drop, and its exit code."""
    request = prepared.request
    if request.min_speedup is not None and parity.verdict == "pass":
        timing = subject.timing
        if timing is None:
            parity = replace(
                parity, verdict="inconclusive", reason="a speed was demanded, and nothing can be timed: the target is not here"
            )
        elif timing.ratio < request.min_speedup:
            why = f"{timing.ratio:.2f}x is less than the {request.min_speedup:g}x that was demanded"
            parity = replace(parity, verdict="fail", reason=why)
    code = VERDICT_CODES[parity.verdict]
    if parity.verdict == "pass" and parity.gated_on == "simulation" and request.require_measured:
        return replace(parity, verdict="inconclusive", reason=f"{parity.reason}; a measurement on the target was demanded"), 4
    if parity.verdict == "inconclusive" and request.on_inconclusive is not None:
        code = VERDICT_CODES[request.on_inconclusive]
    return parity, code


def _ladder(prepared: Prepared, problem: Problem, subject: Candidate, track: Track) -> tuple[Rung, ...]:
    """Imported graph, fused graph, typed graph, engine: each against the imported graph on the same few samples."""
    track("parity ladder", 0, 0)
    feeds = list(prepared.screening) or list(prepared.numeric)
    typed_graph = typed(problem.model, subject.plan, problem.capability)
    steps = {"fused": problem.model.graph, f"typed {subject.name}": simulated(typed_graph)}
    engines = {name: Reference(graph) for name, graph in steps.items()}
    try:
        runs = [(name, engine.run) for name, engine in engines.items()]
        if not problem.capability.runs_here or subject.folder is None:
            return rungs(prepared.imported.graph, runs, feeds)
        built = opened(problem, subject)
        try:
            return rungs(prepared.imported.graph, [*runs, ("engine", built.run)], feeds)
        finally:
            built.close()
    finally:
        for engine in engines.values():
            engine.close()


def _tensors(prepared: Prepared, plan: Plan) -> tuple[TensorReport, ...]:
    """What calibration saw of each tensor that has a range in the plan."""
    table = prepared.table
    return () if table is None else tuple(tensor_report_from(name, table.statistics[name], chosen) for name, chosen in plan.ranges.items())


def _provenance(prepared: Prepared) -> Provenance:
    request, evaluation, calibration = prepared.request, prepared.evaluation, prepared.calibration
    return Provenance(
        source=prepared.imported.source,
        versions=versions(*PACKAGES),
        preprocessing=request.preprocessing,
        calibration=Data(calibration.source, calibration.sha256, len(calibration)) if calibration is not None else None,
        evaluation=Data(evaluation.source, evaluation.sha256, len(evaluation), prepared.left_out) if evaluation is not None else None,
        random_calibration=request.random_calibration,
        seed=request.seed,
        plan=request.plan.name if request.plan is not None else None,
    )


def _ship(prepared: Prepared, problem: Problem, subject: Candidate, candidates: Sequence[Candidate], folder: Path) -> None:
    """The engine, the handover and every decision, in the engine folder."""
    if subject.folder is not None:
        for file in sorted(subject.folder.iterdir()):
            shutil.move(file, folder / file.name)
    if problem.target.kind == "gpu":
        write_handover(typed(problem.model, subject.plan, problem.capability), problem.target, folder)
    (folder / "plan.json").write_bytes(to_json(subject.plan))
    if prepared.table is not None:
        (folder / "calibration.json").write_bytes(prepared.table.to_json())
    (folder / "timings.json").write_bytes(to_json({one.name: one.timing for one in candidates}))


def _tell(report: Report, folder: Path) -> None:
    """The report and its views."""
    (folder / "report.json").write_bytes(to_json(report))
    (folder / "report.html").write_text(html.render(report), encoding="utf-8")
    (folder / "junit.xml").write_text(junit.render(report), encoding="utf-8")


def _passport(prepared: Prepared, problem: Problem, subject: Candidate, report: Report, folder: Path) -> Passport:
    engines = sorted(file.name for file in folder.glob("engine.*"))
    calibration = prepared.calibration
    return Passport(
        name=prepared.imported.source.file,
        target=problem.target.name,
        compute=problem.target.compute,
        backend=problem.backend,
        engine=engines[0] if engines else None,
        inputs=problem.model.inputs,
        outputs=problem.model.outputs,
        source=prepared.imported.source,
        verdict=report.verdict,
        gated_on=report.gate.gated_on,
        timed_on=report.speed.timed_on,
        precision=report.precision.realised,
        knobs=subject.plan.knobs,
        preprocessing=prepared.request.preprocessing,
        versions=versions(*PACKAGES),
        calibration=calibration.sha256 if calibration is not None else None,
        random_calibration=prepared.request.random_calibration,
        notes=report.notes,
    )
