"""Turns a frozen TensorFlow graph or a .tflite file into an ONNX file with tf2onnx, in a process of its own.

The request: `file`, `name`, `tflite`, `inputs` and `outputs` {name: tensor}, `out`.  The answer: `done`, after which the ONNX file
lies in `out`, its inputs and outputs under their names, the other tensors called as TensorFlow calls them.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import onnx
import tensorflow as tf
from tf2onnx import optimizer, tfonnx, utils
from tf2onnx.handler import tf_op, tfl_op
from tf2onnx.optimizer import back_to_back_optimizer
from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

if TYPE_CHECKING:
    from optimizer.child import Channel

OPSET = 18
INLINE = 1 << 30
FOLDED_HERE = ("Conv", "BatchNormalization")
"""Neighbours that tf2onnx would make one; our own fusion does, and tells."""

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})

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
    steps = {**optimizer._get_optimizers(), "optimize_transpose": Transposes}
    Transposes.renamed.clear()
    model = optimizer.optimize_graph(graph, catch_errors=False, optimizers=steps).make_model("tensorflow")
    rename(model.graph, Transposes.renamed)
    return model


class Transposes(TransposeOptimizer):
    """tf2onnx's way to move transposes, with names kept, and with a scale left to our own fusion, which tells of it."""

    renamed: ClassVar[dict[str, str]] = {}
    """TensorFlow's name for the tensor that a convolution gives with its bias, by the name it was given here."""

    def _add_handler(self, trans: Any, node: Any) -> Any:
        before, output = trans.inputs[0], node.output[0]
        done = super()._add_handler(trans, node)
        after = self._g.get_node_by_output(trans.input[0])
        if done and after is not None and after is not before and after.type == before.type and after.type in CONVOLUTIONS:
            self.renamed[after.output[0]] = output
        return done

    def _mul_handler(self, trans: Any, node: Any) -> Any:
        place = next((place for place, value in enumerate(node.inputs) if value.is_const()), None)
        scale = node.inputs[place].get_tensor_value(as_list=False) if place is not None else np.zeros(())
        if trans.inputs[0].type not in CONVOLUTIONS or scale.ndim == 0 or scale.shape[-1] != scale.size:
            return super()._mul_handler(trans, node)  # not one number per channel
        shape = [1] * len(trans.get_attr_value("perm"))
        shape[1] = scale.size
        along = self._g.make_const(utils.make_name("scale"), scale.reshape(shape))
        self._g.replace_input(node, node.input[place], along.output[0], place)
        return self._switch_transpose_and_node(node, trans)


@tf_op("Erfc")
class Erfc:
    """erfc(x) = 1 - erf(x), and erfc(-x) = 1 + erf(x), as in Keras's exact GELU; tf2onnx leaves it as it is and says nothing."""

    @classmethod
    def version_9(cls, ctx: Any, node: Any, **_: Any) -> None:
        shapes, dtypes = node.output_shapes, node.output_dtypes
        positive = cls._negated(ctx, node)
        erf = ctx.make_node("Erf", [positive or node.input[0]], name=f"{node.name}/Erf", shapes=shapes, dtypes=dtypes)
        one = ctx.make_const(utils.make_name("one"), np.array(1, utils.map_onnx_to_numpy_type(dtypes[0])))
        operator, inputs = ("Add", [erf.output[0], one.output[0]]) if positive else ("Sub", [one.output[0], erf.output[0]])
        ctx.remove_node(node.name)
        ctx.make_node(operator, inputs, name=node.name, outputs=node.output, shapes=shapes, dtypes=dtypes)

    @staticmethod
    def _negated(ctx: Any, node: Any) -> str | None:
        """The tensor that is minus the operator's input, where that is made as (-x) c."""
        product = node.inputs[0]
        place = next((place for place, value in enumerate(product.inputs) if value.type == "Neg"), None) if product.type == "Mul" else None
        if place is None:
            return None
        factors = [product.inputs[place].input[0], product.input[1 - place]]
        made = ctx.make_node("Mul", factors, name=f"{node.name}/Mul", shapes=product.output_shapes, dtypes=product.output_dtypes)
        return str(made.output[0])


@tfl_op(["TFL_GELU"])
class LiteGelu:
    """TensorFlow Lite's GELU, by erf or by tanh, in the operators that our own fusion knows it by; tf2onnx has none for it."""

    @classmethod
    def version_9(cls, ctx: Any, node: Any, **_: Any) -> None:
        def made(operator: str, *inputs: str) -> str:
            return str(ctx.make_node(operator, list(inputs), shapes=node.output_shapes, dtypes=node.output_dtypes).output[0])

        def number(value: float) -> str:
            return str(ctx.make_const(utils.make_name("gelu"), np.array(value, np.float32)).output[0])

        x, shapes, dtypes = node.input[0], node.output_shapes, node.output_dtypes
        if node.get_attr_value("approximate"):
            cubic = made("Mul", made("Mul", made("Mul", x, x), x), number(0.044715))
            curve = made("Tanh", made("Mul", made("Add", x, cubic), number(math.sqrt(2 / math.pi))))
        else:
            curve = made("Erf", made("Mul", x, number(math.sqrt(0.5))))
        doubled = made("Mul", x, made("Add", curve, number(1)))
        ctx.remove_node(node.name)
        ctx.make_node("Mul", [doubled, number(0.5)], name=node.name, outputs=node.output, shapes=shapes, dtypes=dtypes)


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
        name_dimensions(value, renamed[value.name])
    taken = set(renamed)
    known = {value.name: value for value in graph.output}
    del graph.output[:]
    for name, tensor in outputs.items():
        output = onnx.ValueInfoProto()
        output.CopyFrom(known[tensor])
        output.name = name
        name_dimensions(output, name)
        graph.output.append(output)
        if tensor in taken:
            graph.node.append(onnx.helper.make_node("Identity", [tensor], [name], name=f"{name}/Identity"))
        else:
            renamed[tensor] = name
            taken.add(tensor)
    rename(graph, renamed)


def name_dimensions(value: onnx.ValueInfoProto, name: str) -> None:
    """Free dimensions by name and axis; tf2onnx counts them."""
    for axis, size in enumerate(value.type.tensor_type.shape.dim):
        if not size.HasField("dim_value"):
            size.dim_param = f"{name}_{axis}"


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
