"""ONNX files: checked before anything trusts them, then tidied, raised to opset 20, and compared with what they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from optimizer import graph as graphs
from optimizer.engine import Arrays, SourceRun
from optimizer.errors import InputError
from optimizer.importers import ImportRequest
from optimizer.importers._external import check_external_data
from optimizer.importers._maps import maps_of, plain_outputs
from optimizer.importers._operators import check_operators, notes_of
from optimizer.importers._sparse import make_dense
from optimizer.importers._tidy import (
    OPSET,
    Size,
    correct_outputs,
    fix_shapes,
    infer,
    learn_types,
    name_dimensions,
    name_nodes,
    raise_opset,
    sizes,
    tidy,
)
from optimizer.model import CUSTOM_OPS, Model, Source
from optimizer.plan import Shape
from optimizer.process import Child, isolated
from optimizer.progress import Track, silent
from optimizer.provenance import sha256_of_file, versions
from optimizer.reference import widened

_WORKER = Path(__file__).parent / "workers" / "onnx_check.py"
_TRIED = (1, 16, 64, 224, 512)
"""Sizes for dimensions that nobody fixed, tried in turn until the model runs."""

TIDIED = "imported.onnx"
"""Name of the copy of the tidied graph in the scratch folder."""

_PATIENCE = 900.0
_CHANGED = 1e-3
_CHANGED_IN_HALF = 0.05
"""Relative difference that rounding can make: many rounding steps of float32, a few dozen of half precision."""

_REMEDY = "Export the model again with a current exporter."


def load(how: ImportRequest, track: Track = silent) -> Model:
    """The model in an ONNX file.

    Raises:
        InputError: the file is no model, not whole, invalid, refused by ONNX Runtime, or reads data that are not its own.
    """
    file = how.file
    if how.factory is not None or how.factory_args:
        raise InputError(f"{file.name} is a whole model: a factory has nothing to make for it.", "Leave --factory away.")
    graph, notes = load_graph(file, how.shapes, how.scratch, track, custom_ops=how.custom_ops)
    source = Source(
        framework="onnx",
        file=file.name,
        sha256=sha256_of_file(file),
        code_ran=CUSTOM_OPS in graph.metadata_props,
        versions=versions("onnx", "onnx-ir", "onnxscript", "onnxruntime"),
        notes=notes,
    )
    return Model(graph, source)


class _AsItCame:
    """The file as it came, run node by node in a process of its own: the SourceRun of an ONNX model.

    A layer can be shown where a tensor called like its first output existed before the graph was tidied.
    """

    def __init__(self, file: Path, model: Model, scratch: Path) -> None:
        self._told = {"event": "run", "file": str(file), "name": file.name, "library": model.graph.metadata_props.get(CUSTOM_OPS)}
        mapped = maps_of(_read(file))
        self._outputs = {spec.name: mapped.get(spec.name, spec.name) for spec in model.outputs}
        self._tensors = {layer.name: layer.outputs[0] for layer in model.layers if layer.outputs}
        self._child = Child(isolated(_WORKER), folder=scratch, what=f"Running {file.name}")

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        found = self._computed(feeds, list(self._outputs.values()))
        return {name: found[tensor] for name, tensor in self._outputs.items()}

    def layers(self, feeds: Arrays, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        wanted = {name: self._tensors[name] for name in names if name in self._tensors}
        found = self._computed(feeds, list(wanted.values()))
        return {name: found[tensor] for name, tensor in wanted.items() if tensor in found}

    def close(self) -> None:
        self._child.close()

    def _computed(self, feeds: Arrays, tensors: Sequence[str]) -> dict[str, NDArray[Any]]:
        self._child.send({**self._told, "tensors": list(tensors)}, feeds)
        return self._child.receive(_PATIENCE).arrays


def running(how: ImportRequest, model: Model) -> SourceRun:
    """The file as it came, on ONNX Runtime without its optimizations; to be closed by the caller."""
    return _AsItCame(how.file, model, how.scratch)


def load_graph(
    file: Path, shapes: Mapping[str, Shape], scratch: Path, track: Track = silent, custom_ops: Path | None = None
) -> tuple[ir.Model, tuple[str, ...]]:
    """The tidied graph of an ONNX file and notes for its user; see `_tidy` for what holds of it.

    Weights outside the file stay there, memory-mapped.  `scratch` gets a copy of the tidied graph for the comparison.  Operators
    that ONNX Runtime lacks are taken where the library `custom_ops` brings them; the graph's metadata then names it.
    """
    track("import", 0, 4)
    proto = _read(file)
    check_external_data(proto, file.parent)
    mapped = maps_of(proto)
    library = check_operators(proto, file.name, custom_ops)
    with Child(isolated(_WORKER), folder=scratch, what=f"Checking {file.name}") as child:
        child.send({"event": "accept", "file": str(file), "name": file.name, "library": _text(library)})
        child.receive(_PATIENCE)
        track("import", 1, 4)
        with _refusing(file.name):
            notes = [*make_dense(proto, file.parent), *plain_outputs(proto), *notes_of(proto, custom_ops)]
            model = ir.from_proto(proto)
            del proto
            ir.external_data.set_base_dir(model.graph, file.parent)
            declared = {value.name or "": sizes(value) for value in model.graph.outputs}
            notes += [*tidy(model), *raise_opset(model)]
            name_nodes(model)
            name_dimensions(model)
            fix_shapes(model, shapes)
            infer(model)
            wide = widened(model)
            if library is not None:
                wide.metadata_props[CUSTOM_OPS] = str(library)
        track("import", 2, 4)
        result = _compare(child, file, _saved(wide, scratch), wide, mapped, shapes, library)
    track("import", 3, 4)
    if number := graphs.quantized(wide):
        notes.append(
            f"It is quantized already ({number} operators), and stays so: to have INT8 planned and gated here, give the float model."
        )
    if wide is not model:
        notes.append("Its half-precision tensors count as FP32, which holds all their numbers, unless a plan makes them FP16 or BF16.")
    if not result["ran"]:
        notes.append(f"It did not run on made-up inputs, so that the tidied graph could not be compared with it: {result['why']}")
    elif not result["difference"] <= (_CHANGED if wide is model else _CHANGED_IN_HALF):
        raise InputError(
            f"{file.name} gives other answers once it is tidied (relative difference {result['difference']:.2g}).",
            f"Export it with opset {OPSET}, so that nothing has to be converted.",
        )
    learn_types(wide, result["types"])
    notes.extend(correct_outputs(wide, declared, result.get("shapes", {})))
    track("import", 4, 4)
    return wide, tuple(notes)


def _read(file: Path) -> onnx.ModelProto:
    if file.stat().st_size == 0:
        raise InputError(f"{file.name} is empty.", "Get the whole file.")
    try:
        proto = onnx.load(file, format="protobuf", load_external_data=False)
    except (DecodeError, OSError) as error:
        raise InputError(f"{file.name} is no ONNX model, or not a whole one ({str(error)[:100]}).", "Get the whole file.") from None
    if not proto.graph.node:
        raise InputError(f"{file.name} holds a graph without a single node.", "Export the model again, or get the whole file.")
    return proto


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """The file is a stranger's: what its oddities make other packages raise is an error in the input."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        said = " ".join(str(cause).split())[:300]
        raise InputError(f"{name} can't be tidied: {type(cause).__name__}: {said}.", _REMEDY) from error


