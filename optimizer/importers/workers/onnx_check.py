"""Has the native code of onnx and ONNX Runtime look at a model's file, in a process of its own: a file may crash it.

Messages: `accept` {file, name} is answered when both take the file, refused otherwise; `compare` {before, after, name, inputs:
[[name, dtype, sizes ...]]} runs both files on the same made-up inputs, tried from small sizes to large ones, and is answered with
the shapes of the outputs and their largest difference, or with why the first file could not be run; `run` {file, name, tensors},
with an array for each input, is answered with those of the tensors that the main graph of the file computes.
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
    try:
        _session(event["file"])
    except Exception as error:
        channel.refuse(f"ONNX Runtime refuses {event['name']}: {_first(error, event['file'])}", _REMEDY)
    channel.send("accepted")


def _compare(channel: Channel, event: dict[str, Any]) -> None:
    before = _session(event["before"])
    outputs = [output.name for output in before.get_outputs()]
    why = ""
    for sizes in zip(*(shapes for _, _, *shapes in event["inputs"]), strict=True) if event["inputs"] else [()]:
        try:
            feeds = {name: _made_up(dtype, shape) for (name, dtype, *_), shape in zip(event["inputs"], sizes, strict=True)}
            wanted = before.run(outputs, feeds)
            break
        except Exception as error:
            why = _first(error)
    else:
        channel.send("compared", ran=False, why=why)
        return
    del before  # one set of weights at a time
    try:
        found = _session(event["after"]).run(outputs, feeds)
    except Exception as error:
        channel.refuse(f"{event['name']} no longer runs once it is tidied: {_first(error, event['after'])}", _REMEDY)
    channel.send(
        "compared",
        ran=True,
        shapes={name: list(np.shape(array)) for name, array in zip(outputs, found, strict=True)},
        difference=max((_difference(*pair) for pair in zip(wanted, found, strict=True)), default=0.0),
    )


def _run(channel: Channel, event: dict[str, Any], feeds: dict[str, NDArray[Any]]) -> None:
    try:
        session = _showing(event["file"], tuple(event["tensors"]))
        names = [output.name for output in session.get_outputs() if output.name in set(event["tensors"])]
        found = session.run(names, feeds)
    except Exception as error:
        channel.refuse(f"{event['name']} can't be run on this data: {_first(error, event['file'])}", "Check the data's shapes and types.")
    channel.send("ran", dict(zip(names, found, strict=True)))


@lru_cache(maxsize=2)
def _showing(file: str, tensors: tuple[str, ...]) -> onnxruntime.InferenceSession:
    """A session of the file that gives `tensors` too; two are kept, since outputs and layers are asked for in turn."""
    return _session(file, tensors)


def _session(file: str, tensors: Collection[str] = ()) -> onnxruntime.InferenceSession:
    """A session that computes the file as written, with those of the `tensors` as outputs that its main graph computes.

    ONNX Runtime refuses two nodes of one name; they get none for it.  Weights beside the file are mapped, not copied.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
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
