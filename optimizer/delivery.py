"""The second half of a build, for one target: search, finals, ladder, and what is written into its folder."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from kernels.load import Load
from kernels.target import Target
from optimizer.backends import backend, missing, serving
from optimizer.climbing import climb_to_engine
from optimizer.demands import SHIPPED, after_demands
from optimizer.engine import Arrays, Candidate, Parity, Rung
from optimizer.errors import UnavailableError
from optimizer.fusion import fuse
from optimizer.fusion.rewrites import rewritten
from optimizer.graph import clone, fixed, sha256
from optimizer.memory import weighed
from optimizer.model import SHAPES, Model
from optimizer.package.handover import write_handover
from optimizer.package.passport import Passport, seal
from optimizer.parity.outputs import Reading
from optimizer.plan import Capability, Knobs, Plan
from optimizer.planner.finals import Evidence, gated, timed
from optimizer.planner.flips import read
from optimizer.planner.given import plan_from_file, refuse_other_backends, refuse_what_does_not_fit
from optimizer.planner.journal import Journal
from optimizer.planner.pareto import front
from optimizer.planner.problem import Problem
from optimizer.planner.search import search
from optimizer.planner.serving import under_load
from optimizer.planner.state import Clock, State
from optimizer.precision import typed
from optimizer.precision.integers import as_qdq
from optimizer.preparation import PACKAGES, PARENT, Prepared, machine, table_for
from optimizer.progress import Track
from optimizer.provenance import sha256_of_file, to_json, versions
from optimizer.reference import UNSEEN
from optimizer.report.headline import broken
from optimizer.report.report import Data, Provenance, Report, TensorReport, report_from
from optimizer.report.tensors import tensor_report_from
from optimizer.report.views import html, junit
from optimizer.sizes import refuse_other_sizes, shapes_of, typical

SEARCH_SECONDS = 90.0
"""For the search, where no --time-budget is given."""

SEARCHING = 0.7
"""The part of a time budget that the search may use up; the last race, the gate and the ladder come after it."""

BESIDE = (".bin", ".weights", ".so")
"""Suffixes of what lies beside an engine's own file and is found through it."""

TIMINGS = "timings.jsonl"
"""The file of all that was measured."""

_DECIDED = ("verdict", "ladder", "time is up")
"""Kinds of records that are no measurements of engines."""

_FEW = 5
"""Layers that a note names."""


@dataclass(frozen=True)
class Folders:
    """Where a build of one target writes: what becomes its engine folder, its scratch, what a killed build leaves to the next.

    `last` is the engine folder that this one will replace.
    """

    whole: Path
    scratch: Path
    kept: Path
    last: Path

    def of(self, name: str) -> Folders:
        """Those of one of several targets."""
        return Folders(*(folder / name for folder in (self.whole, self.scratch, self.kept, self.last)))


def deliver(prepared: Prepared, target: Target, folders: Folders, share: int, track: Track) -> Report:
    """Build for `target`: the engine and its passport where the verdict allows, the report in any case.

    `share` counts the targets that the time which is left has to do for.

    Raises:
        UnavailableError: target, backend or precision can't be had.
    """
    problems, notes = _problems(prepared, target, track)
    feed = typical(prepared.numeric[0], prepared.fused.inputs, prepared.request.shapes)
    evidence = Evidence(prepared.imported.graph, prepared.numeric, prepared.question, prepared.evaluation, prepared.evidence)
    folder, scratch = folders.whole, folders.scratch
    journal = Journal(folders.kept / TIMINGS, _journal_key(prepared, target), (folders.last / TIMINGS, folders.kept / TIMINGS))
    clock = Clock(_search_seconds(prepared, share), budget=prepared.request.time_budget)
    with closing(State(problems, feed, scratch / "engines", journal, clock, prepared.request.objective, track)) as state:
        for _ in search(state):
            pass
        candidates, subject = gated(state, timed(state, track), evidence, track)
        problem = state.owner(subject.plan)
        if problem.capability.runs_here:
            measured = {one.name: _weighed(state, one, feed) for one in (candidates[0], subject)}
            subject, candidates = measured[subject.name], [measured.get(one.name, one) for one in candidates]
    ladder = _ladder(prepared, problem, subject, journal, track)
    demand = prepared.request.max_latency
    load: Load | None = None
    if demand is not None:
        load = journal.once("load", [subject.plan, demand], Load | None, partial(under_load, problem, subject, feed, demand, track))
    subject = replace(subject, loads=(*subject.loads, load)) if load is not None else subject
    assert subject.parity is not None
    parity, code = after_demands(prepared.request, subject, subject.parity, ladder, load, candidates)
    written: tuple[str, ...] = ()
    if code in SHIPPED:
        subject = replace(subject, outcome="shipped")
        candidates = [subject if one.name == subject.name else one for one in candidates]
        written = _ship(prepared, problem, subject, folder)
    shutil.copy(folders.kept / TIMINGS, folder / TIMINGS)
    shutil.copy(prepared.journal, folder / PARENT)
    provenance = _provenance(prepared, candidates, looked=journal.found["verdict"] > 0)
    report = report_from(
        model=problem.model,
        target=target,
        requested=prepared.request.precision,
        subject=subject,
        candidates=candidates,
        front=front(candidates),
        parity=parity,
        provenance=provenance,
        exit_code=code,
        ladder=ladder,
        calibration=_tensors(problem, subject.plan),
        notes=(
            *_breaks(ladder),
            *prepared.notes,
            *notes,
            *_recalled(state),
            *prepared.imported.source.notes,
            *written,
            *_looks(provenance),
            *_unseen(parity),
        ),
        folders=(folder, scratch, prepared.request.folder),
    )
    _tell(report, folder)
    if code in SHIPPED:
        seal(folder, _passport(prepared, problem, subject, report, folder))
    return report


