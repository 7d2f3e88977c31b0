"""PyTorch checkpoints: weights and the user's factory become a graph in a process of their own, held against the network itself.

The exporter that torch recommends goes first.  It may freeze a free dimension at the size it saw while declaring it free, so each
is tried at two sizes; where the answers differ, or it fails, torch's older exporter gets its turn, and the same trial.  Neither
optimizes: what they would fold, our fusion folds exactly and tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from optimizer.errors import InputError, UnavailableError
from optimizer.fusion import SCAFFOLDING, fuse
from optimizer.graph import names, unique
from optimizer.importers import ImportRequest
from optimizer.importers._naming import name_layers, strip_metadata
from optimizer.importers.onnx import TIDIED, load_graph
from optimizer.model import Model, Source
from optimizer.process import Child, isolated
from optimizer.progress import Track, silent
from optimizer.provenance import sha256_of_file, told, versions

_WORKERS = Path(__file__).parent / "workers"
_COMMAND = isolated(_WORKERS / "torch_export.py", _WORKERS / "optimize_checkpoint.py", _WORKERS / "optimize_inputs.py")
_PATIENCE = 3600.0
_WRONG = 1e-3


@dataclass(frozen=True)
class _Probe:
    """What the network itself answers to made-up inputs; `words` say which dimension stands at which size.

    `zeros`: all numbers in the inputs are 0.  Answers may then hang on rounding alone (equal scores ranked, a spread of 0 divided
    by), so that only a number that is finite in the network and not in the graph proves a wrong graph.
    """

    words: str
    zeros: bool
    feeds: Mapping[str, NDArray[Any]]
    outputs: Sequence[NDArray[Any]]


@dataclass(frozen=True)
class _Network:
    """What the worker tells of the network: its modules (path to class), names for its outputs, and what a user should know."""

    modules: dict[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Export:
    """A network, probes of it, why it could not be exported, or None, and what a user should know of how it was."""

    network: _Network
    probes: Sequence[_Probe]
    unexportable: str | None
    notes: tuple[str, ...]


def load(how: ImportRequest, track: Track = silent) -> Model:
    """The network that `how.factory` makes, with the weights in `how.file`, as a graph.

    Raises:
        UnavailableError: torch is not installed.
        InputError: a checkpoint that is not whole, would run code, or does not fit; a wrong factory or shape; a network that
            can't be exported, or whose export gives other answers.
    """
    file = how.file
    if find_spec("torch") is None:
        raise UnavailableError("Reading a PyTorch checkpoint needs PyTorch, which is not installed.", "Run pip install 'optimize[torch]'.")
    free = any(not shape.fixed for shape in how.shapes.values())
    refused = ""
    for exporter in ("dynamo", "legacy"):
        track("import", 0, 2)
        export = _exported(file, how, exporter)
        track("import", 1, 2)
        try:
            graph, difference = _graph(how, export)
        except _UnlikeError as error:
            refused = refused or str(error)
            continue
        track("import", 2, 2)
        return _model(file, how, graph, export.network, (*export.notes, *_told(exporter, refused, difference)))
    raise InputError(f"PyTorch's exporter can't turn this network into a graph: {refused}", _remedy(free))


class _UnlikeError(Exception):
    """There is no graph, or it is not the network; says why."""


def _graph(how: ImportRequest, export: _Export) -> tuple[ir.Model, float]:
    """The tidied graph, and how far its answers are from the network's."""
    if export.unexportable is not None:
        raise _UnlikeError(export.unexportable)
    try:
        graph, _ = load_graph(how.scratch / "exported.onnx", how.shapes, how.scratch)  # its notes are about the exporter's file
    except InputError as error:
        raise _UnlikeError(error.reason) from error
    return graph, _held_against(how.scratch / TIDIED, export.probes)


