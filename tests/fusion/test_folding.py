"""What is known before the run is computed before the run, unless that makes the model larger or less than it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optimizer.fusion import fuse
from optimizer.fusion.folding import foldable

R = np.random.default_rng(9)


def test_a_chain_of_constants_is_computed_and_told(build: Any, fused: Any, operators: Any) -> None:
    body = '["m.t"] t = Transpose(w) ["m.s"] s = Mul(t, c) ["m.mm"] z = MatMul(x, s)'
    after = fused(build("double[2,3] x", "double z", body, w=R.normal(size=(4, 3)), c=2.0))
    assert operators(after) == ["MatMul"]
    assert [fusion.layers for fusion in after.fusions if fusion.rule == "constant folding"] == [("m.t",), ("m.s",)]


def test_constant_nodes_become_initializers_of_the_same_name(build: Any, fused: Any) -> None:
    after = fused(build("double[2,3] x", "double z", "c = Constant<value = double {2.0}>() z = Pow(x, c)"))
    assert list(after.graph.graph.initializers) == ["c"]


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("y = Expand(c, shape) z = Mul(x, y)", {"c": np.array(3.0), "shape": np.array([200, 100])}),
        ("y = Tile(c, shape) z = Mul(x, y)", {"c": np.ones((1, 1)), "shape": np.array([200, 100])}),
        ("f = ConstantOfShape(shape) y = Cast<to=11>(f) z = Mul(x, y)", {"shape": np.array([200, 100])}),
    ],
)
def test_a_small_constant_is_not_blown_up(build: Any, fused: Any, body: str, constants: dict[str, Any]) -> None:
    after = fused(build("double[200,100] x", "double z", body, **constants))
    assert sum(value.const_value.nbytes for value in after.graph.graph.initializers.values()) < 1000


def test_a_weight_that_others_read_is_not_stored_a_second_time(build: Any, fused: Any, operators: Any) -> None:
    w = R.normal(size=(100, 100))
    alone = build("double[2,100] x", "double z", "t = Transpose(w) z = MatMul(x, t)", w=w)
    shared = build("double[2,100] x", "double z, double v", "t = Transpose(w) z = MatMul(x, t) v = MatMul(x, w)", w=w)
    assert operators(fused(alone)) == ["MatMul"]
    assert operators(fused(shared)) == ["Transpose", "MatMul", "MatMul"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "body", "reason"),
    [
        (
            "double[2] x",
            "double z",
            "y = RandomNormalLike(c) z = Add(x, y)",
            "the operator is random, quantizes, is computed roughly, or is not ONNX's own",
        ),
        ("double[2] x", "double z", "z = Neg(x)", "an input is computed, or open to the caller"),
        ("double[2] x", "double z, double y", "y = Neg(c) z = Add(x, y)", "the result is an output of the graph"),
        ("double[2] x, double[2] c", "double z", "y = Neg(c) z = Add(x, y)", "an input is computed, or open to the caller"),
    ],
)
def test_what_can_not_be_computed_ahead_says_why(build: Any, inputs: str, outputs: str, body: str, reason: str) -> None:
    model = build(inputs, outputs, body, c=np.array([1.0, 2.0]))
    assert foldable(next(iter(model.graph.graph))).reason == reason
    first = next(iter(fuse(model).graph.graph))
    assert first.op_type == next(iter(model.graph.graph)).op_type


def test_a_quantized_weight_stays_quantized(build: Any) -> None:
    model = build(
        "float[2,3] x", "float z", "w = DequantizeLinear(q, s) z = MatMul(x, w)", q=R.integers(-9, 9, (3, 4), np.int8), s=np.float32(0.1)
    )
    assert [node.op_type for node in fuse(model).graph.graph] == ["DequantizeLinear", "MatMul"]


VIEW = """
    s = Shape(x) b = Gather(s, zero) t = Gather(s, one) b1 = Unsqueeze(b, axes) t1 = Unsqueeze(t, axes)
    shape = Concat<axis=0>(b1, t1, heads) z = Reshape(x, shape)
"""


def view(build: Any, dimensions: str, body: str = VIEW) -> Any:
    constants = {"zero": np.array(0), "one": np.array(1), "axes": np.array([0]), "heads": np.array([2, 3])}
    return build(f"double[{dimensions}] x", "double z", body, **constants)


@pytest.mark.parametrize(
    ("dimensions", "target"),
    [("4,5,6", [4, 5, 2, 3]), ("n,5,6", [-1, 5, 2, 3]), ("4,n,6", [4, -1, 2, 3]), ("n,m,6", [0, 0, 2, 3]), ("?,?,6", [0, 0, 2, 3])],
)
def test_the_target_of_a_reshape_is_computed_from_what_is_known(
    build: Any, fused: Any, operators: Any, dimensions: str, target: list[int]
) -> None:
    after = fused(view(build, dimensions))
    assert operators(after) == ["Reshape"]
    (reshape,) = after.graph.graph
    assert reshape.inputs[1].const_value.numpy().tolist() == target


def test_two_free_sizes_in_another_order_keep_the_arithmetic(build: Any, fused: Any, operators: Any) -> None:
    turned = VIEW.replace("Concat<axis=0>(b1, t1, heads)", "Concat<axis=0>(t1, b1, heads)")
    assert "Concat" in operators(fused(view(build, "n,m,6", turned)))


def test_sizes_that_only_look_alike_are_not_taken_for_one(build: Any, fused: Any, operators: Any) -> None:
    body = VIEW.replace("Shape(x)", "Shape(y)")
    constants = {"zero": np.array(0), "one": np.array(1), "axes": np.array([0]), "heads": np.array([2, 3])}
    model = build("double[?,?,6] x, double[?,?,6] y", "double z", body, **constants)
    assert "Shape" in operators(fused(model))


def test_sizes_of_one_name_are_one_size(build: Any, fused: Any, operators: Any) -> None:
    constants = {"zero": np.array(0), "one": np.array(1), "axes": np.array([0]), "heads": np.array([2, 3])}
    model = build("double[n,m,6] x, double[n,m,6] y", "double z", VIEW.replace("Shape(x)", "Shape(y)"), **constants)
    assert operators(fused(model)) == ["Reshape"]


def test_arithmetic_slices_and_comparisons_of_sizes_are_followed(build: Any, fused: Any, operators: Any) -> None:
    body = """
        s = Shape(x) tail = Slice(s, one1, end) head = Shape<start=0, end=1>(x) w = Gather(s, last) half = Div(w, two)
        doubled = Mul(half, two) rest = Unsqueeze(doubled, axes) raw = Concat<axis=0>(head, rest) minus = Equal(raw, negative)
        shape = Where(minus, ones, raw) z = Reshape(x, shape) v = Cast<to=11>(tail)
    """
    constants = {
        "one1": np.array([1]),
        "end": np.array([9]),
        "last": np.array(1),
        "two": np.array(2),
        "axes": np.array([0]),
        "negative": np.array([-1]),
        "ones": np.array([1, 1]),
    }
    model = build("double[n,6] x", "double z, double v", body, **constants)
    assert "Where" not in operators(fused(model))


def test_a_reshape_to_nothing_keeps_its_meaning_of_zero(build: Any, fused: Any, operators: Any) -> None:
    body = "s = Shape(x) e = Concat<axis=0>(s, nothing) z = Reshape<allowzero=1>(x, e)"
    assert "Reshape" in operators(fused(build("double[n,0] x", "double z", body, nothing=np.array([0]))))
