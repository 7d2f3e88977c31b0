"""PyTorch models become a graph in a process of their own, held against the network itself.

They come as weights with the user's factory, as a Hugging Face folder, or as a file that can run code and is trusted: a TorchScript
program, a program of torch.export, a pickled network.  The exporter that torch recommends goes first.  It may freeze a free dimension
at the size it saw while declaring it free, so each is tried at two sizes; where the answers differ, or it fails, torch's older
exporter gets its turn, and the same trial.  Neither optimizes: what they would fold, our fusion folds exactly and tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir

from optimizer.engine import SourceRun
from optimizer.errors import InputError, UnavailableError
from optimizer.fusion import SCAFFOLDING, fuse
from optimizer.graph import names, unique
from optimizer.importers import ImportRequest
from optimizer.importers._naming import name_layers, strip_metadata
from optimizer.importers._probes import Probe, UnlikeError, held_against, probe
from optimizer.importers._torch_file import RUNS_CODE, TorchFile, check_trusted, examined, worker_request
from optimizer.importers._torch_running import InTorch
from optimizer.importers._torch_sequences import without_sequences
from optimizer.importers.onnx import TIDIED, load_graph
from optimizer.model import Model, Source
from optimizer.process import Child, isolated
from optimizer.progress import Track, silent
from optimizer.provenance import told, versions

_WORKERS = Path(__file__).parent / "workers"
_PARTS = [_WORKERS / f"optimize_{part}.py" for part in ("checkpoint", "inputs", "huggingface", "network")]
"""What the workers import, each after those that it imports itself."""

_EXPORT = "torch_export.py"
_PATIENCE = 3600.0


@dataclass(frozen=True)
class _Network:
    """What the worker tells of the network: its modules (path to class), names for its outputs, and what a user should know."""

    modules: dict[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    trusted: bool = False
    code_ran: bool = False


@dataclass(frozen=True)
class _Export:
    """A network, probes of it, the opset of its graph, or why it could not be exported, and what a user should know of how it was."""

    network: _Network
    probes: Sequence[Probe]
    opset: int
    unexportable: str | None
    notes: tuple[str, ...]


def load(how: ImportRequest, track: Track = silent) -> Model:
    """The network in `how.file`, or the one that `how.factory` makes with the weights in it, as a graph.

    Raises:
        UnavailableError: torch, or what else reads it, is not installed.
        InputError: a file that is not whole, would run code and is not trusted, or does not fit; a wrong factory or shape; a
            network that can't be exported, or whose export gives other answers.
    """
    _check_installed(how)
    file = examined(how.file)
    check_trusted(file, how.trust)
    refused: list[str] = []
    for exporter in ("legacy",) if file.kind == "torchscript" else ("dynamo", "legacy"):  # one of them takes no TorchScript
        track("import", 0, 2)
        export = _exported(file, how, exporter)
        track("import", 1, 2)
        try:
            graph, difference = _graph(how, export)
        except UnlikeError as error:
            refused.append(str(error).rstrip("."))
            continue
        track("import", 2, 2)
        return _model(file, how, graph, export.network, (*export.notes, *_told(refused, difference)))
    free = any(not shape.fixed for shape in how.shapes.values())
    older = f"; with the older one {refused[1]}" if len(refused) > 1 else ""
    raise InputError(f"PyTorch's exporter can't turn this network into a graph: {refused[0]}{older}.", _remedy(free))


def running(how: ImportRequest, model: Model) -> SourceRun:
    """The network in PyTorch itself, kept open in a process of its own; to be closed by the caller.

    Layers are shown by what their modules give; what a function gives that forward calls is not.
    """
    file = examined(how.file)
    check_trusted(file, how.trust)
    child = Child(_command("torch_run.py", file, how), folder=how.user_folder, what=f"Running {file.path.name}")
    return InTorch(child, _request(file, how), model, _PATIENCE)


def _check_installed(how: ImportRequest) -> None:
    """Refuse early, in the words of pip, what the worker would fail to import."""
    if how.source_python is not None:
        return
    for package, extra in (("torch", "torch"), *([("transformers", "huggingface")] if how.file.is_dir() else [])):
        if find_spec(package) is None:
            what = "a Hugging Face folder needs transformers" if package == "transformers" else "a PyTorch checkpoint needs PyTorch"
            raise UnavailableError(f"Reading {what}, which is not installed.", f"Run pip install 'optimize[{extra}]'.")


def _command(worker: str, file: TorchFile, how: ImportRequest) -> list[str]:
    needs = ["torch", *(["transformers"] if file.kind == "folder" else []), *(["onnx"] if worker == _EXPORT else [])]
    return isolated(_WORKERS / worker, *_PARTS, python=how.source_python, needs=needs)


def _graph(how: ImportRequest, export: _Export) -> tuple[ir.Model, float]:
    """The tidied graph, and how far its answers are from the network's."""
    if export.unexportable is not None:
        raise UnlikeError(export.unexportable)
    written = how.scratch / "exported.onnx"
    exported = ir.load(written)
    if (opset := exported.opset_imports.get("")) != export.opset:  # some opsets are ignored in silence, and others written wrong
        raise UnlikeError(f"it wrote opset {opset} where {export.opset} was asked for.")
    if without_sequences(exported):
        ir.save(exported, written)
    try:
        graph, _ = load_graph(written, how.shapes, how.scratch)  # its notes are about the exporter's file
    except InputError as error:
        raise UnlikeError(error.reason) from error
    return graph, held_against(how.scratch / TIDIED, export.probes)


