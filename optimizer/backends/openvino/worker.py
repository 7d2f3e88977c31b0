"""What is done with OpenVINO itself: read, name, mark, compile, run, look. Some graphs abort the process that reads them.

A build does it in a child, to which this file is handed alone (`optimizer.process.isolated`), so it imports nothing of ours; the
session of an engine that such a child has run compiles it by the same function.

A request names two files, `model` to read and `engine` to write, with the `hint` of its precision; `layers`, the layer by the
name of each tensor, and `quantizers`, those that Q/DQ give to theirs; `exact`, the layers to mark; `inputs`, `outputs` and the usual
`sizes` of inputs by name; `settings` of the plugin. What comes back is one event, `built`: `kernels`, the nodes that the plugin runs,
in their order, and `failure`, why it could not be run, or "". Requests come as long as the child can answer them.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from xml.etree import ElementTree

import numpy as np

# On import OpenVINO writes an id into the user's home and sends an event; it has no setting for that, and does neither without this.
_TELEMETRY = "openvino_telemetry"
_was = sys.modules.get(_TELEMETRY)
if _was is None:
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
import openvino as ov  # noqa: E402

if _was is None:
    del sys.modules[_TELEMETRY]

if TYPE_CHECKING:
    from optimizer.child import Channel

HINT = ["optimize", "inference_precision"]
"""Where in the IR the precision stands in which the plugin is to run what is not marked: "f32" or "bf16"."""

NAMES = ["optimize", "names"]
"""Where in the IR the graph's own names stand, JSON: [inputs, outputs], in the order of the IR's. A tensor there may have others."""

Owner = tuple[str, bool]
"""A layer, and whether the operation is no part of it but a Q/DQ that was put in for it."""

Owners = dict[str, Owner]
"""Owners of operations by their names."""

ANOTHER = "Choose another backend."
_UNAVAILABLE = 5
_NEITHER = frozenset({"Parameter", "Result", "Constant"})
_NOT_PLAIN = re.compile(r"[^\w.#+/-]", re.ASCII)
_NOT_XML = re.compile("[\x00-\x1f\ud800-\udfff\ufffe\uffff]")
_LEAST_RUNS = 4
_MOST_RUNS = 100
_SECONDS = 0.1
_FREE_SIZES = (1, 16, 128, 1024)
"""Sizes that are tried for a free dimension of which nothing is known; the first that the model takes is the one."""


def main(channel: Channel) -> NoReturn:
    while True:
        _answer(channel, channel.receive().event)


def _answer(channel: Channel, request: Mapping[str, Any]) -> None:
    engine = Path(request["engine"])
    try:
        owners = _written(request, engine)
    except RuntimeError as error:
        channel.refuse(f"OpenVINO can't read this graph: {last_line(error)}.", ANOTHER, _UNAVAILABLE)
    try:
        model, _ = compiled(engine, {**request["settings"], "PERF_COUNT": True})
    except RuntimeError as error:
        channel.refuse(f"OpenVINO {release()} can't compile this engine: {last_line(error)}.", ANOTHER, _UNAVAILABLE)
    failure, times = _run(model, request["inputs"], request["sizes"])
    channel.send("built", kernels=_kernels(_nodes(model), owners, times), failure=failure)


def tensor(array: Any) -> Any:
    """An array as a tensor that shares its memory, or that of a copy where OpenVINO could not read or would not take it as it lies."""
    return ov.Tensor(np.require(array, requirements=["C", "W"]), shared_memory=True)


def compiled(file: Path, settings: Mapping[str, Any]) -> tuple[ov.CompiledModel, tuple[list[str], list[str]]]:
    """The IR in `file` compiled for this CPU, with float in the precision that it names, and the names of its inputs and outputs.

    Raises:
        RuntimeError: it can't be read or compiled.
    """
    core = ov.Core()
    model = core.read_model(file)
    inputs, outputs = json.loads(model.get_rt_info(NAMES).astype(str))
    precision = {"INFERENCE_PRECISION_HINT": model.get_rt_info(HINT).astype(str)}
    return core.compile_model(model, "CPU", {**settings, **precision}), (inputs, outputs)


def last_line(error: Exception) -> str:
    """What an error of OpenVINO's says: the lines before tell where in its source it was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("-- ").rstrip(".") if lines else type(error).__name__


def release() -> str:
    """OpenVINO's version, without its build."""
    return str(ov.__version__).partition("-")[0]


def _written(request: Mapping[str, Any], engine: Path) -> Owners:
    """Write the graph as IR, and return the owner by the name of each of its operations."""
    model = ov.Core().read_model(request["model"])
    owners = _named(model, request["layers"], frozenset(request["quantizers"]))
    _named_ports(model.inputs, request["inputs"])
    _named_ports(model.outputs, request["outputs"])
    model.set_rt_info(request["hint"], HINT)
    model.set_rt_info(json.dumps([request["inputs"], request["outputs"]]), NAMES)
    ov.save_model(model, engine, compress_to_fp16=False)
    exact = set(request["exact"])
    if exact:
        _mark(engine, {name for name, (layer, _) in owners.items() if layer in exact})
    return owners