def _exported(file: Path, how: ImportRequest, exporter: str) -> _Export:
    """Run the worker to its end."""
    request = {
        "event": "request",
        "file": str(file),
        "name": file.name,
        "factory": how.factory,
        "factory_args": {name: _value(text) for name, text in how.factory_args.items()},
        "folder": str(how.user_folder),
        "shapes": {name: [shape.smallest, shape.usual, shape.largest] for name, shape in how.shapes.items()},
        "exporter": exporter,
        "out": str(how.scratch / "exported.onnx"),
    }
    network, probes, notes = _Network(), [], tuple[str, ...]()
    with Child(_COMMAND, folder=how.user_folder, what=f"Importing {file.name}") as child:
        child.send(request)
        while (message := child.receive(_PATIENCE)).event["event"] not in {"done", "unexportable"}:
            try:
                if message.event["event"] == "model":
                    network = msgspec.convert(message.event, _Network)
                elif message.event["event"] == "probe":
                    probes.append(_probe(message.event, message.arrays))
                elif message.event["event"] == "exported":
                    notes = msgspec.convert(message.event["notes"], tuple[str, ...])
            except (msgspec.ValidationError, KeyError):
                raise child.nonsense() from None
    return _Export(network, probes, message.event.get("said"), notes)


def _probe(event: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> _Probe:
    feeds = {name.removeprefix("in."): array for name, array in arrays.items() if name.startswith("in.")}
    return _Probe(event["words"], event["zeros"], feeds, [array for name, array in arrays.items() if name.startswith("out.")])


def _held_against(file: Path, probes: Sequence[_Probe]) -> float:
    """The largest difference between the graph in `file` and the network, relative to the largest answer.

    Raises:
        _UnlikeError: it fails where the network runs, or its answers have other shapes or differ by more than rounding.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is told as the reason
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    taken = {value.name for value in session.get_inputs()}
    worst = 0.0
    for probe in probes:
        try:
            found = session.run(None, {name: array for name, array in probe.feeds.items() if name in taken})
        except Exception as error:
            raise _UnlikeError(
                f"at {probe.words} the network runs and the graph does not ({' '.join(str(error).split())[:200]})."
            ) from error
        if [array.shape for array in found] != [array.shape for array in probe.outputs]:
            shapes = " and ".join(str([array.shape for array in arrays]) for arrays in (probe.outputs, found))
            raise _UnlikeError(f"at {probe.words} the shapes of their answers are {shapes}.")
        pairs = list(zip(probe.outputs, found, strict=True))
        if probe.zeros:
            if any(np.any(np.isfinite(wanted) & ~np.isfinite(array)) for wanted, array in pairs):
                raise _UnlikeError(f"at {probe.words} the graph gives numbers that are not finite where the network's are.")
            continue
        worst = max(worst, *(_difference(*pair) for pair in pairs))
        if not worst <= _WRONG:
            raise _UnlikeError(f"at {probe.words} the graph's answers differ from the network's by {worst:.1e} of the largest.")
    return worst


def _difference(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    """Largest difference relative to the largest number wanted; infinite where what is not finite differs."""
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], found[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    wanted, found = wanted[finite].astype(np.float64), found[finite].astype(np.float64)
    return float(np.abs(wanted - found).max() / max(np.abs(wanted).max(), 1e-12))


def _model(file: Path, how: ImportRequest, graph: ir.Model, network: _Network, notes: tuple[str, ...]) -> Model:
    """Names of the user's on layers and outputs; nothing of the user's paths, nor of the exporter's own arithmetic."""
    source = Source(
        framework="pytorch",
        file=file.name,
        sha256=sha256_of_file(file),
        factory=told(how.factory, how.user_folder) if how.factory is not None else None,
        factory_args=how.factory_args,
        code_ran=True,
        versions={**versions("onnx", "onnx-ir", "onnxscript", "onnxruntime"), **network.versions},
        notes=(*network.notes, *notes),
    )
    graph = fuse(Model(graph, source), SCAFFOLDING).graph  # before names are given and counted, since no line of the user's stands for it
    name_layers(graph, network.modules)
    strip_metadata(graph)
    taken = names(graph.graph)
    for value, name in zip(graph.graph.outputs, network.outputs, strict=True):
        if value.name != name:
            value.name = unique(name, taken)
    return Model(graph, source)


def _told(exporter: str, refused: str, difference: float) -> tuple[str, ...]:
    same = f"The graph's answers differ from PyTorch's by at most {difference:.1e} of the largest."
    if exporter == "dynamo":
        return (same,)
    return (f"Exported by torch's older exporter, because with the newer one {refused.rstrip('.')}.", same)


def _remedy(free: bool) -> str:
    if free:
        return "Fix the dimension in --shapes, or export the network to ONNX yourself and give that file."
    return "Change what the exporter complains of, or export the network to ONNX yourself and give that file."


def _value(text: str) -> int | float | bool | str:
    """A --factory-arg as the number or boolean that it spells, else as it is."""
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
