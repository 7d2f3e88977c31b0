"""Transposes and reshapes cancel and merge, nodes without effect go, and nothing that the caller can see changes its name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.fusion.identity import Removed, ReversedTwice
from optimizer.fusion.reshaping import Chain
from optimizer.fusion.transposition import Two

R = np.random.default_rng(8)
ORDERS = st.permutations([0, 1, 2])


@given(first=ORDERS, second=ORDERS)
def test_two_transposes_become_one_or_none(build: Any, fused: Any, operators: Any, first: list[int], second: list[int]) -> None:
    body = f"r = Relu(x) y = Transpose<perm={first}>(r) t = Transpose<perm={second}>(y) z = Neg(t)"
    after = fused(build("double[2,3,4] x", "double z", body))
    whole = [first[axis] for axis in second]
    assert operators(after) == (["Relu", "Neg"] if whole == [0, 1, 2] else ["Relu", "Transpose", "Neg"])


def test_transposes_between_input_and_output_keep_both_names(build: Any, fused: Any, operators: Any, reasons: Any) -> None:
    model = build("double[2,3] x", "double z", "y = Transpose(x) z = Transpose(y)")
    assert operators(fused(model)) == ["Transpose", "Transpose"]
    assert reasons(model, Two()) == {"input and output are both open to the caller"}


def test_an_output_of_the_graph_keeps_its_name_when_its_node_goes(build: Any, fused: Any, operators: Any) -> None:
    model = build("double[2,3] x", "double z", "r = Relu(x) y = Transpose(r) z = Transpose(y)")
    assert operators(fused(model)) == ["Relu"]


def test_a_transpose_moves_past_a_chain_to_cancel_with_another(build: Any, fused: Any, operators: Any) -> None:
    body = """
        ["m.in"] a = Transpose<perm=[0,2,3,1]>(x) ["m.relu"] b = Relu(a) ["m.mul"] c = Mul(b, s)
        ["m.sub"] d = Sub(s, c) ["m.clip"] e = Clip(d, low, high) ["m.out"] z = Transpose<perm=[0,3,1,2]>(e)
    """
    model = build("double[2,3,4,5] x", "double z", body, s=R.normal(size=3), low=-1.0, high=1.0)
    after = fused(model)
    assert operators(after) == ["Relu", "Mul", "Sub", "Clip"]
    assert [layer.name for layer in after.layers][:3] == ["m.relu", "m.mul", "m.sub"]


def test_a_transpose_without_another_to_meet_stays_where_it_is(build: Any, fused: Any, operators: Any) -> None:
    model = build("double[2,3] x", "double z", "y = Transpose(x) z = Relu(y)")
    assert operators(fused(model)) == ["Transpose", "Relu"]


def test_a_transpose_that_two_read_stays(build: Any, fused: Any, operators: Any) -> None:
    body = "y = Transpose(x) r = Relu(y) z = Transpose(r) v = Neg(y)"
    assert operators(fused(build("double[2,3] x", "double z, double v", body))) == ["Transpose", "Relu", "Transpose", "Neg"]


def test_equal_transposes_of_both_operands_become_one(build: Any, fused: Any, operators: Any) -> None:
    body = "a = Transpose<perm={}>(x) b = Transpose<perm=[1,0,2]>(y) z = Sub(a, b)"
    inputs = "double[2,2,2] x, double[2,2,2] y"
    assert operators(fused(build(inputs, "double z", body.format("[1,0,2]")))) == ["Sub", "Transpose"]
    different = build(inputs, "double z", body.format("[0,2,1]"))
    assert operators(fused(different)) == ["Transpose", "Transpose", "Sub"]


@pytest.mark.parametrize(
    "node",
    [
        "Identity(r)",
        "Dropout(r)",
        "Cast<to=11>(r)",
        "CastLike(r, x)",
        "Reshape(r, shape)",
        "Expand(r, shape)",
        "Flatten(r)",
        "Transpose<perm=[0,1]>(r)",
        "Slice(r, start, end)",
        "Slice(r, start, end, axis, step)",
        "Pad(r, pads)",
        "Concat<axis=0>(r)",
        "Add(r, zeros)",
        "Add(zero, r)",
        "Sub(r, zero)",
        "Mul(one, r)",
        "Div(r, one)",
    ],
)
def test_a_node_without_effect_goes(build: Any, fused: Any, operators: Any, node: str) -> None:
    constants = {
        "shape": np.array([2, 3]),
        "start": np.array([0]),
        "end": np.array([2**63 - 1]),
        "axis": np.array([1]),
        "step": np.array([1]),
        "pads": np.zeros(4, np.int64),
        "zeros": np.zeros((2, 3)),
        "zero": 0.0,
        "one": 1.0,
    }
    body = f"r = Relu(x) y = {node} z = Neg(y)"
    used = {name: value for name, value in constants.items() if name in body.replace("(", " ").replace(")", " ").replace(",", " ").split()}
    assert operators(fused(build("double[2,3] x", "double z", body, **used))) == ["Relu", "Neg"]


@pytest.mark.parametrize(
    ("node", "constants", "reason"),
    [
        ("Cast<to=1>(r)", {}, "the type changes"),
        ("Reshape(r, c)", {"c": np.array([3, 2])}, "the shape changes, or is not known"),
        ("Transpose(r)", {}, "the axes change their order"),
        ("Slice(r, c, d)", {"c": np.array([0]), "d": np.array([1])}, "the slice leaves something out"),
        ("Slice(r, c, d)", {"c": np.array([1]), "d": np.array([9])}, "the slice leaves something out"),
        ("Pad(r, c)", {"c": np.array([0, 1, 0, 0])}, "the Pad adds something"),
        ("Concat<axis=0>(r, r)", {}, "several inputs are joined"),
        ("Mul(r, c)", {"c": np.array([1.0, 2.0, 1.0])}, "the operand is not 1"),
        ("Add(r, c)", {"c": np.zeros((4, 2, 3))}, "the shape changes, or is not known"),
    ],
)
def test_a_node_with_an_effect_stays(
    build: Any, fused: Any, operators: Any, reasons: Any, node: str, constants: dict[str, Any], reason: str
) -> None:
    model = build("double[2,3] x", "float z" if "Cast" in node else "double z", f"r = Relu(x) y = {node} z = Neg(y)", **constants)
    operator = node.partition("(")[0].partition("<")[0]
    assert operator in operators(fused(model))
    assert reasons(model, Removed(operator)) == {reason}


BACK = {"start": np.array([-1]), "end": np.array([-(2**63) + 1]), "step": np.array([-1]), "second": np.array([-2]), "first": np.array([0])}


@pytest.mark.parametrize("axis", ["first", "second"])
def test_a_sequence_turned_round_twice_is_itself(build: Any, fused: Any, operators: Any, axis: str) -> None:
    body = f"r = Relu(x) y = Slice(r, start, end, first, step) t = Slice(y, start, end, {axis}, step) z = Neg(t)"
    after = fused(build("double[n,3] x", "double z", body, **BACK))
    assert operators(after) == ["Relu", "Neg"]


def test_turning_other_axes_or_a_part_is_not_turning_back(build: Any, reasons: Any) -> None:
    body = "r = Relu(x) y = Slice(r, start, end, first, step) t = Slice(y, start, end, last, step) z = Neg(t)"
    used = {name: value for name, value in BACK.items() if name != "second"}
    assert reasons(build("double[n,3] x", "double z", body, last=np.array([1]), **used), ReversedTwice()) == {
        "the two turn different axes round"
    }
    part = used | {"end": np.array([-3])}
    assert reasons(build("double[n,3] x", "double z", body, last=np.array([0]), **part), ReversedTwice()) == {
        "a slice does more than turn one axis round"
    }


def test_a_reshape_that_keeps_the_one_free_size_in_place_goes(build: Any, fused: Any, operators: Any) -> None:
    def model(target: list[int]) -> Any:
        return build("double[n,4] x", "double z", "r = Relu(x) y = Reshape(r, shape) z = Neg(y)", shape=np.array(target))

    assert operators(fused(model([-1, 4]))) == ["Relu", "Neg"]
    assert operators(fused(model([4, -1]))) == ["Relu", "Reshape", "Neg"]


def test_a_dropout_in_training_or_with_a_mask_that_is_read_stays(build: Any, reasons: Any) -> None:
    training = build("double[2,3] x", "double z", "r = Relu(x) y = Dropout(r, ratio, training) z = Neg(y)", ratio=0.5, training=True)
    assert reasons(training, Removed("Dropout")) == {"the dropout may be in training mode"}
    assert reasons(training, Removed("Identity")) == set()


def test_an_identity_between_input_and_output_stays(build: Any, fused: Any, operators: Any, reasons: Any) -> None:
    model = build("double[2,3] x", "double z", "z = Identity(x)")
    assert operators(fused(model)) == ["Identity"]
    assert reasons(model, Removed("Identity")) == {"input and output are both open to the caller"}


def test_one_value_under_two_output_names_keeps_both(build: Any, fused: Any, operators: Any) -> None:
    assert operators(fused(build("double[2,3] x", "double y, double z", "y = Relu(x) z = Identity(y)"))) == ["Relu", "Identity"]


@pytest.mark.parametrize(
    "body",
    [
        "y = Reshape(r, c) t = Reshape(y, d)",
        "y = Flatten(r) t = Reshape(y, d)",
        "y = Unsqueeze(r, axes) t = Reshape(y, d)",
        "y = Reshape(r, c) t = Flatten<axis=1>(y)",
        "y = Unsqueeze(r, axes) t = Squeeze(y, axes) ",
    ],
)
def test_a_chain_of_reshapes_becomes_one_or_none(build: Any, fused: Any, operators: Any, body: str) -> None:
    constants = {"c": np.array([2, 3, 4]), "d": np.array([4, -1]), "axes": np.array([1])}
    used = {name: value for name, value in constants.items() if f" {name})" in body}
    after = fused(build("double[2,12] x", "double z", f"r = Relu(x) {body} z = Neg(t)", **used))
    assert operators(after) in (["Relu", "Reshape", "Neg"], ["Relu", "Neg"])


def test_a_chain_that_copies_sizes_of_its_middle_keeps_what_it_can_not_know(build: Any, fused: Any, operators: Any, reasons: Any) -> None:
    body = "y = Reshape(x, c) z = Reshape(y, d)"
    model = build("double[n,m,6] x", "double z", body, c=np.array([0, 0, 2, 3]), d=np.array([0, 0, 3, 2]))
    assert operators(fused(model)) == ["Reshape", "Reshape"]
    assert reasons(model, Chain("Reshape", "Reshape")) == {"more than one of the resulting sizes is free"}


def test_a_free_batch_survives_a_chain_of_reshapes(build: Any, fused: Any, operators: Any) -> None:
    model = build("double[n,6] x", "double z", "y = Reshape(x, c) z = Flatten(y)", c=np.array([-1, 2, 3]))
    assert operators(fused(model)) == ["Reshape"]


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin"])
def test_a_reduction_along_size_one_goes_and_any_other_stays(build: Any, fused: Any, operators: Any, operator: str, keepdims: int) -> None:
    body = f"r = Relu(x) m = {operator}<keepdims={keepdims}>(r, axes) z = Neg(m)"
    after = operators(fused(build("double[2,1,3,1] x", "double z", body, axes=np.array([1, -1]))))
    assert after == (["Relu", "Neg"] if keepdims else ["Relu", "Reshape", "Neg"])
    assert operator in operators(fused(build("double[2,1,3,1] x", "double z", body, axes=np.array([1, 2]))))


def test_a_reshape_reads_past_one_that_others_read_too(build: Any, fused: Any, operators: Any) -> None:
    body = "r = Relu(x) s = Squeeze(r, first) a = Unsqueeze(s, first) b = Unsqueeze(s, last) y = Neg(a) z = Abs(b)"
    after = fused(build("double[1,1,4] x", "double y, double z", body, first=np.array([0]), last=np.array([-1])))
    assert sorted(operators(after)) == ["Abs", "Neg", "Relu", "Reshape"]


@pytest.mark.parametrize(("index", "axis", "back", "found"), [(0, 0, 0, True), (-1, 1, 1, True), (2, -1, 2, True), (1, 0, 1, False)])
def test_one_of_an_axis_that_stays_an_axis_is_a_slice(
    build: Any, fused: Any, operators: Any, index: int, axis: int, back: int, found: bool
) -> None:
    body = f"r = Relu(x) g = Gather<axis={axis}>(r, index) u = Unsqueeze(g, back) z = Neg(u)"
    after = fused(build("double[3,4,5] x", "double z", body, index=np.array(index), back=np.array([back])))
    assert operators(after) == (["Relu", "Slice", "Neg"] if found else ["Relu", "Gather", "Unsqueeze", "Neg"])


def test_several_of_an_axis_are_no_slice(build: Any, fused: Any, operators: Any) -> None:
    body = "r = Relu(x) g = Gather(r, index) u = Unsqueeze(g, back) z = Neg(u)"
    after = fused(build("double[3,4] x", "double z", body, index=np.array([0, 2]), back=np.array([0])))
    assert "Gather" in operators(after)


def test_whole_numbers_times_zero_are_zero_and_floats_are_not(build: Any, fused: Any, operators: Any) -> None:
    body = "n = Mul(rate, nothing) f = Cast<to=11>(n) z = Add(x, f) y = Neg(z)"
    after = fused(build("double[2,3] x, int64 rate", "double y", body, nothing=np.array(0)))
    assert operators(after) == ["Neg"]
    assert [value.name for value in after.graph.graph.inputs] == ["x", "rate"]
    body = "n = Mul(x, nothing) z = Add(x, n) y = Neg(z)"
    assert "Mul" in operators(fused(build("double[2,3] x", "double y", body, nothing=0.0)))
