"""The first half of a build, done once for all targets: the model imported and fused, the data opened, ranges calibrated."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.table import Table
from kernels.target import Target, this_cpu
from optimizer import importers
from optimizer.calibrate import calibrate, watched
from optimizer.climbing import climb_to_fused, read_as, sizes_of
from optimizer.data import Samples, open_samples, random_samples
from optimizer.engine import Arrays, Rung
from optimizer.errors import InputError
from optimizer.fusion import fuse
from optimizer.graph import sha256
from optimizer.importers import ImportRequest
from optimizer.model import Dimension, Model
from optimizer.parity.gate import NoQuestion, Question, held_out, question_from_words
from optimizer.parity.ladder import Climbed, Sizes
from optimizer.parity.metrics import Metric
from optimizer.parity.outputs import Reading
from optimizer.parity.question import metric_from_words
from optimizer.planner.journal import Journal
from optimizer.progress import Track
from optimizer.provenance import to_json, versions
from optimizer.reference import Reference
from optimizer.report.headline import required
from optimizer.report.history import judged_before
from optimizer.report.report import portable
from optimizer.request import Request, folder_of
from optimizer.sequence import Recorded, refuse_wrong_states, states_of
from optimizer.suspicion import suspected
from optimizer.work import multiplications

SCREENING = (32, 256)
"""Calibration samples that candidates are screened on, spread evenly over the data: at least, and of a small model at most."""

SCREENING_WORK = 1 << 32
"""Multiplications by weights for which one candidate may be screened on more than the least: some tenths of a second."""

RECOVERY = 96
"""Calibration samples that recovery looks at: others than candidates are screened on, since it fits those that it sees."""

RECOVERY_BYTES = 256 << 20
"""What these may hold together; of larger samples there are fewer."""

RANDOM = 16
"""Feeds of random calibration."""

NUMERIC = 4
"""Samples that an engine with no lossy step is judged on, numerically."""

FREE_SIZES = (1, 16, 64, 224, 512)
"""Sizes of free dimensions that are tried in turn where there is no data: the first that the model takes is the one."""

TABLE = "calibration.json"
"""The file of the calibrated table, in an engine folder."""

PARENT = "parent.jsonl"
"""The file of what was found of the parent, in an engine folder."""

FRAMEWORKS = ("tensorflow", "keras", "transformers")
"""Packages that a parent may run in beside those of `PACKAGES`."""

PACKAGES = ("optimize", "numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "openvino", "torch", "tensorrt-rtx")


@dataclass(frozen=True)
class Asked:
    """What the gate asks: the parent's own value of the metric, what an engine has to reach, and how outputs are read."""

    value: float
    threshold: float
    reading: Reading


