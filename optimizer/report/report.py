"""report.json: what was asked, what was tried, what came out, and how surely.

A Report holds no sample of anybody's data and no absolute path; a view shows it and adds nothing to it.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from kernels.load import Load
from kernels.target import Target
from optimizer.engine import Candidate, Parity, Point, Realised, Rung, Verdict
from optimizer.graph import quantized
from optimizer.model import Fusion, Model, Source
from optimizer.plan import Knobs
from optimizer.preprocessing import Preprocessing
from optimizer.provenance import from_json
from optimizer.report.coverage import Coverage, coverage
from optimizer.report.headline import headline_from, predicted
from optimizer.report.outlook import outlook
from optimizer.report.why import why_it_won

SCHEMA = "optimize.report/1"
SEVERAL = "optimize.reports/1"

WORST_FIRST = (1, 2, 6, 5, 3, 4, 0)
"""Exit codes by weight: of several targets the first of these that occurs is the command's."""


@dataclass(frozen=True)
class LayerReport:
    """One of the user's layers: the precision that was planned, what the built engine has, and why they differ or why it was planned.

    `weights` and `activations` are the bytes that its kernel reads of the one and writes of the other; what begins with `parent_` is
    the same layer's in the unquantized engine.  None where a layer has no kernel of its own, or nobody tells.
    """

    name: str
    op: str
    planned: str
    realised: str
    reason: str = ""
    ms: float | None = None
    kernel: str = ""
    weights: int | None = None
    activations: int | None = None
    parent_ms: float | None = None
    parent_weights: int | None = None
    parent_activations: int | None = None

    @property
    def differs(self) -> bool:
        """Whether it became something else than planned; being folded into another layer takes nothing away."""
        return self.realised not in (self.planned, "folded")