def _request(file: TorchFile, how: ImportRequest) -> dict[str, Any]:
    return {
        "event": "request",
        **worker_request(file),
        "trust": how.trust,
        "factory": how.factory,
        "factory_args": {name: _value(text) for name, text in how.factory_args.items()},
        "folder": str(how.user_folder),
        "shapes": {name: [shape.smallest, shape.usual, shape.largest] for name, shape in how.shapes.items()},
    }


def _exported(file: TorchFile, how: ImportRequest, exporter: str) -> _Export:
    """Run the worker to its end."""
    request = {**_request(file, how), "exporter": exporter, "out": str(how.scratch / "exported.onnx")}
    network, probes, opset, notes = _Network(), [], 0, tuple[str, ...]()
    with Child(_command(_EXPORT, file, how), folder=how.user_folder, what=f"Importing {file.path.name}") as child:
        child.send(request)
        while (message := child.receive(_PATIENCE)).event["event"] not in {"done", "unexportable"}:
            try:
                if message.event["event"] == "model":
                    network = msgspec.convert(message.event, _Network)
                elif message.event["event"] == "probe":
                    probes.append(probe(message.event, message.arrays))
                elif message.event["event"] == "exported":
                    opset, notes = msgspec.convert(message.event["opset"], int), msgspec.convert(message.event["notes"], tuple[str, ...])
            except (msgspec.ValidationError, KeyError):
                raise child.nonsense() from None
    return _Export(network, probes, opset, message.event.get("said"), notes)


def _model(file: TorchFile, how: ImportRequest, graph: ir.Model, network: _Network, notes: tuple[str, ...]) -> Model:
    """Names of the user's on layers and outputs; nothing of the user's paths, nor of the exporter's own arithmetic."""
    source = Source(
        framework="pytorch",
        file=file.path.name,
        sha256=file.sha256,
        factory=told(how.factory, how.user_folder) if how.factory is not None else None,
        factory_args=how.factory_args,
        code_ran=network.code_ran,
        trusted=network.trusted,
        interpreter=f"Python {network.versions.get('python', '')}" if how.source_python is not None else None,
        versions={**versions("onnx", "onnx-ir", "onnxscript", "onnxruntime"), **network.versions},
        notes=(*_trusted(file, network), *network.notes, *notes),
    )
    graph = fuse(Model(graph, source), SCAFFOLDING).graph  # before names are given and counted, since no line of the user's stands for it
    name_layers(graph, network.modules)
    strip_metadata(graph)
    taken = names(graph.graph)
    for value, name in zip(graph.graph.outputs, network.outputs, strict=True):
        if value.name != name:
            value.name = unique(name, taken)
    return Model(graph, source)


def _trusted(file: TorchFile, network: _Network) -> tuple[str, ...]:
    if not network.trusted:
        return ()
    return (f"Trusted, with --trust: {file.path.name} is {RUNS_CODE.get(file.kind, 'a pickle')}, which can run any code that is in it.",)


def _told(refused: list[str], difference: float) -> tuple[str, ...]:
    same = f"The graph's answers differ from PyTorch's by at most {difference:.1e} of the largest."
    if not refused:
        return (same,)
    return (f"Exported by torch's older exporter, because with the newer one {refused[0]}.", same)


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
