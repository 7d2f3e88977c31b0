"""Models of six families with seeded weights, written node by node, for benchmarks/ladder.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.graph import infer_shapes

TRACED = 12
"""Time steps of a usual sequence, with which a fault was traced; the longest that is tried has more."""

Draw = np.random.Generator
Array = NDArray[Any]


@dataclass
class Net:
    """A graph that is being written: `layer` adds a node whose result is called like itself."""

    draw: Draw
    nodes: list[ir.Node] = field(default_factory=list)
    weights: dict[str, ir.Value] = field(default_factory=dict)

    def layer(self, operator: str, name: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> ir.Value:
        node = ir.node(operator, inputs, attributes, num_outputs=outputs, name=name)
        for index, value in enumerate(node.outputs):
            value.name = f"{name}.out" if index == 0 else f"{name}.out{index}"
        self.nodes.append(node)
        return node.outputs[0]

    def weight(self, name: str, *shape: int, size: float | None = None, around: float = 0.0) -> ir.Value:
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
        numbers = around + self.draw.standard_normal(shape) * (size if size is not None else np.sqrt(2 / fan))
        return self.constant(name, numbers.astype(np.float32))

    def constant(self, name: str, array: Array) -> ir.Value:
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name), type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))
        value.shape = ir.Shape(array.shape)
        self.weights[name] = value
        return value

    def conv(self, name: str, x: ir.Value, i: int, o: int, kernel: int = 3, stride: int = 1, group: int = 1, bias: bool = True) -> ir.Value:
        edge = kernel // 2
        parameters = [self.weight(f"{name}.weight", o, i // group, kernel, kernel)]
        parameters += [self.weight(f"{name}.bias", o, size=0.3)] if bias else []
        return self.layer("Conv", name, x, *parameters, pads=[edge] * 4, strides=[stride] * 2, kernel_shape=[kernel] * 2, group=group)

    def norm(self, name: str, x: ir.Value, channels: int) -> ir.Value:
        parts = [self.weight(f"{name}.weight", channels, size=0.2, around=1), self.weight(f"{name}.bias", channels, size=0.3)]
        mean = self.weight(f"{name}.mean", channels, size=0.5)
        variance = self.constant(f"{name}.var", self.draw.uniform(0.2, 2.0, channels).astype(np.float32))
        return self.layer("BatchNormalization", name, x, *parts, mean, variance, epsilon=1e-5)

    def layer_norm(self, name: str, x: ir.Value, channels: int) -> ir.Value:
        parts = [self.weight(f"{name}.weight", channels, size=0.2, around=1), self.weight(f"{name}.bias", channels, size=0.3)]
        return self.layer("LayerNormalization", name, x, *parts, axis=-1, epsilon=1e-5)

    def linear(self, name: str, x: ir.Value, i: int, o: int) -> ir.Value:
        product = self.layer("MatMul", name, x, self.constant(f"{name}.weight", self._scaled(i, o)))
        return self.layer("Add", f"{name}/Add", product, self.weight(f"{name}.bias", o, size=0.3))

    def _scaled(self, i: int, o: int) -> Array:
        return (self.draw.standard_normal((i, o)) / np.sqrt(i)).astype(np.float32)

    def graph(self, inputs: list[ir.Value], **outputs: ir.Value) -> ir.Model:
        for name, value in outputs.items():
            value.name = name
        graph = ir.Graph(
            inputs, list(outputs.values()), nodes=self.nodes, initializers=list(self.weights.values()), opset_imports={"": 20}, name="model"
        )
        for value in outputs.values():
            value.type = ir.TensorType(ir.DataType.FLOAT)
        model = ir.Model(graph, ir_version=10)
        infer_shapes(model)
        return model


def _input(*shape: int | str, name: str = "x") -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def cnn(draw: Draw) -> ir.Model:
    net, width, x = Net(draw), int(draw.choice([8, 12, 16])), _input("batch", 3, 16, 16)
    h = x
    for index, (i, o, stride) in enumerate([(3, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 1)]):
        h = net.norm(f"bn{index}", net.conv(f"conv{index}", h, i, o, stride=stride, bias=False), o)
        h = net.layer("Relu", f"relu{index}", h)
    h = net.layer("Flatten", "flatten", net.layer("GlobalAveragePool", "pool", h))
    h = net.layer("Gemm", "fc", h, net.weight("fc.weight", 10, 2 * width), net.weight("fc.bias", 10, size=0.3), transB=1)
    return net.graph([x], y=h)


def residual(draw: Draw) -> ir.Model:
    net, width, x = Net(draw), int(draw.choice([8, 16])), _input("batch", 3, 16, 16)
    h = net.layer("Relu", "relu", net.norm("bn", net.conv("conv", x, 3, width, bias=False), width))
    for index in range(int(draw.integers(2, 4))):
        name = f"layer{index}"
        b = net.layer("Relu", f"{name}.relu1", net.norm(f"{name}.bn1", net.conv(f"{name}.conv1", h, width, width, bias=False), width))
        b = net.norm(f"{name}.bn2", net.conv(f"{name}.conv2", b, width, width, bias=False), width)
        h = net.layer("Relu", f"{name}.relu2", net.layer("Add", f"{name}.add", b, h))
    h = net.layer("Flatten", "flatten", net.layer("GlobalAveragePool", "pool", h))
    h = net.layer("Gemm", "fc", h, net.weight("fc.weight", 10, width), net.weight("fc.bias", 10, size=0.3), transB=1)
    return net.graph([x], y=h)


def depthwise(draw: Draw) -> ir.Model:
    net, width, x = Net(draw), 16, _input("batch", 3, 16, 16)
    h = net.layer("HardSwish", "stem.act", net.norm("stem.bn", net.conv("stem.conv", x, 3, width, stride=2, bias=False), width))
    for index in range(int(draw.integers(2, 4))):
        name = f"block{index}"
        h = net.norm(f"{name}.bn1", net.conv(f"{name}.depthwise", h, width, width, group=width, bias=False), width)
        h = net.layer("LeakyRelu", f"{name}.act1", h, alpha=0.1)
        h = net.norm(f"{name}.bn2", net.conv(f"{name}.pointwise", h, width, width, kernel=1, bias=False), width)
        h = net.layer("Relu", f"{name}.act2", h)
    h = net.layer("Flatten", "flatten", net.layer("GlobalAveragePool", "pool", h))
    return net.graph([x], y=net.layer("Softmax", "softmax", net.linear("fc", h, width, 10), axis=-1))


def mlp(draw: Draw) -> ir.Model:
    net, width, x = Net(draw), int(draw.choice([32, 64])), _input("batch", 24)
    h = net.linear("fc0", x, 24, width)
    for index in range(1, int(draw.integers(3, 5))):
        h = net.layer("Gelu", f"act{index}", net.layer_norm(f"norm{index}", h, width))
        h = net.linear(f"fc{index}", h, width, width)
    return net.graph([x], y=net.linear("head", net.layer("Tanh", "tanh", h), width, 8))


def transformer(draw: Draw) -> ir.Model:
    net, width, heads, x = Net(draw), 32, 4, _input("batch", "time", 32)
    split = net.constant("split", np.array([0, 0, heads, width // heads], np.int64))
    merge = net.constant("merge", np.array([0, 0, width], np.int64))
    scale = net.constant("scale", np.array((width / heads) ** -0.5, np.float32))
    h = x
    for index in range(2):
        name = f"encoder.{index}"
        n = net.layer_norm(f"{name}.norm1", h, width)
        q, k, v = (net.linear(f"{name}.attention.{part}", n, width, width) for part in ("query", "key", "value"))
        q, k, v = (net.layer("Reshape", f"{name}.{part}.split", one, split) for part, one in (("q", q), ("k", k), ("v", v)))
        q, v = (net.layer("Transpose", f"{name}.{part}.heads", one, perm=[0, 2, 1, 3]) for part, one in (("q", q), ("v", v)))
        k = net.layer("Transpose", f"{name}.k.heads", k, perm=[0, 2, 3, 1])
        scores = net.layer("Mul", f"{name}.attention.scale", net.layer("MatMul", f"{name}.attention.scores", q, k), scale)
        mixed = net.layer("MatMul", f"{name}.attention.mix", net.layer("Softmax", f"{name}.attention.softmax", scores, axis=-1), v)
        mixed = net.layer("Transpose", f"{name}.attention.back", mixed, perm=[0, 2, 1, 3])
        mixed = net.layer("Reshape", f"{name}.attention.merge", mixed, merge)
        h = net.layer("Add", f"{name}.add1", net.linear(f"{name}.attention.out", mixed, width, width), h)
        f = net.linear(f"{name}.ffn.fc1", net.layer_norm(f"{name}.norm2", h, width), width, 2 * width)
        f = net.linear(f"{name}.ffn.fc2", net.layer("Gelu", f"{name}.ffn.gelu", f), 2 * width, width)
        h = net.layer("Add", f"{name}.add2", f, h)
    return net.graph([x], y=net.layer_norm("norm", h, width))


def lstm(draw: Draw) -> ir.Model:
    """Two layers; the first one's state comes in, and goes out for the next call."""
    net, width, x = Net(draw), 32, _input("batch", "time", 12)
    state = _input(1, "batch", width, name="state")
    axis = net.constant("one", np.array([1], np.int64))
    zeros = net.layer("Mul", "zeros", state, net.constant("zero", np.array(0, np.float32)))
    h = net.layer("Transpose", "time_first", x, perm=[1, 0, 2])
    for index, (size, first) in enumerate([(12, state), (width, zeros)]):
        parts = [net.weight(f"lstm{index}.{part}", 1, 4 * width, n, size=n**-0.5) for part, n in (("input", size), ("state", width))]
        bias = net.weight(f"lstm{index}.bias", 1, 8 * width, size=0.2)
        y = net.layer("LSTM", f"lstm{index}", h, *parts, bias, None, first, zeros, hidden_size=width, outputs=2)
        h = net.layer("Squeeze", f"lstm{index}/Squeeze", y, axis)
    h = net.layer("Transpose", "batch_first", h, perm=[1, 0, 2])
    carried = next(node.outputs[1] for node in net.nodes if node.name == "lstm0")
    return net.graph([x, state], y=net.linear("head", net.layer("Tanh", "tanh", h), width, 6), stateN=carried)


def feeds_of(graph: ir.Model, draw: Draw, count: int, time: int = TRACED) -> list[dict[str, Array]]:
    """Samples for a model of any family."""
    sizes = {"batch": 1, "time": time}
    shapes = {
        value.name or "": [size if isinstance(size, int) else sizes[str(size)] for size in value.shape or ()]
        for value in graph.graph.inputs
    }
    return [{name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(count)]


FAMILIES: dict[str, Callable[[Draw], ir.Model]] = {
    "CNN": cnn,
    "residual CNN": residual,
    "depthwise CNN": depthwise,
    "MLP": mlp,
    "transformer encoder": transformer,
    "LSTM": lstm,
}
