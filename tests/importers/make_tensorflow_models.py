"""Writes the models that test_tensorflow.py imports into the folder it is given; run once, since TensorFlow takes its time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow.core.protobuf import saved_model_pb2

OUT = Path(sys.argv[1])
RNG = np.random.default_rng(0)


def settled(model: Any) -> Any:
    """The model with numbers in its BatchNorms and biases that no test could miss."""
    model.set_weights(
        [RNG.uniform(0.2, 0.8, weight.shape).astype(np.float32) * (0.3 if weight.ndim > 1 else 1) for weight in model.get_weights()]
    )
    return model


def cnn(library: Any, activation: str) -> Any:
    layers = library.layers
    x = image = layers.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", strides=2, name="stem", use_bias=False)(x)
    x = layers.ReLU(name="stem_relu")(layers.BatchNormalization(name="stem_bn")(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="dw")(x)
    x = layers.Activation(activation, name="act")(layers.BatchNormalization(name="dw_bn")(x))
    x = layers.GlobalAveragePooling2D(name="gap")(x)
    return settled(library.Model(image, layers.Dense(5, activation="softmax", name="probs")(x)))


def recurrent(library: Any) -> Any:
    layers = library.layers
    steps = layers.Input((None, 6), name="steps")
    x = layers.Bidirectional(layers.LSTM(7, return_sequences=True), name="both")(steps)
    x = layers.GRU(5, name="last")(layers.LSTM(4, return_sequences=True, name="cell")(x))
    return settled(library.Model(steps, layers.Dense(3, name="scores")(x)))


def several_ends() -> Any:
    layers = keras.layers
    ids, features = layers.Input((5,), dtype="int32", name="ids"), layers.Input((4,), name="features")
    x = layers.Concatenate(name="joined")([layers.Flatten(name="flat")(layers.Embedding(10, 3, name="table")(ids)), features])
    return settled(
        keras.Model({"ids": ids, "features": features}, {"score": layers.Dense(1, name="a")(x), "wide": layers.Dense(2, name="b")(x)})
    )


def lambdas() -> None:
    for library, name in ((keras, "lambda.keras"), (keras, "lambda3.h5"), (tf_keras, "lambda2.h5")):
        given = library.layers.Input((4,))
        library.Model(given, library.layers.Lambda(lambda x: x * 2, name="twice")(given)).save(OUT / name)


@keras.saving.register_keras_serializable("theirs")
class Own(keras.layers.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return x * 2


def own() -> None:
    given = keras.layers.Input((4,))
    keras.Model(given, Own(name="mine")(given)).save(OUT / "own.keras")


class Module(tf.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable(RNG.standard_normal((4, 3)).astype(np.float32), name="weight")
        self.count = tf.Variable(0.0)

    @tf.function(input_signature=[tf.TensorSpec((None, 4), name="x")])
    def plain(self, x: Any) -> Any:
        return {"y": tf.nn.relu(x @ self.weight)}

    @tf.function(input_signature=[tf.TensorSpec((None, 4), name="x")])
    def headed(self, x: Any) -> Any:
        with tf.name_scope("head"):
            return {"z": tf.nn.softmax(x @ self.weight)}

    @tf.function(input_signature=[tf.TensorSpec((None, 4), name="x")])
    def counting(self, x: Any) -> Any:
        return {"n": x + self.count.assign_add(1.0)}

    @tf.function(input_signature=[tf.TensorSpec((4,), name="x")])
    def fixed(self, x: Any) -> Any:
        return {"g": tf.linalg.expm(tf.tensordot(x, x, 0))}


class Python(tf.Module):  # type: ignore[misc]
    @tf.function(input_signature=[tf.TensorSpec((None, 4), name="x")])
    def python(self, x: Any) -> Any:
        return {"p": tf.ensure_shape(tf.numpy_function(lambda array: array, [x], tf.float32), (None, 4))}


def modules() -> None:
    module = Module()
    names = ("plain", "headed", "counting", "fixed")
    tf.saved_model.save(module, OUT / "module", signatures={name: getattr(module, name) for name in names})
    other = Python()
    tf.saved_model.save(other, OUT / "python", signatures=other.python)
    tf.saved_model.save(module, OUT / "unsigned")


def lookup() -> None:
    layers = keras.layers
    word = layers.Input((1,), dtype="string", name="word")
    rows = layers.Embedding(4, 3, name="table")(layers.StringLookup(vocabulary=["a", "b", "c"], name="lookup")(word))
    keras.Model(word, layers.Dense(2, name="scores")(layers.Flatten(name="flat")(rows))).export(OUT / "lookup", verbose=False)


def graph_mode() -> None:
    """A SavedModel as TensorFlow 1 wrote them, with two sets of tags, and its frozen graph."""
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        x = v1.placeholder(tf.float32, (None, 8, 8, 2), name="x")
        weight = v1.get_variable("conv/weight", initializer=RNG.standard_normal((3, 3, 2, 4)).astype(np.float32), use_resource=False)
        y = tf.nn.relu(tf.nn.conv2d(x, weight, 2, "SAME", name="conv/Conv2D"), name="conv/Relu")
        y = tf.reduce_mean(y, [1, 2], name="pooled")
        session.run(v1.global_variables_initializer())
        signature = v1.saved_model.predict_signature_def({"image": x}, {"features": y})
        builder = v1.saved_model.Builder(str(OUT / "graph_mode"))
        builder.add_meta_graph_and_variables(session, ["train"], {"serving_default": signature})
        builder.add_meta_graph(["serve", "gpu"], {"serving_default": signature})
        builder.save()
        frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["pooled"])
        (OUT / "frozen.pb").write_bytes(frozen.SerializeToString())
        (OUT / "unfrozen.pb").write_bytes(graph.as_graph_def().SerializeToString())


class Segmented(tf.Module):  # type: ignore[misc]
    @tf.function(input_signature=[tf.TensorSpec((None, 4))])
    def segment(self, x: Any) -> Any:
        return tf.nn.relu(x @ tf.constant(np.arange(12, dtype=np.float32).reshape(4, 3)), name="dense/Relu")

    @tf.function(input_signature=[tf.TensorSpec((None, 4), name="x")])
    def serve(self, x: Any) -> Any:
        return {"y": self.segment(x) + 1.0}


def tftrt() -> None:
    """What TF-TRT makes of a SavedModel: a segment in an engine, the engine's own functions beside it, called when it is opened."""
    module = Segmented()
    tf.saved_model.save(module, OUT / "tftrt", signatures=module.serve)
    file = OUT / "tftrt" / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    graph = saved.meta_graphs[0].graph_def
    for function in graph.library.function:
        for node in function.node_def:
            if node.op == "PartitionedCall" and "segment" in node.attr["f"].func.name:
                into_engine(function, node)
    maker = graph.library.function.add()
    maker.signature.name = "__inference__initialize_99"
    maker.node_def.add(name="handle", op="CreateTRTResourceHandle").attr["resource_name"].s = b"TRTEngineOp_000_000"
    maker.node_def.add(name="load", op="InitializeTRTResource", input=["handle:resource_handle:0"]).attr["filename"].s = b"engine"
    call = graph.node.add(name="StatefulPartitionedCall_9", op="StatefulPartitionedCall")
    call.attr["f"].func.name = maker.signature.name
    for key in ("Tin", "Tout"):
        call.attr[key].list.SetInParent()
    next(node for node in graph.node if node.op == "NoOp").input.append("^StatefulPartitionedCall_9")
    file.write_bytes(saved.SerializeToString())
    for function in graph.library.function:
        for node in function.node_def:
            node.attr["segment_func"].func.name = "" if node.op == "TRTEngineOp" else node.attr["segment_func"].func.name
    (OUT / "engines_only").mkdir()
    (OUT / "engines_only" / "saved_model.pb").write_bytes(saved.SerializeToString())