@dataclass(frozen=True)
class PrecisionReport:
    """`requested` is the user's word, `realised` the lowest precision that a layer of the engine has; `counts` layers by it.

    `int8` is how far INT8 went, None where no engine was built that tells.
    """

    requested: str
    realised: str
    layers: tuple[LayerReport, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    int8: Coverage | None = None


@dataclass(frozen=True)
class Speed:
    """Milliseconds a run, `speedup` over the unquantized sibling with its 95 % interval; all None where not timed.

    `cold_ms` is a run whose data had been swept out of the caches, the others follow a run of the same engine.  `loads` are what the
    engine did under load: at its best throughput, where that was the objective, and at the load that a latency was demanded at.
    """

    baseline_ms: float | None = None
    engine_ms: float | None = None
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    timed_on: str | None = None
    baseline: str | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    cold_ms: float | None = None
    runs: int | None = None
    stopped: str | None = None
    loads: tuple[Load, ...] = ()


@dataclass(frozen=True)
class CandidateReport:
    """A plan that was tried: `plan` says what it is, `reason` what became of it.

    `launches` and `moved_bytes` are static counts, for a target where nothing could be timed.  `metric` differs between candidates:
    one with no lossy step is judged numerically.  `speedup` has a 95 % interval; `loss` is what screening predicts, `predicted` tells it
    in words; `gain` is its speed over the fastest tried before it, `seconds` what it took to try it.
    """

    name: str
    backend: str
    precision: str
    knobs: Knobs
    latency_ms: float | None
    speedup: float | None
    verdict: Verdict | None
    outcome: str
    reason: str
    plan: str = ""
    metric: str | None = None
    budget: float | None = None
    drop: float | None = None
    low: float | None = None
    high: float | None = None
    samples_needed: int | None = None
    distance: float | None = None
    flip_rate: float | None = None
    flip_low: float | None = None
    flip_high: float | None = None
    agreement: float | None = None
    loss: float | None = None
    predicted: str = ""
    speedup_low: float | None = None
    speedup_high: float | None = None
    gain: float | None = None
    seconds: float | None = None
    int8_layers: int = 0
    launches: int | None = None
    moved_bytes: int | None = None
    memory: Mapping[str, int] = field(default_factory=dict)
    recovery: tuple[str, ...] = ()


@dataclass(frozen=True)
class TensorReport:
    """What calibration saw of a tensor and the range it was given.

    `layer` writes it, or is "" where it is an input of the model; `bins` are the shares of all values in equal steps from `minimum`
    to `maximum`; `clipped` is the share outside the range.
    """

    name: str
    method: str
    low: float
    high: float
    minimum: float
    maximum: float
    bins: tuple[float, ...]
    clipped: float
    layer: str = ""


@dataclass(frozen=True)
class Data:
    """A data set by its name and hash; `left_out` counts samples that were not used.

    Of evaluation data `judged` says how many builds into this folder it has judged this model in, with this one.
    """

    source: str
    sha256: str
    samples: int
    left_out: int = 0
    judged: int = 0


@dataclass(frozen=True)
class Provenance:
    """What the engine came from; `calibration` is None where there was none, `random_calibration` where numbers were made up."""

    source: Source
    versions: Mapping[str, str]
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    calibration: Data | None = None
    evaluation: Data | None = None
    random_calibration: bool = False
    seed: int = 0
    plan: str | None = None


@dataclass(frozen=True)
class Report:
    """Everything about one engine for one target: what report.json holds.

    `memory` is the engine's by kind, in bytes, `parent_memory` the unquantized engine's.  `why` tells in sentences why the plan won,
    `front` are the candidates that nothing tried was both faster and safer than, `outlook` is what another budget would give.
    """

    verdict: Verdict
    headline: str
    exit_code: int
    gate: Parity
    ladder: tuple[Rung, ...]
    precision: PrecisionReport
    speed: Speed
    memory: Mapping[str, int]
    fusions: tuple[Fusion, ...]
    candidates: tuple[CandidateReport, ...]
    target: Target
    provenance: Provenance
    calibration: tuple[TensorReport, ...] = ()
    notes: tuple[str, ...] = ()
    parent_memory: Mapping[str, int] = field(default_factory=dict)
    why: tuple[str, ...] = ()
    front: tuple[Point, ...] = ()
    outlook: tuple[str, ...] = ()
    schema: str = SCHEMA


@dataclass(frozen=True)
class Failure:
    """A target for which nothing was built, with the words of its error."""

    title: str
    reason: str
    remedy: str
    exit_code: int


@dataclass(frozen=True)
class Reports:
    """Several targets of one command: the report.json above their folders."""

    targets: Mapping[str, Report]
    failures: Mapping[str, Failure]
    headline: str
    exit_code: int
    schema: str = SEVERAL


class _Schema(msgspec.Struct):
    schema: str


def report_from_file(file: Path) -> Report | Reports:
    """The report that a build wrote, of one target or of several.

    Raises:
        InputError: it can't be read as one.
    """
    data = file.read_bytes()
    several = from_json(data, _Schema, file.name).schema == SEVERAL
    return from_json(data, Reports, file.name) if several else from_json(data, Report, file.name)


def report_from(
    *,
    model: Model,
    target: Target,
    requested: str,
    subject: Candidate,
    candidates: Sequence[Candidate],
    parity: Parity,
    provenance: Provenance,
    exit_code: int,
    ladder: Sequence[Rung] = (),
    calibration: Sequence[TensorReport] = (),
    front: Sequence[Point] = (),
    notes: Sequence[str] = (),
    folders: Sequence[Path] = (),
) -> Report:
    """The Report of a build.

    `subject` is the candidate that ships, or where none does the one that the verdict is about; `candidates` are all that
    were tried, the subject among them, `front` the best of them (`planner.pareto.front`).  `folders` are private folders, see `portable`.
    """
    baseline = next((one for one in candidates if subject.timing and one.name == subject.timing.versus), None)
    speed = _speed(subject, baseline)
    built = subject.built
    realised = built.realised if built is not None else ()
    parent = (baseline or candidates[0]).built if candidates else None  # the unquantized one is the first to be tried
    parents = {layer.layer: layer for layer in parent.realised} if parent is not None else {}
    told = dict.fromkeys((*notes, *parity.notes, *(built.notes if built is not None else ())))
    return Report(
        verdict=parity.verdict,
        headline=portable(headline_from(subject, candidates, parity, target, requested, quantized(model.graph) > 0), folders),
        exit_code=exit_code,
        gate=replace(parity, reason=portable(parity.reason, folders), notes=tuple(portable(note, folders) for note in parity.notes)),
        ladder=tuple(replace(rung, note=portable(rung.note, folders)) for rung in ladder),
        precision=PrecisionReport(
            requested=requested,
            realised=lowest(layer.realised for layer in realised) if realised else lowest([subject.plan.base]),
            layers=tuple(_layer(layer, parents.get(layer.layer), subject.plan.reasons.get(layer.layer, ""), folders) for layer in realised),
            counts=dict(Counter(layer.realised for layer in realised)),
            int8=_coverage(realised, subject.plan.reasons, folders),
        ),
        speed=speed,
        memory=dict(built.memory) if built is not None else {},
        fusions=model.fusions,
        candidates=tuple(_candidate(one, folders) for one in candidates),
        target=target,
        provenance=provenance,
        calibration=tuple(calibration),
        why=tuple(portable(said, folders) for said in why_it_won(subject, candidates)) if parity.verdict != "fail" else (),
        front=tuple(front),
        outlook=outlook(subject, candidates),
        notes=tuple(portable(note, folders) for note in told),
        parent_memory=dict(parent.memory) if parent is not None else {},
    )


LOWEST_FIRST = ("int8", "int8_dynamic", "bf16", "fp16", "fp32")


def lowest(precisions: Iterable[str]) -> str:
    """The lowest of some precisions; layers that were folded away or compute in integers by nature don't count."""
    present = set(precisions)
    return next((precision for precision in LOWEST_FIRST if precision in present), "fp32")


def portable(text: str, folders: Sequence[Path]) -> str:
    """`text` without the paths of private folders: a file in one is left by its name alone.

    Private are `folders` and this process' own: working folder, home, temporary files, Python.
    """
    private = (*folders, Path.cwd(), Path.home(), Path(tempfile.gettempdir()), Path(sys.prefix))
    for folder in sorted({str(path) for path in private if path.parts[1:]}, key=len, reverse=True):
        text = text.replace(folder + "/", "").replace(folder, Path(folder).name)
    return text


def worst(codes: Sequence[int]) -> int:
    """The exit code of several."""
    return min(codes, key=WORST_FIRST.index)


def reports_from(ended: Mapping[str, Report | Failure]) -> Reports:
    """The summary of several targets, by name; the headline says how each ended."""
    said = [f"{name} {one.verdict if isinstance(one, Report) else one.title.lower()}" for name, one in ended.items()]
    return Reports(
        targets={name: one for name, one in ended.items() if isinstance(one, Report)},
        failures={name: one for name, one in ended.items() if isinstance(one, Failure)},
        headline=", ".join(said),
        exit_code=worst([one.exit_code for one in ended.values()]),
    )


def _speed(subject: Candidate, baseline: Candidate | None) -> Speed:
    timing = subject.timing
    if timing is None:
        return Speed(loads=subject.loads)
    return Speed(
        baseline_ms=baseline.timing.milliseconds if baseline is not None and baseline.timing is not None else None,
        engine_ms=timing.milliseconds,
        speedup=timing.ratio,
        low=timing.low,
        high=timing.high,
        timed_on=timing.timed_on,
        baseline=timing.versus,
        p90_ms=timing.p90,
        p99_ms=timing.p99,
        cold_ms=timing.cold_milliseconds,
        runs=timing.runs,
        stopped=timing.stopped,
        loads=subject.loads,
    )


def _coverage(realised: Sequence[Realised], reasons: Mapping[str, str], folders: Sequence[Path]) -> Coverage | None:
    found = coverage(realised, reasons)
    if found is None:
        return None
    return replace(found, missing=tuple(replace(one, reason=portable(one.reason, folders)) for one in found.missing))


def _layer(layer: Realised, parent: Realised | None, planned: str, folders: Sequence[Path]) -> LayerReport:
    """What became of a layer, and of it in the unquantized engine; where that is as planned, the reason is the plan's."""
    return LayerReport(
        name=layer.layer,
        op=layer.operator,
        planned=layer.planned,
        realised=layer.realised,
        reason=portable(layer.reason or planned, folders),
        ms=layer.ms,
        kernel=layer.kernel,
        weights=layer.weights,
        activations=layer.activations,
        parent_ms=parent.ms if parent is not None else None,
        parent_weights=parent.weights if parent is not None else None,
        parent_activations=parent.activations if parent is not None else None,
    )


def _candidate(one: Candidate, folders: Sequence[Path]) -> CandidateReport:
    parity, built = one.parity, one.built
    launches = built.launches if built is not None else ()
    return CandidateReport(
        name=one.name,
        backend=one.plan.built_by,
        precision=lowest([one.plan.base, *one.plan.precisions.values()]),
        knobs=dict(one.plan.knobs),
        latency_ms=one.timing.milliseconds if one.timing is not None else None,
        speedup=one.timing.ratio if one.timing is not None else None,
        verdict=parity.verdict if parity is not None else None,
        outcome=one.outcome,
        reason=portable(one.reason or (parity.reason if parity is not None else "") or one.plan.reason, folders),
        plan=portable(one.plan.reason, folders),
        metric=parity.metric if parity is not None else None,
        budget=parity.budget if parity is not None else None,
        drop=parity.drop if parity is not None else None,
        low=parity.low if parity is not None else None,
        high=parity.high if parity is not None else None,
        samples_needed=parity.samples_needed if parity is not None else None,
        distance=one.distance,
        flip_rate=one.flip_rate,
        flip_low=one.flip_low,
        flip_high=one.flip_high,
        agreement=one.agreement,
        loss=one.loss,
        predicted=predicted(one),
        speedup_low=one.timing.low if one.timing is not None else None,
        speedup_high=one.timing.high if one.timing is not None else None,
        gain=one.gain,
        seconds=one.seconds,
        int8_layers=sum(layer.realised.startswith("int8") for layer in built.realised) if built is not None else 0,
        launches=len(launches) or None,
        moved_bytes=sum(launch.bytes for launch in launches) or None,
        memory=dict(built.memory) if built is not None else {},
        recovery=one.plan.recovery,
    )
