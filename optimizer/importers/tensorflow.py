"""TensorFlow models of every format become a graph in two processes: their own TensorFlow freezes them, tf2onnx converts here.

The first stays open as the model's parent: the graph is held against its answers, with each free dimension at several sizes, and
the ladder asks it for layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer import graph as graphs
from optimizer.engine import Arrays, SourceRun
from optimizer.errors import InputError, UnavailableError
from optimizer.fusion import SCAFFOLDING, fuse
from optimizer.importers import ImportRequest
from optimizer.importers._probes import UnlikeError, held_against
from optimizer.importers._recurrent import recurrent
from optimizer.importers._tf_naming import name_layers
from optimizer.importers._tf_probes import probes
from optimizer.importers.onnx import load_graph
from optimizer.model import Model, Source, spec
from optimizer.process import Child, isolated
from optimizer.progress import Track, silent
from optimizer.provenance import sha256_of, versions

_WORKERS = Path(__file__).parent / "workers"
_PARTS = ("optimize_frozen", "optimize_graph_def", "optimize_tftrt", "optimize_saved_model", "optimize_keras", "optimize_tflite")
_INSTALL = "Run pip install 'optimize[tensorflow]'."
_TRUSTED = "Code inside the file was allowed to run, with --trust."
_PATIENCE = 900.0
_INLINE = 1 << 30


@dataclass(frozen=True)
class _Described:
    """What the parent tells of itself: its inputs (tensor, dtype, shape), its outputs (tensor), the layers that it has names for."""

    inputs: dict[str, tuple[str, str, list[int | None] | None]]
    outputs: dict[str, str]
    layers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    signature: str | None = None
    tags: tuple[str, ...] = ()
    trusted: bool = False
    versions: dict[str, str] = field(default_factory=dict)


class _Parent:
    """A model in its own TensorFlow, in a child process: what an import starts from, and the SourceRun of what came of it."""

    def __init__(self, how: ImportRequest, tensors: Mapping[str, str] | None = None) -> None:
        parts = (_WORKERS / f"{part}.py" for part in _PARTS)
        command = isolated(_WORKERS / "tf_source.py", *parts, python=how.source_python, needs=["tensorflow"])
        self.frozen = how.scratch / "frozen.pb"
        self._tensors = tensors or {}
        self._child = Child(command, folder=how.scratch, what=f"Running {how.file.name}")
        self._child.send(
            {
                "event": "request",
                "file": str(how.file),
                "name": how.file.name,
                "folder": str(how.user_folder),
                "scratch": str(how.scratch),
                "shapes": {name: [shape.smallest, shape.usual, shape.largest] for name, shape in how.shapes.items()},
                "trust": how.trust,
                "signature": how.signature,
                "tags": list(how.tags),
                "out": str(self.frozen),
            }
        )
        try:
            self.described = msgspec.convert(self._child.receive(_PATIENCE).event, _Described)
        except msgspec.ValidationError:
            raise self._child.nonsense() from None
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        answer = self.tried(feeds)
        if isinstance(answer, str):
            raise InputError(f"The model does not run in its own TensorFlow: {answer}.", "Give inputs that it takes.")
        return answer

    def tried(self, feeds: Arrays) -> dict[str, NDArray[Any]] | str:
        """The outputs by name, or why TensorFlow does not run with such inputs."""
        self._child.send({"event": "run"}, feeds)
        message = self._child.receive(_PATIENCE)
        return message.arrays if message.event["ran"] else str(message.event["why"])

    def layers(self, feeds: Arrays, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        wanted = {name: self._tensors[name] for name in names if name in self._tensors}
        self._child.send({"event": "tensors", "names": list(wanted.values())}, feeds)
        found = self._child.receive(_PATIENCE).arrays
        return {name: found[tensor] for name, tensor in wanted.items() if tensor in found}

    def close(self) -> None:
        self._child.close()


def load(how: ImportRequest, track: Track = silent) -> Model:
    """The model in a SavedModel folder, a file of Keras's, a frozen graph or a .tflite file.

    Raises:
        UnavailableError: TensorFlow or tf2onnx is not installed.
        InputError: the model is not whole, would run code, works on strings, holds what ONNX has no operator for, or gives other
            answers as a graph; a signature, tag or shape that it does not have.
    """
    _check_asked(how)
    track("import", 0, 3)
    with _converter(how) as converter, closing(_Parent(how)) as parent:  # which load their TensorFlow at the same time
        track("import", 1, 3)
        described = parent.described
        converted = _converted(how, described, parent.frozen, converter)
        track("import", 2, 3)
        graph, _ = load_graph(converted, how.shapes, how.scratch)  # its notes are about the converter's file
        source = _source(how, described)
        graph = fuse(Model(graph, source), SCAFFOLDING).graph  # before names are given, since no line of the user's stands for it
        loops = recurrent(graph)
        difference = _held(how, graph, parent)
    renamed = name_layers(graph, described.layers)
    loops = [re.sub(r"'([^']*)'", lambda name: repr(renamed.get(name[1], name[1])), note) for note in loops]
    same = f"The graph's answers differ from TensorFlow's by at most {difference:.1e} of the largest."
    track("import", 3, 3)
    return Model(graph, replace(source, notes=(*source.notes, *loops, same)))


def running(how: ImportRequest, model: Model) -> SourceRun:
    """The model in the TensorFlow that it was imported with; to be closed by the caller."""
    return _Parent(how, {layer.name: layer.outputs[0] for layer in model.layers if layer.outputs})


def _check_asked(how: ImportRequest) -> None:
    """What this importer needs is there, and nothing is asked of it that it does not do."""
    missing = [package for package in ("tensorflow", "tf2onnx") if find_spec(package) is None]
    if missing:
        raise UnavailableError(f"Reading a TensorFlow model needs {' and '.join(missing)}, which is not installed.", _INSTALL)
    if how.factory is not None or how.factory_args:
        raise InputError(f"{how.file.name} is a whole model: a factory has nothing to make for it.", "Leave --factory away.")
    if not how.file.is_dir() and (how.signature is not None or how.tags):
        raise InputError(f"{how.file.name} is no SavedModel: it has neither signatures nor tags.", "Leave --signature and --tag away.")


def _converter(how: ImportRequest) -> Child:
    return Child(isolated(_WORKERS / "tf_convert.py"), folder=how.scratch, what=f"Converting {how.file.name}")


def _converted(how: ImportRequest, described: _Described, frozen: Path, converter: Child) -> Path:
    """The ONNX file that tf2onnx makes of the frozen graph, or of a .tflite file."""
    tflite = how.file.name.lower().endswith(".tflite")
    out = how.scratch / "exported.onnx"
    converter.send(
        {
            "event": "request",
            "file": str(how.file if tflite else frozen),
            "name": how.file.name,
            "tflite": tflite,
            "inputs": {name: tensor for name, (tensor, _, _) in described.inputs.items()},
            "outputs": described.outputs,
            "out": str(out),
        }
    )
    converter.receive(_PATIENCE)
    return out


def _held(how: ImportRequest, graph: ir.Model, parent: _Parent) -> float:
    """The largest difference of the graph's answers from TensorFlow's.

    Raises:
        InputError: they differ by more than rounding, or the graph does not run where TensorFlow does.
    """
    file = how.scratch / "held.onnx"
    graphs.save(graph, file, beside="held.data" if graphs.weights_bytes(graph) > _INLINE else None)
    names = [value.name or "" for value in graph.graph.outputs]
    try:
        return held_against(file, list(probes([spec(value) for value in graph.graph.inputs], how.shapes, parent.tried, names)))
    except UnlikeError as error:
        raise InputError(
            f"The graph that the converter made of {how.file.name} is not the model: {error}",
            "Export the model to ONNX yourself and give that file, or fix its free dimensions in --shapes.",
        ) from error
    finally:
        for path in how.scratch.glob("held.*"):
            path.unlink()


def _source(how: ImportRequest, described: _Described) -> Source:
    return Source(
        framework="tensorflow",
        file=how.file.name,
        sha256=sha256_of(how.file),
        trusted=described.trusted,
        interpreter=f"Python {described.versions.get('python', '')}" if how.source_python is not None else None,
        signature=described.signature,
        tags=described.tags,
        versions={**versions("onnx", "onnx-ir", "onnxscript", "onnxruntime", "tf2onnx"), **described.versions},
        notes=(*described.notes, *((_TRUSTED,) if described.trusted else ())),
    )
