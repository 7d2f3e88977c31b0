"""A TensorFlow model in its own TensorFlow, in a process of its own that finds none of our packages: opened, frozen, run.

The request: `file`, `name`, `folder` (the user's), `scratch`, `shapes` {input: [smallest, usual, largest]}, `trust`, `signature`,
`tags`, `out`.  The answer: `model` {form, inputs, outputs, layers, notes, signature, tags, versions}; the frozen graph lies in
`out` then.  Afterwards it answers, until the line is closed, each `run` with `answer` {ran, why} and the outputs by name, and each
`tensors` {names} with those tensors of the frozen graph that there are.  It needs TensorFlow 2.10 or newer and, for Keras's files,
the Keras they were written with.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its own chatter would hide what went wrong
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # the parent's numbers are the CPU's

import optimize_frozen
import tensorflow as tf

if TYPE_CHECKING:
    from optimizer.child import Channel

LARGEST = 1 << 31


def main(channel: Channel) -> None:
    tf.get_logger().setLevel(logging.ERROR)
    request = channel.receive().event
    model = opened(channel, request)
    channel.send(
        "model",
        inputs={name: [tensor, *model.specs[name]] for name, tensor in model.inputs.items()},
        outputs=dict(model.outputs),
        layers=list(model.layers),
        notes=list(model.notes),
        signature=model.signature,
        tags=list(model.tags),
        trusted=model.trusted,
        versions={"tensorflow": tf.__version__, "python": platform.python_version()},
    )
    while True:
        message = channel.receive()
        if message.event["event"] == "run":
            answer(channel, model, message.arrays)
        else:
            channel.send("tensors", numbers(model.tensors(message.arrays, message.event["names"])))


def opened(channel: Channel, request: Mapping[str, Any]) -> optimize_frozen.Opened:
    """The model of any of the formats; a graph is written, a .tflite read as it is."""
    file = Path(request["file"])
    if file.name.lower().endswith(".tflite"):
        import optimize_tflite as reader
    elif file.is_dir():
        import optimize_saved_model as reader
    elif file.name.lower().endswith(".pb"):
        import optimize_graph_def as reader
    else:
        import optimize_keras as reader
    model = reader.opened(channel, request)
    if model.graph is not None:
        write(channel, model, request)
    return model


def write(channel: Channel, model: optimize_frozen.Opened, request: Mapping[str, Any]) -> None:
    """Check what is in the graph, then write it."""
    name = request["name"]
    optimize_frozen.refuse_code(channel, name, model.graph)
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(model.graph, name="")
    optimize_frozen.refuse_text(channel, name, graph)
    if left := next((node for node in optimize_frozen.nodes(model.graph) if node.op in optimize_frozen.VARIABLES), None):
        channel.refuse(f"{name} changes its variable {left.name!r} while it runs.", "Make that state an input and an output of it.")
    if model.graph.ByteSize() >= LARGEST:
        channel.refuse(f"{name} is larger than 2 GB when frozen, which TensorFlow can't write.", "Export it to ONNX, and give that file.")
    Path(request["out"]).write_bytes(model.graph.SerializeToString())


def answer(channel: Channel, model: optimize_frozen.Opened, feeds: Mapping[str, Any]) -> None:
    """Run the model; at a size that it does not take it says why."""
    try:
        outputs = model.run(feeds)
    except Exception as error:
        channel.send("answer", ran=False, why=" ".join(str(error).split())[:300])
    else:
        channel.send("answer", numbers(outputs), ran=True, why="")


def numbers(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays in types that numpy itself has."""
    return {name: array.astype("float32") if array.dtype.name in {"bfloat16", "float8_e4m3fn"} else array for name, array in arrays.items()}
