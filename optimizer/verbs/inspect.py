"""`inspect`: what a model is made of, what would fuse, who can take it, and why a layer would not be INT8."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernels.target import Target
from kernels.targets import target_from_name
from optimizer import importers
from optimizer.backends import NAMES, backend, missing
from optimizer.fusion import fuse
from optimizer.graph import weights_bytes
from optimizer.importers import ImportRequest
from optimizer.model import Fusion, Layer, Model, Source, TensorSpec
from optimizer.package.passport import Passport, verify
from optimizer.precision import eligible
from optimizer.progress import Track, silent
from optimizer.report.report import Report, Reports, report_from_file


@dataclass(frozen=True)
class Taker:
    """A backend for a target. `missing` is why it can't build; `not_int8` maps each layer that can't be INT8 to the reason."""

    target: str
    backend: str
    missing: str | None
    precisions: tuple[str, ...] = ()
    not_int8: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspected:
    """A model: its layers as they stand after fusion. `parameters` counts numbers, `weights` bytes."""

    source: Source
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: tuple[Layer, ...]
    operators: Mapping[str, int]
    parameters: int
    weights: int
    fusions: tuple[Fusion, ...]
    takers: tuple[Taker, ...]


@dataclass(frozen=True)
class InspectedEngine:
    """An engine folder, verified: its passport and its report; without a passport what a build left where nothing passed, or above
    the folders of several targets."""

    passport: Passport | None
    report: Report | Reports


def inspect(
    path: Path,
    *,
    targets: Sequence[str] = (),
    user_folder: Path | None = None,
    track: Track = silent,
    **how: Any,
) -> Inspected | InspectedEngine:
    """Look at a model file, or at an engine folder if `path` holds a passport or a report. Nothing is built or left behind.

    `how` are the fields of `importers.ImportRequest` that say how the file is read: factory, shapes, trust ...

    Raises:
        InputError: the model, or a report, can't be read.
        VerificationError: the engine folder is not what its passport says.
        UnavailableError: a target of an unknown name.
    """
    if (path / "passport.json").is_file():
        return InspectedEngine(verify(path), report_from_file(path / "report.json"))
    if (path / "report.json").is_file():
        return InspectedEngine(None, report_from_file(path / "report.json"))
    chosen = [target_from_name(name) for name in targets or ("cpu",)]
    with tempfile.TemporaryDirectory() as scratch:
        imported = importers.load(ImportRequest(path, Path(scratch), user_folder or Path.cwd(), **how), track)
        return _inspected(fuse(imported), chosen)


def _inspected(model: Model, targets: Sequence[Target]) -> Inspected:
    layers = model.layers
    return Inspected(
        source=model.source,
        inputs=model.inputs,
        outputs=model.outputs,
        layers=layers,
        operators=dict(Counter(layer.op for layer in layers).most_common()),
        parameters=sum(layer.parameters for layer in layers),
        weights=weights_bytes(model.graph),
        fusions=model.fusions,
        takers=tuple(_taker(model, target, name) for target in targets for name in NAMES),
    )


def _taker(model: Model, target: Target, name: str) -> Taker:
    why_not = missing(name, target)
    if why_not is not None:
        return Taker(target.name, name, why_not)
    capability = backend(name).capability(target)
    reasons = {layer: reason for layer, reason in eligible(model, capability, "int8").items() if reason is not None}
    return Taker(target.name, name, None, tuple(sorted(capability.precisions)), reasons)