@dataclass(frozen=True)
class Low:
    """The rungs of the ladder below any choice of precision, and what is to be said of them."""

    rungs: tuple[Rung, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """All that does not depend on the target.

    `parent` are the imported model's outputs on the `screening` feeds; `judged` counts the earlier builds into OUT in which these
    evaluation samples judged this model; `metric` is how the ladder reads outputs, `asked` what the gate asks (None where it has
    nothing to ask); `sizes` are the feeds of the ladder, `rungs` its first ones.  `question` and `climb` give the question with the
    parent's answers and the ladder as far as it was climbed: found out once, and only where something has to be judged or climbed
    that no earlier build has.  `evidence` says in clear what that depends on, `journal` is the file of what was found.  `started` is
    when the build began, on the monotonic clock.
    """

    request: Request
    imported: Model
    fused: Model
    calibration: Samples | None
    evaluation: Samples | None
    left_out: int
    judged: int
    table: Table | None
    screening: Sequence[Arrays]
    feeds: Sequence[Arrays]
    parent: Sequence[Mapping[str, NDArray[Any]]]
    numeric: Sequence[Arrays]
    metric: Metric
    asked: Asked | None
    question: Callable[[], Question | NoQuestion | None]
    sizes: Sizes
    rungs: tuple[Rung, ...]
    climb: Callable[[], Climbed]
    evidence: Mapping[str, str]
    journal: Path
    notes: tuple[str, ...]
    started: float


def prepare(request: Request, scratch: Path, kept: Path, track: Track) -> Prepared:
    """Everything up to the calibrated table, which is also written into `kept`, and taken from there or from OUT where it fits.

    Raises:
        InputError: model, data or options can't be used as they are.
    """
    notes: list[str] = []
    started = time.monotonic()
    track("importing", 0, 0)
    reading = _reading(request, scratch)
    imported = importers.load(reading, track)
    private = (scratch, request.folder, request.model.absolute().parent)
    imported = replace(imported, source=replace(imported.source, notes=tuple(portable(note, private) for note in imported.source.notes)))
    track("fusing", 0, 0)
    fused = fuse(imported)
    refuse_wrong_states(request.preprocessing, imported)
    notes.extend(_told_of_states(request))
    calibration, evaluation, left_out = _data(request, imported)
    given = [samples for samples in (calibration, evaluation) if samples is not None]
    notes.extend(note for samples in given for note in samples.notes)
    notes.extend(suspected(imported, given))
    if left_out:
        notes.append(f"{left_out} evaluation samples are also calibration samples: they were left out of the gate.")
    table, screening, feeds = _calibrated(request, imported, fused, calibration, kept, notes, track)
    parent = _outputs(imported, screening)
    journal = Journal(kept / PARENT, _parent_key(), (*_of_earlier_builds(request, PARENT), kept / PARENT))
    evidence = _evidence(request, imported, calibration, evaluation)
    question = cache(partial(_question, request, imported, evaluation, track))
    metric, asked, judged = None, None, 0
    if evaluation is not None:
        metric, _ = metric_from_words(request, imported, evaluation)
        if metric is None:
            question()  # which refuses what nothing can be measured by
        else:
            asked = journal.once("question", evidence, Asked, partial(_asked, question))
            track(f"gate: {required(metric.name, asked.threshold, asked.value)}", 0, 0)
            judged = judged_before(request.output, imported.source.sha256, evaluation.sha256)
    numeric: Sequence[Arrays] = list(screening[:NUMERIC])
    if not numeric:
        numeric = _first(imported, evaluation) if evaluation is not None else []
    if not numeric:
        numeric = _made_up(request, imported, NUMERIC)
        sizes = ", ".join(f"{name} {'x'.join(map(str, array.shape)) or 'scalar'}" for name, array in numeric[0].items())
        notes.append(f"There is no data: engines are timed and compared on random numbers ({sizes}).")
    rising = sizes_of(screening or numeric, imported, request.shapes)
    metric = read_as(metric, request.task, imported)
    climb = cache(partial(climb_to_fused, reading, imported, fused, rising, metric, track))
    low = journal.once("rungs", evidence, Low, lambda: Low(climb()[0].rungs, climb()[1]))
    notes.extend(low.notes)
    if journal.recalled:
        notes.append(f"What the parent answers is known from an earlier build: same model, data and versions ({PARENT}).")
    notes.extend(f"{file} of an earlier build is not used: {why}." for file, why in journal.unusable.items())
    return Prepared(
        request=request,
        imported=imported,
        fused=fused,
        calibration=calibration,
        evaluation=evaluation,
        left_out=left_out,
        judged=judged,
        table=table,
        screening=screening,
        feeds=feeds,
        parent=parent,
        numeric=numeric,
        metric=metric,
        asked=asked,
        question=question,
        sizes=rising,
        rungs=low.rungs,
        climb=lambda: climb()[0],
        evidence=evidence,
        journal=kept / PARENT,
        notes=tuple(notes),
        started=started,
    )


def _question(request: Request, imported: Model, evaluation: Samples | None, track: Track) -> Question | NoQuestion | None:
    return question_from_words(request, imported, evaluation, track) if evaluation is not None else None


def _asked(question: Callable[[], Question | NoQuestion | None]) -> Asked:
    found = question()
    assert isinstance(found, Question)
    return Asked(found.scores.value, found.threshold, found.parent.reading)


def machine(target: Target) -> dict[str, str]:
    """What measurements on a target depend on beside the model and the data, in clear."""
    return {
        "target": f"{target.name}: {target.device}",
        "features": " ".join(target.features),
        "cores": str(target.cores),
        **{f"version of {name}": version for name, version in versions(*PACKAGES).items()},
    }


def _parent_key() -> Mapping[str, str]:
    return {**machine(this_cpu()), **{f"version of {name}": version for name, version in versions(*FRAMEWORKS).items()}}


def _evidence(request: Request, imported: Model, calibration: Samples | None, evaluation: Samples | None) -> Mapping[str, str]:
    """What the parent's answers, the ladder and the gate's verdicts depend on, in clear.

    Code of the user's can change where no hash shows it: what it has a part in is not recalled.
    """
    asked = (
        request.metric,
        request.max_drop,
        request.min_metric,
        request.task,
        request.shapes,
        request.seed,
        request.random_calibration,
        request.threads,
    )
    return {
        "source": imported.source.sha256,
        "model": sha256(imported.graph),
        "calibration": calibration.sha256 if calibration is not None else "",
        "evaluation": evaluation.sha256 if evaluation is not None else "",
        "preprocessing": hashlib.sha256(to_json(request.preprocessing)).hexdigest(),
        "asked": to_json(asked).decode(),
        "code": uuid.uuid4().hex if _runs_code(request) else "",
    }


def _runs_code(request: Request) -> bool:
    """Whether a function, a program or a library of the user's has a part in what the parent answers and how that is read."""
    functions = (request.preprocessing.tokenizer, *(how.function for how in request.preprocessing.inputs.values()))
    named = (request.factory, request.source_python, request.custom_ops, ":" in (request.metric or ""), *functions)
    return any(named)


def _reading(request: Request, scratch: Path) -> ImportRequest:
    return ImportRequest(
        file=request.model,
        scratch=scratch,
        user_folder=request.folder,
        factory=request.factory,
        factory_args=request.factory_args,
        shapes=request.shapes,
        trust=request.trust,
        source_python=request.source_python,
        signature=request.signature,
        tags=request.tags,
        custom_ops=request.custom_ops,
    )


def _told_of_states(request: Request) -> Iterator[str]:
    for name, state in states_of(request.preprocessing).items():
        yield (
            f"The input {name!r} carries the output {state!r}: parent and engine are each run over the evaluation data in its order with "
            "their own fed back; calibration and screening see what the parent's were."
        )


def _data(request: Request, model: Model) -> tuple[Samples | None, Samples | None, int]:
    def opened(words: str | None) -> Samples | None:
        if words is None:
            return None
        model_file = request.model.absolute()
        return open_samples(words, model.inputs, request.preprocessing, request.folder, model=model_file, shapes=request.shapes)

    calibration, evaluation = opened(request.calibration), opened(request.evaluation)
    if calibration is None or evaluation is None:
        return calibration, evaluation, 0
    held, left_out = held_out(evaluation, calibration)
    return calibration, held, left_out


def _calibrated(
    request: Request, imported: Model, fused: Model, calibration: Samples | None, kept: Path, notes: list[str], track: Track
) -> tuple[Table | None, Sequence[Arrays], Sequence[Arrays]]:
    """The table, the feeds that candidates are screened on, and those for recovery; nothing of all without calibration data.

    Recovery would fit weights to random numbers, so that it gets none.
    """
    threads = request.threads or this_cpu().cores
    if calibration is not None:
        key = _key(request, fused, calibration.sha256, len(calibration))
        with _with_states(imported, calibration) as samples:
            table = _table_from_before(key, (kept / TABLE, *_of_earlier_builds(request, TABLE)), notes)
            if table is None:
                table = calibrate(fused, samples, key=key, threads=threads, track=track)
            (kept / TABLE).write_bytes(table.to_json())
            judging = _spread(len(calibration), min(_screened(fused), max(len(calibration) // 2, 1)))
            screening = _chosen(samples, judging)
            size = max(sum(array.nbytes for array in feed.values()) for feed in screening)
            more = min(RECOVERY, RECOVERY_BYTES // max(size, 1))
            others = sorted(set(range(len(calibration))) - set(judging)) or judging
            return table, screening, _chosen(samples, [others[index] for index in _spread(len(others), max(more, 1))])
    if request.random_calibration:
        feeds = _made_up(request, fused, RANDOM)
        notes.append("Calibrated on random numbers, as asked with --random-calibration: its ranges are those of no real data.")
        return calibrate(fused, feeds, key=_key(request, fused, "random", RANDOM), threads=threads, track=track), feeds, ()
    return None, (), ()


def _screened(model: Model) -> int:
    """How many samples a candidate of this model is screened on."""
    least, most = SCREENING
    return min(max(SCREENING_WORK // max(sum(multiplications(model.graph).values()), 1), least), most)


def _spread(samples: int, most: int) -> list[int]:
    """At most so many indices, spread evenly over the data."""
    return [int(index) for index in np.unique(np.linspace(0, samples - 1, most).round())]


def _of_earlier_builds(request: Request, file: str) -> tuple[Path, ...]:
    """The files of a name that earlier builds into OUT have left, of one target or of each."""
    return (request.output / file, *(request.output / folder_of(name) / file for name in request.targets))


def _table_from_before(key: Mapping[str, str], files: Sequence[Path], notes: list[str]) -> Table | None:
    """The table of an earlier build, where it was made of the same model, data and versions; where not, that is noted."""
    for file in files:
        if not file.exists():
            continue
        try:
            table = Table.from_json(file.read_bytes(), file.name)
        except InputError as error:
            notes.append(error.reason)
            continue
        if not (fields := table.differs(key)):
            notes.append(f"The calibration of an earlier build is used ({file.name}): same model, data, preprocessing and versions.")
            return table
        notes.append(f"The calibration of the last build ({file.name}) is not used: it differs in {', '.join(fields)}.")
    return None


def table_for(prepared: Prepared, model: Model, track: Track) -> Table | None:
    """The table for a form of the fused model: the one that there is, or where that has not seen all of its tensors, another.

    With its sizes fixed a model may have lost an If, and its branch's tensors are seen for the first time.
    """
    request, table, samples = prepared.request, prepared.table, prepared.calibration
    if table is None or set(watched(model)) <= table.statistics.keys():
        return table
    threads = request.threads or this_cpu().cores
    if samples is None:
        key = _key(request, model, "random", RANDOM)
        return calibrate(model, prepared.screening, key=key, threads=threads, track=track)
    with _with_states(prepared.imported, samples) as feeds:
        return calibrate(model, feeds, key=_key(request, model, samples.sha256, len(samples)), threads=threads, track=track)


@contextmanager
def _with_states(imported: Model, samples: Samples) -> Iterator[Samples | Recorded]:
    """The samples, each with the state that the imported model had there, where it carries one."""
    if not states_of(samples.preprocessing):
        yield samples
        return
    with closing(Reference(imported.graph, optimized=True)) as reference:
        yield Recorded(reference.run, samples)


def _chosen(feeds: Samples | Recorded, indices: Sequence[int]) -> list[Arrays]:
    if isinstance(feeds, Samples):
        return list(feeds.take(indices))
    return [feed for index, feed in enumerate(islice(feeds, indices[-1] + 1)) if index in indices]


def _first(imported: Model, samples: Samples) -> list[Arrays]:
    """The first few samples, for engines that are judged numerically."""
    with _with_states(imported, samples) as feeds:
        return list(islice(feeds, NUMERIC))


def _made_up(request: Request, model: Model, count: int) -> Sequence[Arrays]:
    """Random feeds that the model takes: in the usual sizes where --shapes gives any, else with the first of FREE_SIZES that runs.

    Raises:
        InputError: it runs with none of them.
    """
    batch = {spec.shape[0] for spec in model.inputs if spec.shape}
    reference, why = Reference(model.graph), ""
    try:
        for size in FREE_SIZES:
            shapes = {spec.name: tuple(_size(one, batch, size) for one in spec.shape) for spec in model.inputs}
            shapes |= {name: shape.usual for name, shape in request.shapes.items()}
            feeds = random_samples(tuple(replace(spec, shape=shapes[spec.name]) for spec in model.inputs), count, request.seed)
            try:
                reference.run(feeds[0])
            except InputError as error:
                why = error.reason
                continue
            return feeds
    finally:
        reference.close()
    raise InputError(f"There is no data, and made-up inputs don't fit: {why}", "Give --calibration data, or sizes with --shapes.")


def _size(size: Dimension, batch: Set[Dimension], free: int) -> int:
    return size if isinstance(size, int) else 1 if size in batch else free


def _key(request: Request, fused: Model, data: str, samples: int) -> Mapping[str, str]:
    return {
        "model": sha256(fused.graph),
        "data": data,
        "samples": str(samples),
        "preprocessing": hashlib.sha256(to_json(request.preprocessing)).hexdigest(),
        "seed": str(request.seed) if data == "random" else "",
        **{f"version of {name}": version for name, version in versions("optimize", "onnxruntime", "numpy").items()},
    }


def _outputs(model: Model, feeds: Sequence[Arrays]) -> list[dict[str, NDArray[Any]]]:
    if not feeds:
        return []
    reference = Reference(model.graph)
    try:
        outputs = [reference.run(feed) for feed in feeds]
    finally:
        reference.close()
    finite = [np.isfinite(array).all() for one in outputs for array in one.values() if array.dtype.kind == "f"]
    if finite and not any(finite):
        raise InputError("The model gives no finite number on the calibration data.", "Check the model and its preprocessing.")
    return outputs
