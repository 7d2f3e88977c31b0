"""Small seeded ONNX models of the kinds that people bring, written operator by operator as an exporter of no framework would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
Size = int | str


class Writer:
    """Collects nodes; each call returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def weight(self, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
        return self.constant((self._random.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32))

    def constant(self, array: Any) -> str:
        name = f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Any) -> str:
        name = name or f"{op.lower()}{len(self.nodes)}"
        results = [f"{name}_out{number}" if number else f"{name}_out" for number in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), results, name, **attributes))
        return results[0]

    def model(
        self, inputs: dict[str, tuple[int, tuple[Size, ...]]], outputs: dict[str, tuple[str, int, tuple[Size, ...]]]
    ) -> onnx.ModelProto:
        for name, (value, _, _) in outputs.items():
            self.nodes.append(helper.make_node("Identity", [value], [name], f"{name}_identity"))
        graph = helper.make_graph(
            self.nodes,
            "model",
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(name, kind, shape) for name, (_, kind, shape) in outputs.items()],
            self.initializers,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def depthwise_cnn() -> onnx.ModelProto:
    w = Writer()
    x = w.node("Relu", w.node("Conv", "image", w.weight(16, 3, 3, 3), w.weight(16), name="stem", strides=[2, 2], pads=[1, 1, 1, 1]))
    x = w.node("Relu", w.node("Conv", x, w.weight(16, 1, 3, 3), name="depthwise", group=16, pads=[1, 1, 1, 1]))
    x = w.node("HardSwish", w.node("Conv", x, w.weight(32, 16, 1, 1), name="pointwise"))
    x = w.node("Gemm", w.node("Flatten", w.node("GlobalAveragePool", x)), w.weight(10, 32), name="head", transB=1)
    return w.model({"image": (FLOAT, ("N", 3, 32, 32))}, {"logits": (x, FLOAT, ("N", 10))})


def _recurrent(op: str, gates: int, directions: int) -> onnx.ModelProto:
    w = Writer()
    x = w.node("Transpose", "features", perm=[1, 0, 2])
    weights = [w.weight(directions, gates * 16, size) for size in (8, 16)]
    how = {"direction": "bidirectional"} if directions == 2 else {}
    y = w.node(op, x, *weights, w.weight(directions, 2 * gates * 16), name=op.lower(), hidden_size=16, **how)
    y = w.node("Reshape", w.node("Transpose", y, perm=[2, 0, 1, 3]), w.constant(np.array([0, 0, -1], np.int64)))
    y = w.node("MatMul", y, w.weight(16 * directions, 5), name="head")
    return w.model({"features": (FLOAT, ("N", "T", 8))}, {"scores": (y, FLOAT, ("N", "T", 5))})


def lstm() -> onnx.ModelProto:
    return _recurrent("LSTM", 4, 1)


def gru() -> onnx.ModelProto:
    return _recurrent("GRU", 3, 1)


def bidirectional_lstm() -> onnx.ModelProto:
    return _recurrent("LSTM", 4, 2)


def _attention(w: Writer, x: str, memory: str, name: str) -> str:
    heads = w.constant(np.array([0, 0, 4, 8], np.int64))

    def projected(value: str, part: str) -> str:
        return w.node("Reshape", w.node("MatMul", value, w.weight(32, 32), name=f"{name}.{part}"), heads)

    query = w.node("Transpose", projected(x, "query"), perm=[0, 2, 1, 3])
    key = w.node("Transpose", projected(memory, "key"), perm=[0, 2, 3, 1])
    value = w.node("Transpose", projected(memory, "value"), perm=[0, 2, 1, 3])
    scores = w.node("Softmax", w.node("Mul", w.node("MatMul", query, key), w.constant(np.float32(8**-0.5))), axis=-1)
    joined = w.node("Transpose", w.node("MatMul", scores, value), perm=[0, 2, 1, 3])
    joined = w.node("Reshape", joined, w.constant(np.array([0, 0, 32], np.int64)))
    x = w.node("Add", x, w.node("MatMul", joined, w.weight(32, 32), name=f"{name}.out"))
    x = w.node("LayerNormalization", x, w.constant(np.ones(32, np.float32)), w.constant(np.zeros(32, np.float32)), name=f"{name}.norm")
    return w.node(
        "Add",
        x,
        w.node(
            "MatMul", w.node("Relu", w.node("MatMul", x, w.weight(32, 64), name=f"{name}.wide")), w.weight(64, 32), name=f"{name}.narrow"
        ),
    )


