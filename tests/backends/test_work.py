from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.graph import infer_shapes
from optimizer.model import SHAPES
from optimizer.work import multiplications


def counted(text: str, usual: dict[str, tuple[int, ...]] | None = None, **weights: tuple[int, ...]) -> int:
    """The multiplications of the layer that gives `y`."""
    model = ir.from_onnx_text(f'<ir_version: 9, opset_import: ["":20]> {text}')
    for name, shape in weights.items():
        value = next(value for node in model.graph for value in node.inputs if value is not None and value.name == name)
        kind = np.int8 if name.startswith("q") else np.float32
        value.const_value = ir.tensor(np.ones(shape, kind), name=name)
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(shape)
        model.graph.register_initializer(value)
    for node in model.graph:
        node.name = node.outputs[0].name
    if usual:
        model.metadata_props[SHAPES] = json.dumps({name: [size, size, size] for name, size in usual.items()})
    infer_shapes(model)
    return dict(multiplications(model)).get("y", 0)


@pytest.mark.parametrize(
    ("text", "weights", "count"),
    [
        ("g (float[2,4,8,8] x) => (float[2,6,4,4] y) { y = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w) }", {"w": (6, 4, 3, 3)}, 2 * 216 * 16),
        ("g (float[1,4,8,8] x) => (float[1,4,8,8] y) { y = Conv<group=4, pads=[1,1,1,1]>(x, w) }", {"w": (4, 1, 3, 3)}, 36 * 64),
        ("g (float[1,4,8,8] x) => (float[1,6,16,16] y) { y = ConvTranspose<strides=[2,2]>(x, w) }", {"w": (4, 6, 2, 2)}, 96 * 64),
        ("g (float[3,5,8] x) => (float[3,5,2] y) { y = MatMul(x, w) }", {"w": (8, 2)}, 3 * 5 * 8 * 2),
        ("g (float[8,5] x) => (float[2,5] y) { y = MatMul(w, x) }", {"w": (2, 8)}, 2 * 8 * 5),
        ("g (float[3,8] x) => (float[3,2] y) { y = Gemm<transB=1>(x, w, b) }", {"w": (2, 8), "b": (2,)}, 3 * 8 * 2),
        ("g (float[7,2,3] x) => (float[7,1,2,4] y) { y = LSTM<hidden_size=4>(x, w, r) }", {"w": (1, 16, 3), "r": (1, 16, 4)}, 112 * 14),
        (
            "g (float[3,8] x) => (float[3,2] y) { s = Constant<value=float {0.5}>() d = DequantizeLinear(qw, s) y = MatMul(x, d) }",
            {"qw": (8, 2)},
            48,
        ),
    ],
)
def test_a_layer_multiplies_by_each_weight_at_each_place(text: str, weights: dict[str, tuple[int, ...]], count: int) -> None:
    assert counted(text, **weights) == count


def test_free_sizes_are_the_usual_ones_and_where_nobody_knows_each_weight_counts_once() -> None:
    text = "g (float[N,8] x) => (float[N,2] y) { y = MatMul(x, w) }"
    assert counted(text, usual={"x": (5, 8)}, w=(8, 2)) == 80
    assert counted(text, w=(8, 2)) == 16


def test_layers_without_weights_and_those_computed_before_the_run_multiply_by_none() -> None:
    assert counted("g (float[2,2] x, float[2,2] z) => (float[2,2] y) { y = MatMul(x, z) }") == 0
    assert counted("g (float[2,2] x) => (float[2,2] y) { y = Mul(x, w) }", w=(2, 2)) == 0
    assert counted("g (float[2] x) => (float[2,2] y, float[2] z) { y = MatMul(v, w) z = Relu(x) }", v=(2, 2), w=(2, 2)) == 0