def _named(model: Any, layers: Mapping[str, str], quantizers: Collection[str]) -> Owners:
    """Name every operation after its layer, and tell whose it is: that of the ONNX node whose result it is on the way to.

    What the plugin later merges it tells by these names, apart from which OpenVINO's reader knows most operations by numbers. The
    tensors between them lose their names: nobody asks for them, and some can't stand in XML.
    """
    whose: dict[str, Owner] = {}
    operations = model.get_ordered_ops()
    for operation in reversed(operations):
        names = [name for port in operation.outputs() for name in port.get_names() if name in layers]
        readers = [_id(reader.get_node()) for port in operation.outputs() for reader in port.get_target_inputs()]
        own = next(((layers[name], name in quantizers) for name in names), None)
        owner = own or next((whose[reader] for reader in readers if reader in whose), None)
        if owner is not None:
            whose[_id(operation)] = owner
    owners: Owners = {}
    for number, operation in enumerate(operations):
        kind, owner = operation.get_type_name(), whose.get(_id(operation))
        name = f"{_NOT_PLAIN.sub('_', owner[0] if owner is not None else '')}/{kind}{number}"
        operation.set_friendly_name(name)
        if owner is not None and kind not in _NEITHER:
            owners[name] = owner
        for port in operation.outputs():
            port.set_names(set())
    return owners


def _named_ports(ports: Sequence[Any], names: Sequence[str]) -> None:
    """Call inputs or outputs as the graph does, for other readers of the IR, but for names that XML can't hold."""
    for port, name in zip(ports, names, strict=True):
        if not _NOT_XML.search(name):
            port.add_names({name})


def _id(operation: Any) -> str:
    """OpenVINO's own unique name: Python's wrappers come and go."""
    return str(operation.get_name())


def _mark(file: Path, names: Collection[str]) -> None:
    """Write `precise` onto the operations of these names, right behind their attributes, where the reader looks for it."""
    tree = ElementTree.parse(file)
    for layer in tree.getroot().iter("layer"):
        if layer.get("name") in names:
            info = layer.find("rt_info")
            if info is None:
                info = ElementTree.Element("rt_info")
                layer.insert(1 if layer.find("data") is not None else 0, info)
            ElementTree.SubElement(info, "attribute", {"name": "precise", "version": "0"})
    tree.write(file)


def _run(model: ov.CompiledModel, names: Sequence[str], usual: Mapping[str, Sequence[int]]) -> tuple[str, dict[str, float]]:
    """Run on the first made-up inputs that it takes: why on none, and milliseconds by node."""
    request, failure = model.create_infer_request(), ""
    for free in _FREE_SIZES:
        feeds = {number: _array(port, usual.get(name), free) for number, (port, name) in enumerate(zip(model.inputs, names, strict=True))}
        try:
            request.infer(feeds)
            first = _means(model)
            start, runs = time.perf_counter(), 1
            while runs < _LEAST_RUNS or (runs < _MOST_RUNS and time.perf_counter() - start < _SECONDS):
                request.infer(feeds)
                runs += 1
        except RuntimeError as error:
            failure = last_line(error)
        else:
            # The plugin tells the mean of all runs, of which the first allocates.
            later = {name: (runs * mean - first.get(name, 0)) / (runs - 1) for name, mean in _means(model).items()}
            return "", {name: max(microseconds, 0) / 1000 for name, microseconds in later.items()}
    return failure, {}


def _means(model: ov.CompiledModel) -> dict[str, int]:
    """Microseconds that each node of the plugin's graph took, the mean over all runs."""
    return {node.get_friendly_name(): int(told) for node in _nodes(model) if (told := _told(node, "execTimeMcs")).isdigit()}


def _nodes(model: ov.CompiledModel) -> list[Any]:
    """The nodes of the plugin's own graph, in the order of a run."""
    return sorted(model.get_runtime_model().get_ordered_ops(), key=lambda node: int(_told(node, "execOrder") or 0))


def _array(port: Any, usual: Sequence[int] | None, free: int) -> Any:
    """Noise for floats, zeros for what may be an index; a free first dimension is the batch."""
    sizes = usual or [
        (1 if axis == 0 else free) if size.is_dynamic else size.get_length() for axis, size in enumerate(port.get_partial_shape())
    ]
    kind = np.dtype(port.get_element_type().to_dtype())
    return np.random.default_rng(0).standard_normal(sizes).astype(kind) if kind.kind == "f" else np.zeros(sizes, kind)


def _kernels(nodes: Sequence[Any], owners: Owners, times: Mapping[str, float]) -> list[dict[str, Any]]:
    """What is told of each node; `reads` are the numbers of those whose outputs it takes."""
    numbers = {_id(node): number for number, node in enumerate(nodes)}
    return [
        {
            "layers": _layers(node, owners, quantizer=False),
            "quantizes": _layers(node, owners, quantizer=True),
            "kind": _told(node, "layerType"),
            "primitive": _told(node, "primitiveType"),
            "precision": _told(node, "runtimePrecision"),
            "ms": times.get(node.get_friendly_name()),
            "bytes": _bytes(node),
            "reads": [numbers[_id(port.get_source_output().get_node())] for port in node.inputs()],
        }
        for node in nodes
    ]


def _layers(node: Any, owners: Owners, quantizer: bool) -> list[str]:
    """The layers of which a node of the plugin's computes something, or whose Q/DQ it computes."""
    inside = [owners[name] for name in _told(node, "originalLayersNames").split(",") if name in owners]
    return list(dict.fromkeys(layer for layer, kind in inside if kind is quantizer))


def _told(node: Any, key: str) -> str:
    info = node.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""


def _bytes(node: Any) -> int | None:
    """Bytes of a node's outputs, where their sizes are known before a run."""
    ports = [port for port in node.outputs() if not port.get_partial_shape().is_dynamic]
    if len(ports) < len(node.outputs()):
        return None
    return sum(int(np.prod(port.get_shape(), dtype=np.int64)) * int(port.get_element_type().size) for port in ports)