def into_engine(function: Any, node: Any) -> None:
    segment, inputs, outputs = node.attr["f"].func.name, node.attr["Tin"].list.type[:], node.attr["Tout"].list.type[:]
    node.op = "TRTEngineOp"
    node.attr.clear()
    node.attr["segment_func"].func.name = segment
    node.attr["serialized_segment"].s = b"an engine for another GPU"
    node.attr["InT"].list.type.extend(inputs)
    node.attr["OutT"].list.type.extend(outputs)
    for other in function.node_def:
        other.input[:] = [value.replace(f"{node.name}:output:", f"{node.name}:out_tensor:") for value in other.input]


def tflite(model: Any) -> None:
    (OUT / "float.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([RNG.standard_normal((1, 16, 16, 3)).astype(np.float32)] for _ in range(20))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    (OUT / "int8.tflite").write_bytes(converter.convert())


keras.utils.set_random_seed(3)
cnn(keras, "gelu").save(OUT / "cnn3.keras")
old = cnn(tf_keras, "relu")
old.save(OUT / "cnn2.h5")
recurrent(keras).save(OUT / "recurrent3.h5")
recurrent(tf_keras).export(OUT / "recurrent2")
several_ends().save(OUT / "ends.keras")
cnn(keras, "relu").save_weights(OUT / "only.weights.h5")
lambdas()
own()
modules()
lookup()
graph_mode()
tftrt()
tflite(old)