def _problems(prepared: Prepared, target: Target, track: Track) -> tuple[list[Problem], tuple[str, ...]]:
    """What is searched for this target: a problem for each backend that serves it, and notes; a plan that was given names its own."""
    given = plan_from_file(prepared.request.plan) if prepared.request.plan is not None else None
    chosen = _backends(prepared.request.backends, target)
    if given is not None:
        refuse_other_backends(given, chosen, target)
    if given is not None and set(given.backends) <= set(chosen):
        chosen = (given.backend,)
    found = [_problem(prepared, target, name, given, track) for name in chosen]
    notes = [note for _, notes in found for note in notes]
    objective = prepared.request.objective
    if objective != "latency" and not any(problem.capability.runs_here for problem, _ in found):
        notes.append(f"--objective {objective} decides nothing for {target.name}: engines for it can't be timed or weighed here.")
    if len(prepared.request.targets) == 1:
        left = [name for name in prepared.request.backends if name not in chosen]
        notes += [f"{name} was asked for and left out: {missing(name, target) or 'the plan is for another backend'}" for name in left]
    return [problem for problem, _ in found], tuple(dict.fromkeys(notes))


def _problem(prepared: Prepared, target: Target, chosen: str, given: Plan | None, track: Track) -> tuple[Problem, tuple[str, ...]]:
    """The problem of one backend: its knobs, the model in shapes that it can take; and notes on these."""
    request = prepared.request
    capability = backend(chosen).capability(target)
    reading, allowed = _screened_by(prepared)
    model, notes = _shaped(prepared, capability)
    if not capability.integer_operators:
        model, notes = _readable(model, notes)
    knobs, choices = _knobs(chosen, target, request.threads)
    if given is not None:
        notes = (*notes, *refuse_what_does_not_fit(given, rewritten(model, given.rewrites), chosen, capability, target, request.shapes))
        knobs, choices = {**knobs, **({} if request.threads is not None else given.knobs)}, {}
    problem = Problem(
        model=model,
        backend=chosen,
        target=target,
        capability=capability,
        knobs=knobs,
        choices=choices,
        wanted=request.precision,
        table=table_for(prepared, model, track),
        screening=prepared.screening,
        feeds=prepared.feeds,
        parent=prepared.parent,
        reading=reading,
        allowed=allowed,
        shapes=request.shapes,
        given=given,
    )
    return problem, notes


def _screened_by(prepared: Prepared) -> tuple[Reading | None, float | None]:
    """How the search reads decisions from outputs, and what may be lost of them (or in cosine), where the gate's question tells."""
    asked = prepared.asked
    reading = read(prepared.metric, prepared.screening, prepared.parent, asked.reading if asked is not None else None)
    if asked is None or (reading is None and prepared.metric.name != "cosine"):
        return reading, None
    return reading, abs(asked.value - asked.threshold)


