"""Part of tf_source.py: frozen graphs (.pb), whose inputs are their placeholders and whose outputs are what nobody reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optimize_frozen
import tensorflow as tf
from google.protobuf.message import DecodeError

if TYPE_CHECKING:
    from optimizer.child import Channel

WHOLE = "Give a frozen GraphDef, or the folder of a SavedModel."
NO_OUTPUT = frozenset({"Const", "NoOp", "Assert", "Placeholder", "PlaceholderWithDefault"})


def opened(channel: Channel, request: Mapping[str, Any]) -> optimize_frozen.Opened:
    """The graph in a file."""
    file, name = Path(request["file"]), request["name"]
    graph = tf.compat.v1.GraphDef()
    try:
        graph.ParseFromString(file.read_bytes())
    except DecodeError as error:
        channel.refuse(f"{name} is no TensorFlow graph, or not a whole one ({error}).", WHOLE)
    if not graph.node:
        channel.refuse(f"{name} holds a graph without a single node.", WHOLE)
    optimize_frozen.refuse_code(channel, name, graph)
    if kept := next((node for node in optimize_frozen.nodes(graph) if node.op in optimize_frozen.VARIABLES), None):
        channel.refuse(f"{name} is not frozen: its variable {kept.name!r} lies elsewhere.", WHOLE)
    inputs = {node.name: f"{node.name}:0" for node in graph.node if node.op == "Placeholder"}
    with channel.theirs(f"Opening {name}", WHOLE):
        whole = optimize_frozen.Session(graph, inputs)
        outputs = {tensor.op.name if len(tensor.op.outputs) == 1 else label(tensor): tensor.name for tensor in heads(whole.graph)}
        if not inputs or not outputs:
            channel.refuse(f"{name} is a graph without {'outputs' if inputs else 'placeholders'}.", WHOLE)
        frozen = optimize_frozen.inlined(graph, [*inputs.values(), *outputs.values()])
    frozen = optimize_frozen.with_shapes(frozen, inputs, request["shapes"])
    alone = optimize_frozen.Session(frozen, inputs)
    return optimize_frozen.Opened(inputs, outputs, alone.specs(), lambda feeds: whole.run(feeds, outputs), alone.tensors, frozen)


def heads(graph: tf.Graph) -> list[Any]:
    """The tensors of numbers that nobody reads, of operators that no other result of is read either."""
    ends = [op for op in graph.get_operations() if op.outputs and op.type not in NO_OUTPUT and not any(v.consumers() for v in op.outputs)]
    return [tensor for op in ends for tensor in op.outputs if optimize_frozen.is_number(tensor.dtype)]


def label(tensor: Any) -> str:
    return tensor.name.replace(":", "_")
