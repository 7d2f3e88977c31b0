"""`qualify`: an engine loaded, timed and gated on the machine that it is for; what was seen is added to its folder as an attestation.

For a GPU this is written and was never run: no such GPU was at hand. The same code qualifies a CPU engine, which is run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kernels.cpus import runs_here
from kernels.target import Target, this_cpu
from kernels.targets import target_from_name
from kernels.timing import Timing, race
from optimizer import importers
from optimizer.backends.tensorrt.driver import gpus
from optimizer.backends.tensorrt.runtime import opened
from optimizer.data import Samples, open_samples, random_samples
from optimizer.engine import Arrays, Engine, Parity
from optimizer.errors import InputError, UnavailableError
from optimizer.importers import ImportRequest
from optimizer.model import Model, TensorSpec
from optimizer.package.load import load
from optimizer.package.passport import FILE, Passport, verify
from optimizer.parity.budget import Budget
from optimizer.parity.gate import ask, judge
from optimizer.parity.lossless import judge_lossless
from optimizer.parity.metrics import metric_from_name
from optimizer.plan import Plan, Shape
from optimizer.progress import Track, silent
from optimizer.provenance import from_json, sha256_of, sha256_of_file, to_json, versions
from optimizer.reference import Reference
from optimizer.report.report import Report
from optimizer.sequence import error_over_time, independent_after, states_of

SCHEMA = "optimize.attestation/1"
FOLDER = "attestations"

_FEEDS = 4
_PACKAGES = ("optimize", "numpy", "onnxruntime", "openvino", "tensorrt-rtx", "tensorrt")


@dataclass(frozen=True)
class Attestation:
    """What one run of `qualify` saw: of which passport and engine (SHA-256 of both files), where, when (UTC), and what came out.

    `timing` is of whole runs, arrays in host memory in and out; `parity` is None where nothing could be gated, `notes` say why.
    """

    passport: str
    engine: str
    engine_sha256: str
    target: str
    device: str
    when: str
    timing: Timing
    parity: Parity | None
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    schema: str = SCHEMA


def qualify(
    folder: Path,
    *,
    model: Path | None = None,
    evaluation: str | None = None,
    engine: Path | None = None,
    seconds: float = 10.0,
    track: Track = silent,
    **how: Any,
) -> Attestation:
    """Time and gate the engine of `folder` here, and write `folder/attestations/<time>.json`.

    `model` is the file that the engine was built from: its answers to `evaluation` (DATA words) are what the engine's are held
    against, by the metric and budget of the build; without them the engine is timed alone. `engine` is a plan that the user built
    from the handover with trtexec, in place of the folder's own. `how` are the fields of `importers.ImportRequest` that a passport
    can't vouch for: trust, source_python, custom_ops. Nothing is written on an error.

    Raises:
        UnavailableError: no GPU of the target or no driver is here, this CPU is another than the target, or the engine can't be loaded.
        VerificationError: the folder is not what its passport says.
        InputError: model, data or engine do not belong to this folder.
    """
    passport = verify(folder)
    target = target_from_name(passport.target)
    with ExitStack() as stack:
        subject: Engine = stack.enter_context(
            closing(load(folder, bool(how.get("trust"))) if engine is None else _own(engine, passport, target))
        )
        samples = None if evaluation is None else _samples(evaluation, passport, model)
        parent = None if model is None else stack.enter_context(_parent(model, passport, how, track))
        feeds: list[Arrays] = [*itertools.islice(samples if samples is not None else random_samples(passport.inputs, _FEEDS, 0), _FEEDS)]
        device = _device(target)
        timing = _timed(subject, parent if target.kind == "cpu" else None, feeds[0], seconds, device, track)
        parity, why = _gated(_asked(folder), subject, parent, samples, feeds, device, track)
    file = engine if engine is not None else folder / str(passport.engine)
    now = datetime.now(UTC)
    found = Attestation(
        passport=sha256_of_file(folder / FILE),
        engine=file.name,
        engine_sha256=sha256_of_file(file),
        target=target.name,
        device=device,
        when=now.isoformat(timespec="seconds"),
        timing=timing,
        parity=parity,
        versions=versions(*_PACKAGES),
        notes=(why,) if why else (),
    )
    _write(found, folder / FOLDER, now)
    return found


def _own(file: Path, passport: Passport, target: Target) -> Engine:
    """The user's own engine, which must take and give what the passport says."""
    if target.kind != "gpu":
        raise InputError(f"--engine is for plans that trtexec built, and {passport.target} is no GPU.", "Leave --engine out.")
    if not file.exists():
        raise InputError(f"There is no engine {file.name}.", "Give the file that handover/build.sh wrote (model.plan).")
    engine = opened(file, "tensorrt")
    wanted = [{spec.name for spec in specs} for specs in (passport.inputs, passport.outputs)]
    if [{spec.name for spec in specs} for specs in (engine.inputs, engine.outputs)] != wanted:
        engine.close()
        raise InputError(
            f"{file.name} has other inputs or outputs than the model of this folder.", "Build it from this folder's handover/model.onnx."
        )
    return engine