def _backends(asked: Sequence[str], target: Target) -> tuple[str, ...]:
    """The backends to build with: all that serve the target, of those asked for where some were.

    A GPU that none serves gets the handover alone, from the backend that types its graph.
    """
    found = serving(target)
    for name in asked:
        backend(name)  # one that does not exist is refused, also where another would do
    if asked and not set(asked) & set(found):
        why = "; ".join(f"{name}: {missing(name, target)}" for name in asked)
        raise UnavailableError(f"No backend that was asked for builds for {target.name}. {why}.", "Leave out --backend, or choose another.")
    if not found and target.kind == "gpu":
        return ("tensorrt",)
    if not found:
        raise UnavailableError(f"No backend builds for {target.name} here.", "optimize doctor tells what is missing.")
    return tuple(name for name in (asked or found) if name in found)


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
    model = prepared.fused
    free = [spec.name for spec in model.inputs if any(isinstance(size, str) for size in spec.shape)]
    if not free:
        return model, ()
    every = shapes_of(prepared.numeric[0], model.inputs, prepared.request.shapes)
    shapes = {name: shape for name, shape in every.items() if name in free}
    if capability.dynamic_shapes or not all(shape.fixed for shape in shapes.values()):
        graph = clone(model.graph)
        graph.metadata_props[SHAPES] = json.dumps({name: [one.smallest, one.usual, one.largest] for name, one in shapes.items()})
        return model.with_graph(graph), ()
    refuse_other_sizes(prepared.screening, shapes)
    sizes = {name: shape.usual for name, shape in shapes.items()}
    told = ", ".join(f"{name}={'x'.join(str(size) for size in shape)}" for name, shape in sizes.items())
    note = f"Free dimensions are fixed, as the data has them: {told}. For a range give --shapes name=smallest:usual:largest."
    shaped = model.with_graph(fixed(model.graph, sizes))
    # An If that asks for a size is decided now.
    return fuse(shaped) if any(node.op_type == "If" for node in shaped.graph.graph) else shaped, (note,)


def _readable(model: Model, notes: tuple[str, ...]) -> tuple[Model, tuple[str, ...]]:
    """The model without the integer operators that can be written as Q/DQ, and a note where there were any."""
    graph, layers = as_qdq(model.graph)
    if not layers:
        return model, notes
    shown = ", ".join(layers[:_FEW]) + (f" and {len(layers) - _FEW} more" if len(layers) > _FEW else "")
    return model.with_graph(graph), (*notes, f"Written as Q/DQ around float operators, with the same numbers, for this target: {shown}.")


def _weighed(state: State, candidate: Candidate, feed: Arrays) -> Candidate:
    """The candidate with what its engine takes of memory here."""
    if candidate.built is None:
        return candidate

    def measure() -> Mapping[str, int]:
        built = weighed(state.ready(candidate), feed).built
        return built.memory if built is not None else {}

    memory = state.journal.once("memory", candidate.plan, Mapping[str, int], measure)
    return replace(candidate, built=replace(candidate.built, memory=memory))


def _ladder(prepared: Prepared, problem: Problem, subject: Candidate, journal: Journal, track: Track) -> tuple[Rung, ...]:
    """The whole ladder: from the parent, where its framework is here, to what was built for this target."""

    def climbed() -> tuple[Rung, ...]:
        low, sequence = prepared.climb(), prepared.evaluation or prepared.calibration
        whole = climb_to_engine(low, prepared.imported, problem, subject, prepared.sizes, sequence, prepared.metric, track)
        return whole.rungs[len(low.rungs) :]

    return (*prepared.rungs, *journal.once("ladder", [subject.plan, prepared.evidence], tuple[Rung, ...], climbed))


def _search_seconds(prepared: Prepared, share: int) -> float:
    budget = prepared.request.time_budget
    if budget is None:
        return SEARCH_SECONDS
    return max(0.0, (SEARCHING * budget - (time.monotonic() - prepared.started)) / share)


def _recalled(state: State) -> tuple[str, ...]:
    """Notes on what was not measured anew, and on what had to be."""
    journal = state.journal
    notes = [f"{file} of an earlier build is not used: {why}." for file, why in journal.unusable.items()]
    if measured := sum(count for kind, count in journal.recalled.items() if kind not in _DECIDED):
        notes.append(f"{measured} measurements are those of an earlier build of the same model on this machine ({TIMINGS}).")
    if verdicts := journal.recalled["verdict"]:
        notes.append(f"{verdicts} of the gate's verdicts are those of an earlier build: same plans, same evaluation data ({TIMINGS}).")
    if journal.recalled["ladder"]:
        notes.append(f"The parity ladder of the engine is that of an earlier build: same plan, same data ({TIMINGS}).")
    if state.left_out:
        left = ", ".join(dict.fromkeys(state.left_out))
        notes.append(f"The time was up before all was tried ({left}): a larger --time-budget may find more.")
    return tuple(notes)


def _journal_key(prepared: Prepared, target: Target) -> Mapping[str, str]:
    """What measurements depend on beside the plan that they are of, in clear."""
    table, data = prepared.table, prepared.calibration or prepared.evaluation
    return {
        **machine(target),
        "model": sha256(prepared.fused.graph),
        "data": data.sha256 if data is not None else "",
        "screened on": f"{len(prepared.screening)} samples",
        "calibration": hashlib.sha256(to_json(table.key)).hexdigest() if table is not None else "",
    }