def _saved(model: ir.Model, scratch: Path) -> Path:
    file = scratch / TIDIED
    graphs.save(model, file, beside="imported.data" if graphs.weights_bytes(model) > graphs.LARGE else None)
    return file


def _compare(
    child: Child,
    before: Path,
    after: Path,
    model: ir.Model,
    mapped: Mapping[str, str],
    shapes: Mapping[str, Shape],
    library: Path | None,
) -> Mapping[str, Any]:
    """Run the file and the tidied graph on the same made-up inputs; what `workers/onnx_check.py` says of it.

    `mapped` are the tensors of `before` that outputs of the graph stand for, where they are not called alike.
    """
    batch = {value.shape[0].value for value in model.graph.inputs if value.shape and isinstance(value.shape[0], ir.SymbolicDim)}
    inputs = [[value.name, _dtype(value), *([_concrete(value, shapes, batch, size) for size in _TRIED])] for value in model.graph.inputs]
    names = [value.name or "" for value in model.graph.outputs]
    outputs = [[name, mapped.get(name, name)] for name in names]
    files = {"before": str(before), "after": str(after), "name": before.name, "library": _text(library)}
    untyped = [value.name for node in model.graph for value in node.outputs if value.name and value.dtype is None]
    child.send({"event": "compare", **files, "inputs": inputs, "outputs": outputs, "untyped": untyped})
    return child.receive(_PATIENCE).event


def _concrete(value: ir.Value, shapes: Mapping[str, Shape], batch: set[str | None], size: int) -> list[int]:
    """The shape to try an input in: the usual one where it was given, else a batch of 1 and `size` for what is free."""
    if given := shapes.get(value.name or ""):
        return list(given.usual)
    free: Mapping[Size, int] = dict.fromkeys(batch, 1)
    return [known if isinstance(known, int) else free.get(known, size) for known in sizes(value) or ()]


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _dtype(value: ir.Value) -> str:
    return value.dtype.numpy().name if value.dtype is not None else "float32"