def _samples(evaluation: str, passport: Passport, model: Path | None) -> Samples:
    samples = open_samples(evaluation, passport.inputs, passport.preprocessing, Path.cwd(), model=model)
    if samples.sha256 == passport.calibration:
        raise InputError(
            f"{samples.source} is the data that the engine was calibrated on, which is no evidence.",
            "Give held-out samples as --evaluation.",
        )
    return samples


@dataclass(frozen=True)
class _Parent:
    """The model that the engine was built from, and how it answers."""

    model: Model
    engine: Reference


@contextmanager
def _parent(file: Path, passport: Passport, how: Mapping[str, Any], track: Track) -> Iterator[_Parent]:
    """The model imported again as it was for the build, in the engine's shapes."""
    source = passport.source
    if not file.is_file():
        raise InputError(f"There is no model {file.name}.", f"Give the file that the engine was built from ({source.file}).")
    if sha256_of(file) != source.sha256:
        raise InputError(
            f"{file.name} is not the model that this engine was built from: its SHA-256 differs.", f"Give {source.file} as it was."
        )
    with TemporaryDirectory() as scratch:
        reading = ImportRequest(
            file,
            Path(scratch),
            Path.cwd(),
            factory=source.factory,
            factory_args=source.factory_args,
            shapes=_fixed(passport.inputs),
            signature=source.signature,
            tags=source.tags,
            **how,
        )
        model = importers.load(reading, track)
        with closing(Reference(model.graph, optimized=True)) as engine:
            yield _Parent(model, engine)


def _fixed(inputs: tuple[TensorSpec, ...]) -> dict[str, Shape]:
    """The shapes of inputs that the engine takes in one size only."""
    sizes = {spec.name: tuple(size for size in spec.shape if isinstance(size, int)) for spec in inputs}
    return {spec.name: Shape(*[sizes[spec.name]] * 3) for spec in inputs if len(sizes[spec.name]) == len(spec.shape)}


def _device(target: Target) -> str:
    """What this runs on, by its maker's name."""
    if target.kind == "cpu" and not runs_here(target):
        raise UnavailableError(
            f"Nothing can be qualified for {target.name} here: this CPU has {' '.join(this_cpu().features)}, and picks other kernels.",
            f"Run it on a CPU with exactly {' '.join(target.features) or 'SSE4'}; optimize bench tells how fast the engine is here.",
        )
    if target.kind == "cpu":
        return this_cpu().device
    found = gpus()
    if isinstance(found, str):
        raise UnavailableError(f"Nothing can be qualified for {target.name} here: {found}.", f"Run it on a machine with {target.device}.")
    return found[0].name


def _timed(engine: Engine, parent: _Parent | None, feed: Arrays, seconds: float, device: str, track: Track) -> Timing:
    """The engine's time, beside the parent's on the same CPU where there is one."""
    runs = {"engine": partial(engine.run, feed)}
    if parent is not None:
        runs["the model in ONNX Runtime"] = partial(parent.engine.run, feed)
    return race(runs, list(runs)[-1], seconds=seconds, timed_on=device, track=track)["engine"]


@dataclass(frozen=True)
class _Asked:
    """What the build was asked to keep: the metric and its budget in points (None: nothing), or every digit."""

    lossless: bool
    metric: str
    budget: float | None


def _asked(folder: Path) -> _Asked:
    plan = from_json((folder / "plan.json").read_bytes(), Plan, "plan.json")
    gate = from_json((folder / "report.json").read_bytes(), Report, "report.json").gate
    return _Asked(plan.lossless, gate.metric, gate.budget)


def _gated(
    asked: _Asked, engine: Engine, parent: _Parent | None, samples: Samples | None, feeds: Sequence[Arrays], device: str, track: Track
) -> tuple[Parity | None, str]:
    """The verdict on what was asked of the build, or None and why there is none."""
    if parent is None:
        return None, "timed only: with --model, the file that it was built from, the engine is gated as well"
    if asked.lossless:
        return judge_lossless(parent.model.graph, engine.run, feeds, gated_on=device), ""
    if samples is None:
        return None, "timed only: what a lower precision loses is told by held-out samples (--evaluation)"
    if asked.budget is None:
        return None, "timed only: the build itself was not gated, so there is neither metric nor budget; build with --evaluation"
    metric = metric_from_name(asked.metric, Path.cwd())
    question = ask(parent.engine.run, samples, metric, Budget(asked.budget, relative=False), track=track)
    states = states_of(samples.preprocessing)
    block = independent_after(error_over_time(parent.engine.run, engine.run, samples)) if states else 1
    return judge(question, engine.run, samples, gated_on=device, block=block, track=track), ""


def _write(found: Attestation, folder: Path, now: datetime) -> None:
    """One file a run, whole or not at all."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{now:%Y%m%dT%H%M%S%fZ}.json"
    partial_file = file.with_suffix(".partial")
    partial_file.write_bytes(to_json(found))
    partial_file.rename(file)