def _tensors(problem: Problem, plan: Plan) -> tuple[TensorReport, ...]:
    """What calibration saw of each tensor that has a range in the plan."""
    table = problem.table
    if table is None:
        return ()
    writers = {output: layer.name for layer in problem.model.layers for output in layer.outputs}
    return tuple(tensor_report_from(name, writers.get(name, ""), table.statistics[name], chosen) for name, chosen in plan.ranges.items())


def _provenance(prepared: Prepared, candidates: Sequence[Candidate], looked: bool) -> Provenance:
    """`looked` says whether evaluation data was looked at: a verdict that was recalled is no further look."""
    request, evaluation, calibration = prepared.request, prepared.evaluation, prepared.calibration
    judged = prepared.judged
    if any(one.parity is not None and one.parity.threshold is not None for one in candidates):
        judged = max(judged + looked, 1)
    return Provenance(
        source=prepared.imported.source,
        versions=versions(*PACKAGES),
        preprocessing=request.preprocessing.told(request.folder),
        calibration=Data(calibration.source, calibration.sha256, len(calibration)) if calibration is not None else None,
        evaluation=Data(evaluation.source, evaluation.sha256, len(evaluation), prepared.left_out, judged)
        if evaluation is not None
        else None,
        random_calibration=request.random_calibration,
        seed=request.seed,
        plan=sha256_of_file(request.plan) if request.plan is not None else None,
    )


def _looks(provenance: Provenance) -> tuple[str, ...]:
    """A note where the same evaluation data has judged the same model before."""
    data = provenance.evaluation
    if data is None or data.judged < 2:
        return ()
    return (
        f"{data.source} has judged this model in {data.judged} builds into this folder: each further look makes a lucky PASS likelier, "
        "and samples that no build has seen would decide better.",
    )


def _breaks(ladder: Sequence[Rung]) -> tuple[str, ...]:
    """A note on the first rung that breaks, if one does."""
    first = next((rung for rung in ladder if rung.breaks), None)
    return () if first is None else (f"The parity ladder breaks: {broken(first)}.",)


def _unseen(parity: Parity) -> tuple[str, ...]:
    """A note on what a verdict by simulation does not cover."""
    return (f"The simulation that the gate ran can't see {'; '.join(UNSEEN)}.",) if parity.gated_on == "simulation" else ()


def _ship(prepared: Prepared, problem: Problem, subject: Candidate, folder: Path) -> tuple[str, ...]:
    """Write the engine, the handover and every decision into the engine folder; what is to be said of the handover."""
    notes: tuple[str, ...] = ()
    if subject.folder is not None:
        for file in sorted(subject.folder.iterdir()):
            shutil.move(file, folder / file.name)
    if problem.target.kind == "gpu":
        graph = typed(problem.model, subject.plan, problem.capability)
        notes = write_handover(graph, problem.target, folder, name=prepared.imported.source.file)
    (folder / "plan.json").write_bytes(to_json(subject.plan))
    if problem.table is not None:
        (folder / "calibration.json").write_bytes(problem.table.to_json())
    return notes


def _tell(report: Report, folder: Path) -> None:
    """The report and its views."""
    (folder / "report.json").write_bytes(to_json(report))
    (folder / "report.html").write_text(html.render(report), encoding="utf-8")
    (folder / "junit.xml").write_text(junit.render(report), encoding="utf-8")


def _passport(prepared: Prepared, problem: Problem, subject: Candidate, report: Report, folder: Path) -> Passport:
    engines = sorted(file.name for file in folder.glob("engine.*") if file.suffix not in BESIDE)
    calibration = prepared.calibration
    return Passport(
        name=prepared.imported.source.file,
        target=problem.target.name,
        compute=problem.target.compute,
        features=problem.target.features,
        backend=subject.plan.built_by,
        engine=engines[0] if engines else None,
        inputs=problem.model.inputs,
        outputs=problem.model.outputs,
        source=prepared.imported.source,
        verdict=report.verdict,
        gated_on=report.gate.gated_on,
        timed_on=report.speed.timed_on,
        precision=report.precision.realised,
        knobs=subject.plan.knobs,
        loads=report.speed.loads,
        preprocessing=report.provenance.preprocessing,
        versions=versions(*PACKAGES),
        calibration=calibration.sha256 if calibration is not None else None,
        random_calibration=prepared.request.random_calibration,
        notes=report.notes,
    )