def transformer_encoder() -> onnx.ModelProto:
    w = Writer()
    x = w.node("Gather", w.weight(50, 32), "tokens", name="embedding")
    x = w.node("ReduceMean", _attention(w, x, x, "block"), axes=[1], keepdims=0)
    return w.model({"tokens": (INT64, ("N", "T"))}, {"logits": (w.node("MatMul", x, w.weight(32, 5), name="head"), FLOAT, ("N", 5))})


def encoder_decoder() -> onnx.ModelProto:
    w = Writer()
    memory = w.node("Gather", w.weight(50, 32), "source_ids", name="source")
    memory = _attention(w, memory, memory, "encoder")
    x = w.node("Gather", w.weight(40, 32), "target_ids", name="target")
    x = _attention(w, _attention(w, x, x, "self"), memory, "cross")
    inputs: dict[str, tuple[int, tuple[Size, ...]]] = {"source_ids": (INT64, ("N", "S")), "target_ids": (INT64, ("N", "T"))}
    return w.model(inputs, {"logits": (w.node("MatMul", x, w.weight(32, 40), name="head"), FLOAT, ("N", "T", 40))})


def recommender() -> onnx.ModelProto:
    w = Writer()
    parts = [w.node("Gather", w.weight(rows, 16), ids) for rows, ids in ((100, "user_ids"), (200, "item_ids"))]
    parts.append(w.node("Gemm", "dense", w.weight(13, 16), w.weight(16), name="bottom"))
    x = w.node("Relu", w.node("Gemm", w.node("Concat", *parts, axis=-1), w.weight(48, 32), w.weight(32), name="hidden"))
    x = w.node("Sigmoid", w.node("Gemm", x, w.weight(32, 1), name="score"))
    inputs: dict[str, tuple[int, tuple[Size, ...]]] = {
        "user_ids": (INT64, ("N",)),
        "item_ids": (INT64, ("N",)),
        "dense": (FLOAT, ("N", 13)),
    }
    return w.model(inputs, {"probability": (x, FLOAT, ("N", 1))})


def unet() -> onnx.ModelProto:
    w = Writer()

    def conv(x: str, planes: int, channels: int, name: str) -> str:
        return w.node("Relu", w.node("Conv", x, w.weight(planes, channels, 3, 3), w.weight(planes), name=name, pads=[1, 1, 1, 1]))

    skip = conv("image", 8, 3, "down1")
    x = conv(w.node("MaxPool", skip, kernel_shape=[2, 2], strides=[2, 2]), 16, 8, "down2")
    x = w.node("Resize", x, "", w.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest", name="up")
    x = conv(w.node("Concat", skip, x, axis=1), 8, 24, "refine")
    return w.model(
        {"image": (FLOAT, ("N", 3, 32, 32))}, {"mask": (w.node("Conv", x, w.weight(2, 8, 1, 1), name="out"), FLOAT, ("N", 2, 32, 32))}
    )


def detector() -> onnx.ModelProto:
    w = Writer()
    x = w.node("Relu", w.node("Conv", "image", w.weight(16, 3, 3, 3), name="backbone", strides=[4, 4], pads=[1, 1, 1, 1]))
    raw = w.node("Sigmoid", w.node("Conv", x, w.weight(4, 16, 1, 1), name="boxes"))
    boxes = w.node("Transpose", w.node("Reshape", raw, w.constant(np.array([1, 4, 64], np.int64))), perm=[0, 2, 1])
    scores = w.node("Reshape", w.node("Conv", x, w.weight(1, 16, 1, 1), name="scores"), w.constant(np.array([1, 1, 64], np.int64)))
    limits = [w.constant(np.array([10], np.int64)), w.constant(np.array([0.5], np.float32))]
    kept = w.node("NonMaxSuppression", boxes, scores, *limits, name="suppression", center_point_box=1)
    which = w.node("Gather", kept, w.constant(np.array(2, np.int64)), axis=1)
    best = w.node("Gather", w.node("Squeeze", boxes, w.constant(np.array([0], np.int64))), which)
    return w.model({"image": (FLOAT, (1, 3, 32, 32))}, {"kept": (best, FLOAT, ("kept", 4))})


def write(folder: Path) -> None:
    for make in (depthwise_cnn, lstm, gru, bidirectional_lstm, transformer_encoder, encoder_decoder, recommender, unet, detector):
        onnx.save(make(), folder / f"{make.__name__}.onnx")
