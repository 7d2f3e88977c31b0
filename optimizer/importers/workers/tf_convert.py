"""Turns a frozen TensorFlow graph or a .tflite file into an ONNX file with tf2onnx, in a process of its own.

The request: `file`, `name`, `tflite`, `inputs` and `outputs` {name: tensor}, `out`.  The answer: `done`, after which the ONNX file
lies in `out`, its inputs and outputs under their names, the other tensors called as TensorFlow calls them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import onnx
import tensorflow as tf
from tf2onnx import optimizer, tfonnx, utils
from tf2onnx.handler import tf_op
from tf2onnx.optimizer import back_to_back_optimizer

if TYPE_CHECKING:
    from optimizer.child import Channel

OPSET = 18
INLINE = 1 << 30
FOLDED_HERE = ("Conv", "BatchNormalization")
"""Neighbours that tf2onnx would make one; our own fusion does, and tells."""

REMEDY = "Replace that operator in the model, or export it to ONNX yourself and give that file."


def main(channel: Channel) -> None:
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    request = channel.receive().event
    with channel.theirs(f"Converting {request['name']} to ONNX", REMEDY):
        model = converted(request)
    refuse_unconverted(channel, request["name"], model)
    name_ends(model.graph, request["inputs"], request["outputs"])
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save(model, request["out"], save_as_external_data=size > INLINE, location=Path(request["out"]).name + ".data")


def converted(request: Mapping[str, Any]) -> onnx.ModelProto:
    inputs, outputs = list(request["inputs"].values()), list(dict.fromkeys(request["outputs"].values()))
    if request["tflite"]:
        graph = tfonnx.process_tf_graph(None, opset=OPSET, input_names=inputs, output_names=outputs, tflite_path=request["file"])
    else:
        frozen = tf.compat.v1.GraphDef()
        frozen.ParseFromString(Path(request["file"]).read_bytes())
        with tf.Graph().as_default() as tf_graph:
            tf.import_graph_def(frozen, name="")
            graph = tfonnx.process_tf_graph(tf_graph, opset=OPSET, input_names=inputs, output_names=outputs)
    back_to_back_optimizer._func_map.pop(FOLDED_HERE, None)
    return optimizer.optimize_graph(graph, catch_errors=False).make_model("tensorflow")


@tf_op("Erfc")
class Erfc:
    """erfc(x) = 1 - erf(x), Keras 3's exact GELU; tf2onnx leaves it as it is and says nothing."""

    @classmethod
    def version_9(cls, ctx: Any, node: Any, **_: Any) -> None:
        shapes, dtypes = node.output_shapes, node.output_dtypes
        one = ctx.make_const(utils.make_name("one"), np.array(1, utils.map_onnx_to_numpy_type(dtypes[0])))
        erf = ctx.make_node("Erf", [node.input[0]], name=f"{node.name}/Erf", shapes=shapes, dtypes=dtypes)
        ctx.remove_node(node.name)
        ctx.make_node("Sub", [one.output[0], erf.output[0]], name=node.name, outputs=node.output, shapes=shapes, dtypes=dtypes)


def refuse_unconverted(channel: Channel, name: str, model: onnx.ModelProto) -> None:
    """tf2onnx leaves an operator that it does not know where it was, and reports success."""
    left = [
        node for node in nodes(model.graph) if node.domain not in {"", "ai.onnx.ml"} or not onnx.defs.has(node.op_type, OPSET, node.domain)
    ]
    if left:
        kinds = ", ".join(sorted({node.op_type for node in left}))
        channel.refuse(f"{name} uses what has no counterpart in ONNX: {kinds} (the first is {left[0].name!r}).", REMEDY)


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes(inner)


def name_ends(graph: onnx.GraphProto, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    """Call inputs and outputs as the user does; where one tensor is two of them, another name for it is an Identity."""
    renamed = {tensor: name for name, tensor in inputs.items()}
    for value in graph.input:
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if not size.HasField("dim_value"):
                size.dim_param = f"{renamed[value.name]}_{axis}"
    taken = set(renamed)
    known = {value.name: value for value in graph.output}
    del graph.output[:]
    for name, tensor in outputs.items():
        output = onnx.ValueInfoProto()
        output.CopyFrom(known[tensor])
        output.name = name
        graph.output.append(output)
        if tensor in taken:
            graph.node.append(onnx.helper.make_node("Identity", [tensor], [name], name=f"{name}/Identity"))
        else:
            renamed[tensor] = name
            taken.add(tensor)
    rename(graph, renamed)


def rename(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    """Give tensors other names, in subgraphs, too."""
    for value in (*graph.input, *graph.value_info):
        value.name = renamed.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                rename(inner, renamed)
