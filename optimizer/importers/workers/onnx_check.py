"""Has the native code of onnx and ONNX Runtime look at a model's file, in a process of its own: a file may crash it.

Messages, each with the path of a `library` of custom operators (native code as well) or None:
`accept` {file, name} is answered when both take the file, refused otherwise.
`compare` {before, after, name, inputs: [[name, dtype, sizes ...]], outputs: [[name, tensor of the first file]], untyped} runs both
files on the same made-up inputs, tried from small sizes to large ones; answered with the shapes of the outputs and their largest
difference, or with why the first file could not be run, and with the types of the tensors `untyped` of the second file.
`run` {file, name, tensors}, with an array for each input, is answered with those of the tensors that the file's main graph computes.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

if TYPE_CHECKING:
    from optimizer.child import Channel

_REMEDY = "Export the model again with a current exporter, and look at it with onnx.checker."


def main(channel: Channel) -> None:
    while True:
        event, arrays = channel.receive()
        if event["event"] == "run":
            _run(channel, event, arrays)
        elif event["event"] == "compare":
            _compare(channel, event)
        else:
            _accept(channel, event)


def _accept(channel: Channel, event: dict[str, Any]) -> None:
    try:
        onnx.checker.check_model(event["file"])
    except Exception as error:
        channel.refuse(f"{event['name']} is no valid ONNX model: {_first(error, event['file'])}", _REMEDY)
    if event["library"]:
        try:
            onnxruntime.SessionOptions().register_custom_ops_library(event["library"])
        except Exception as error:
            reason = f"{Path(event['library']).name} is no library of operators for ONNX Runtime: {_first(error, event['library'])}"
            channel.refuse(reason, "Give --custom-ops the shared library that the operators' makers built.")
    try:
        _session(event["file"], library=event["library"])
    except Exception as error:
        channel.refuse(f"ONNX Runtime refuses {event['name']}: {_first(error, event['file'])}", _REMEDY)
    channel.send("accepted")


def _compare(channel: Channel, event: dict[str, Any]) -> None:
    outputs, tensors = zip(*event["outputs"], strict=True)
    before = _session(event["before"], tensors, event["library"])
    why = ""
    for sizes in zip(*(shapes for _, _, *shapes in event["inputs"]), strict=True) if event["inputs"] else [()]:
        try:
            feeds = {name: _made_up(dtype, shape) for (name, dtype, *_), shape in zip(event["inputs"], sizes, strict=True)}
            wanted = before.run(tensors, feeds)
            break
        except Exception as error:
            why = _first(error)
    else:
        channel.send("compared", ran=False, why=why, types=_types(event))
        return
    del before  # one set of weights at a time
    try:
        types = _types(event)
        found = _session(event["after"], library=event["library"]).run(outputs, feeds)
    except Exception as error:
        channel.refuse(f"{event['name']} no longer runs once it is tidied: {_first(error, event['after'])}", _REMEDY)
    channel.send(
        "compared",
        ran=True,
        types=types,
        shapes={name: list(np.shape(array)) for name, array in zip(outputs, found, strict=True)},
        difference=max((_difference(*pair) for pair in zip(wanted, found, strict=True)), default=0.0),
    )


def _types(event: dict[str, Any]) -> dict[str, str]:
    """What ONNX Runtime infers where onnx can't: `tensor(float)` by tensor."""
    if not event["untyped"]:
        return {}
    session = _session(event["after"], event["untyped"], event["library"])
    return {output.name: output.type for output in session.get_outputs() if output.name in set(event["untyped"])}


def _run(channel: Channel, event: dict[str, Any], feeds: dict[str, NDArray[Any]]) -> None:
    try:
        session = _showing(event["file"], tuple(event["tensors"]), event["library"])
        names = [output.name for output in session.get_outputs() if output.name in set(event["tensors"])]
        found = session.run(names, feeds)
    except Exception as error:
        channel.refuse(f"{event['name']} can't be run on this data: {_first(error, event['file'])}", "Check the data's shapes and types.")
    channel.send("ran", dict(zip(names, found, strict=True)))


@lru_cache(maxsize=2)
def _showing(file: str, tensors: tuple[str, ...], library: str | None) -> onnxruntime.InferenceSession:
    """A session of the file that gives `tensors` too; two are kept, since outputs and layers are asked for in turn."""
    return _session(file, tensors, library)


def _session(file: str, tensors: Collection[str] = (), library: str | None = None) -> onnxruntime.InferenceSession:
    """A session that computes the file as written, with those of the `tensors` as outputs that its main graph computes.

    ONNX Runtime refuses two nodes of one name; they get none for it.  Weights beside the file are mapped, not copied.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    if library:
        options.register_custom_ops_library(library)
    options.add_session_config_entry("session.disable_prepacking", "1")
    proto = onnx.load(file, load_external_data=False)
    names = [node.name for node in proto.graph.node if node.name]
    computed = {name for node in proto.graph.node for name in node.output} - {output.name for output in proto.graph.output}
    shown = sorted(computed.intersection(tensors))
    model: str | bytes = file
    if len(names) > len(set(names)) or shown:
        for node in proto.graph.node:
            node.name = ""
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in shown)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(Path(file).parent))
        model = proto.SerializeToString()
    del proto
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _made_up(dtype: str, shape: list[int]) -> NDArray[Any]:
    """Normal numbers for floats; zeros for integers, which may be indices; empty strings."""
    if dtype.startswith("float"):
        return np.random.default_rng(0).standard_normal(shape).astype(dtype)
    return np.full(shape, "", object) if dtype == "object" else np.zeros(shape, dtype)


def _difference(wanted: Any, found: Any) -> float:
    """Largest difference, relative to the largest number wanted; infinite where shapes or what is not finite differ."""
    wanted, found = np.asarray(wanted), np.asarray(found)
    if wanted.shape != found.shape:
        return float("inf")
    if wanted.dtype.kind not in "fc":
        return 0.0 if np.array_equal(wanted, found) else float("inf")
    finite = np.isfinite(wanted)
    if not np.array_equal(finite, np.isfinite(found)):
        return float("inf")
    if not finite.any():
        return 0.0
    return float(np.abs(wanted - found)[finite].max() / max(np.abs(wanted[finite]).max(), 1e-12))


def _first(error: Exception, file: str = "") -> str:
    """What an exception of native code says, without the places in its sources and the folder of the file."""
    text = " ".join(str(error).split())
    if file:
        text = text.replace(file, Path(file).name)
    return text.partition("==> Context:")[0].strip()[:500] or type(error).__name__
