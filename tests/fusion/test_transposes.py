"""Parts of a graph take another order of axes where that saves Transposes, whatever operators they are made of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimizer.fusion import fuse
from optimizer.fusion.axes import dropped, inserted
from optimizer.fusion.cut import SINK, SOURCE, cheapest_cut
from optimizer.fusion.flattening import regrouped
from optimizer.fusion.transposition import MovesNothing

R = np.random.default_rng(12)
LAST = "Transpose<perm=[0,2,3,1]>"
FIRST = "Transpose<perm=[0,3,1,2]>"
KERNEL = R.normal(size=(4, 4, 1, 1))


def between(node: str) -> str:
    """A node between the Transposes that a converter puts behind one convolution and before the next."""
    return f"p = Conv(x, k) a = {LAST}(p) b = {node} q = {FIRST}(b) z = Neg(q)"


@pytest.mark.parametrize(
    ("node", "operator"),
    [
        ("Relu(a)", "Relu"),
        ("Clip(a, low, high)", "Clip"),
        ("Mul(a, pixels)", "Mul"),
        ("Sub(pixels, a)", "Sub"),
        ("Pow(a, one)", "Pow"),
        ("Max(a, channels, one)", "Max"),
        ("PRelu(a, channels)", "PRelu"),
        ("Softmax<axis=-1>(a)", "Softmax"),
        ("Softmax<axis=1>(a)", "Softmax"),
        ("Concat<axis=3>(a, pixels4)", "Concat"),
        ("ReduceMean(a, axes12)", "GlobalAveragePool"),
        ("ReduceMax<keepdims=1>(a, axis3)", "ReduceMax"),
        ("Slice(a, zero, two, axis3)", "Slice"),
        ("Slice(a, last, first, axis1, last)", "Slice"),
        ("Pad(a, pads)", "Pad"),
        ("Pad(a, two_pads, half, axis2)", "Pad"),
        ("Tile(a, repeats)", "Tile"),
        ('Resize<mode="nearest">(a, , scales)', "Resize"),
        ('Resize<mode="nearest">(a, , , sizes)', "Resize"),
    ],
)
def test_an_operator_between_two_transposes_computes_without_them(build: Any, fused: Any, operators: Any, node: str, operator: str) -> None:
    constants: dict[str, Any] = {
        "k": KERNEL, "low": -0.5, "high": 0.5, "one": 1.0, "half": 0.5, "channels": R.normal(size=4), "pixels": R.normal(size=(1, 5, 6, 1)),
        "pixels4": R.normal(size=(2, 5, 6, 4)), "axes12": np.array([1, 2]), "axis1": np.array([1]), "axis2": np.array([2]),
        "axis3": np.array([-1]), "zero": np.array([0]), "two": np.array([2]), "last": np.array([-1]), "first": np.array([-(2**31)]),
        "pads": np.array([0, 1, 2, 0, 0, 1, 0, 1]), "two_pads": np.array([1, 2]), "repeats": np.array([1, 2, 1, 1]),
        "scales": np.array([1, 2, 2, 1], np.float32), "sizes": np.array([2, 10, 12, 4]),
    }  # fmt: skip
    words = node.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {name: value for name, value in constants.items() if name in words or name == "k"}
    after = fused(build("double[2,4,5,6] x", "double z", between(node), **used), tolerance=1e-6 if operator == "Resize" else 1e-12)
    assert operators(after) == ["Conv", operator, "Neg"]


@pytest.mark.parametrize(
    "body",
    [
        "c, d = Split<axis=3, num_outputs=2>(a) e = Relu(c) f = Sigmoid(d) b = Concat<axis=-1>(f, e)",
        "m = ReduceMean<keepdims=0>(a, axes) u = Unsqueeze(m, axes) g = Sigmoid(u) b = Mul(a, g)",
        "g = Sigmoid(a) b = Mul(a, g)",
        "u = Reshape(a, halves) v = Relu(u) b = Reshape(v, whole)",
        "u = Unsqueeze(a, axis2) t = Tile(u, repeats) b = Reshape(t, wide)",
        "c = Add(a, k2) d = Greater(c, k2) b = Where(d, a, c)",
    ],
)
def test_branches_and_axes_that_come_and_go_keep_the_order_of_the_convolutions(build: Any, fused: Any, operators: Any, body: str) -> None:
    constants = {
        "axes": np.array([1, 2]), "axis2": np.array([2]), "halves": np.array([0, 5, 2, 3, 4]), "whole": np.array([-1, 5, 6, 4]),
        "repeats": np.array([1, 1, 2, 1, 1]), "wide": np.array([-1, 10, 6, 4]), "k2": R.normal(size=(6, 4)),
    }  # fmt: skip
    used = {name: value for name, value in constants.items() if f" {name})" in body or f" {name}," in body}
    model = build("double[n,4,5,6] x", "double z", between("a").replace("b = a", body), k=KERNEL, **used)
    assert "Transpose" not in operators(fused(model))


def test_a_squeeze_and_excitation_block_with_its_skip_keeps_no_transpose(build: Any, fused: Any, operators: Any) -> None:
    body = f"""
        p = Conv(x, k) a = {LAST}(p) m = ReduceMean<keepdims=0>(a, axes) u = Reshape(m, small) v = {FIRST}(u) w = Conv(v, k)
        t = {LAST}(w) g = Sigmoid(t) s = Mul(g, a) r = Add(s, a) q = {FIRST}(r) z = Conv(q, k)
    """
    model = build("double[n,4,5,6] x", "double z", body, k=KERNEL, axes=np.array([1, 2]), small=np.array([-1, 1, 1, 4]))
    assert "Transpose" not in operators(fused(model))


@pytest.mark.parametrize("flatten", ["Reshape(a, rows)", "Flatten(a)"])
@pytest.mark.parametrize("dense", ["MatMul(f, w)", "Gemm<transB=1>(f, v)"])
@pytest.mark.parametrize("middle", ["Identity(e)", "Relu(e)", "Mul(e, columns)"])
def test_a_transpose_before_rows_goes_into_the_matrix_behind_them(
    build: Any, fused: Any, operators: Any, flatten: str, dense: str, middle: str
) -> None:
    constants = {"w": R.normal(size=(120, 3)), "v": R.normal(size=(3, 120)), "columns": R.normal(size=120), "rows": np.array([-1, 120])}
    body = f"p = Conv(x, k) a = {LAST}(p) e = {flatten} f = {middle} y = {dense} z = Neg(y)"
    used = {name: value for name, value in constants.items() if f" {name})" in body}
    after = fused(build("double[n,4,5,6] x", "double z", body, k=KERNEL, **used))
    assert "Transpose" not in operators(after)
    assert not {"Reshape", "Flatten"}.isdisjoint(operators(after))


@pytest.mark.parametrize("middle", ["Relu(y)", "Add(y, columns)"])
@pytest.mark.parametrize("dense", ["MatMul(x, w)", "Gemm(x, w, columns)", "Gemm<transB=1>(x, v, one)"])
def test_a_transpose_of_images_made_by_a_matrix_goes_into_it(build: Any, fused: Any, operators: Any, dense: str, middle: str) -> None:
    constants = {"w": R.normal(size=(3, 120)), "v": R.normal(size=(120, 3)), "columns": R.normal(size=120), "one": 1.0}
    body = f"y = {dense} m = {middle} i = Reshape(m, images) q = {FIRST}(i) z = Conv(q, k)"
    used = {name: value for name, value in constants.items() if f" {name})" in body or f" {name}," in body}
    after = fused(build("double[n,3] x", "double z", body, k=KERNEL, images=np.array([-1, 5, 6, 4]), **used))
    assert "Transpose" not in operators(after)


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (f"p = Conv(x, k) a = {LAST}(p) f = Flatten(a) z = MatMul(f, w) v = MatMul(u, w)", "double z, double v"),
        (f"p = Conv(x, k) a = {LAST}(p) f = Flatten(a) z = MatMul(f, w) v = MatMul(f, u2)", "double z, double v"),
        (f"p = Conv(x, k) a = {LAST}(p) v = Flatten(a) z = MatMul(v, w)", "double z, double v"),
        ("p = Conv(x, k) a = Transpose<perm=[2,0,3,1]>(p) f = Reshape(a, rows) z = MatMul(f, w2)", "double z"),
    ],
)
def test_a_matrix_that_others_read_or_rows_that_others_see_keep_the_transpose(
    build: Any, fused: Any, operators: Any, body: str, outputs: str
) -> None:
    constants = {"w": R.normal(size=(120, 3)), "w2": R.normal(size=(48, 3)), "rows": np.array([5, 48])}
    used = {name: value for name, value in constants.items() if f" {name})" in body}
    inputs = "double[2,4,5,6] x, double[2,120] u, double[120,2] u2"
    assert "Transpose" in operators(fused(build(inputs, outputs, body, k=KERNEL, **used)))


def test_the_sizes_of_a_moved_value_are_told_in_the_old_order(build: Any, fused: Any, operators: Any) -> None:
    body = f"p = Conv(x, k) a = {LAST}(p) b = Relu(a) v = Shape<start=1>(b) q = {FIRST}(b) z = Neg(q)"
    model = build("double[n,4,h,w] x", "double z, int64 v", body, k=KERNEL)
    assert "Transpose" not in operators(fused(model))


def test_a_value_that_a_branch_reads_keeps_its_order(build: Any, fused: Any, operators: Any) -> None:
    branch = "{name} = {name}_graph () => (double[2,5,6,4] {name}_out) {{ {name}_out = {operator}(b) }}"
    branches = ", ".join(branch.format(name=f"{which}_branch", operator=op) for which, op in (("then", "Neg"), ("else", "Abs")))
    body = f"p = Conv(x, k) a = {LAST}(p) b = Relu(a) v = If(flag)<{branches}> q = {FIRST}(b) z = Neg(q)"
    model = build("double[2,4,5,6] x, bool flag", "double z, double[2,5,6,4] v", body, k=KERNEL)
    assert operators(fused(model)).count("Transpose") == 1


def test_outputs_keep_name_and_order(build: Any, fused: Any, operators: Any) -> None:
    body = f"p = Conv(x, k) a = {LAST}(p) b = Relu(a) q = {FIRST}(b) z = Neg(q)"
    after = fused(build("double[2,4,5,6] x", "double z, double b", body, k=KERNEL))
    assert operators(after).count("Transpose") == 1
    assert [value.name for value in after.graph.graph.outputs] == ["z", "b"]


def test_a_transpose_of_axes_of_size_one_is_a_reshape(build: Any, fused: Any, operators: Any, reasons: Any) -> None:
    assert operators(fused(build("double[n,5,6,1] x", "double z", f"a = {FIRST}(x) z = Neg(a)"))) == ["Reshape", "Neg"]
    assert reasons(build("double[n,5,6,2] x", "double z", f"z = {FIRST}(x)"), MovesNothing()) == {
        "an axis moves that may hold more than one number"
    }
    assert reasons(build("double[n,m,6,1] x", "double z", f"z = {FIRST}(x)"), MovesNothing()) == {"more than one size is free"}


def test_what_was_saved_is_told(build: Any) -> None:
    after = fuse(
        build(
            "double[2,4,5,6] x",
            "double z",
            f'["c1"] p = Conv(x, k) ["t1"] a = {LAST}(p) ["relu"] b = Relu(a) ["t2"] q = {FIRST}(b) ["neg"] z = Neg(q)',
            k=KERNEL,
        )
    )
    told = next(fusion for fusion in after.fusions if fusion.rule == "Transposes moved together")
    assert set(told.layers) == {"t1", "t2"}
    assert [layer.name for layer in after.layers] == ["c1", "relu", "neg"]


@given(st.lists(st.sets(st.sampled_from([SOURCE, SINK, *range(6)]), min_size=2, max_size=4), max_size=9))
def test_the_cheapest_cut_is_that_of_trying_all(edges: list[set[Any]]) -> None:
    cost, side = cheapest_cut(edges)

    def price(inside: set[Any]) -> int:
        return sum(not (edge <= inside or edge.isdisjoint(inside)) for edge in edges)

    assert cost == price({*side} & {SOURCE, *range(6)} | {SOURCE})
    assert cost == min(price({SOURCE, *some}) for size in range(7) for some in itertools.combinations(range(6), size))


@given(order=st.permutations(range(5)), axes=st.sets(st.integers(0, 4), min_size=1, max_size=3))
def test_axes_that_are_inserted_are_those_that_drop(order: list[int], axes: set[int]) -> None:
    small = dropped(tuple(order), tuple(axes))
    assert dropped(inserted(small, tuple(axes)), tuple(axes)) == small


@given(data=st.data())
def test_a_reshape_of_a_stored_value_gives_the_stored_result(data: Any) -> None:
    before = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    after = data.draw(st.sampled_from([*_splits(before), [math.prod(before)]]))
    order = tuple(data.draw(st.permutations(range(len(before)))))
    found = regrouped(ir.Shape(before), ir.Shape(after), order)
    if found is not None:
        x = np.arange(math.prod(before)).reshape(before)
        np.testing.assert_array_equal(x.transpose(order).reshape([after[axis] for axis in found]), x.reshape(after).transpose(found))


def _splits(shape: list[int]) -> list[list[int]]:
    """The shape itself, and with one axis split or two joined."""
    halves = [[*shape[:axis], size // 2, 2, *shape[axis + 1 :]] for axis, size in enumerate(shape) if size % 2 == 0]
    joined = [[*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]] for axis in range(len(shape) - 1)]
    return [shape, *halves, *joined]


class Drawn:
    """A graph in the making, of operators that have axes and many Transposes."""

    def __init__(self, data: Any) -> None:
        self.draw = data.draw
        self.values: list[tuple[str, tuple[int, ...]]] = [("x", (2, 3, 4, 5)), ("y", (2, 3, 4, 5))]
        self.body: list[str] = []
        self.constants: dict[str, Any] = {}

    def constant(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def put(self, text: str, shape: tuple[int, ...]) -> None:
        name = f"v{len(self.values)}"
        self.body.append(f"{name} = {text}")
        self.values.append((name, shape))

    def add(self) -> None:
        x, shape = self.draw(st.sampled_from(self.values[-6:]))
        rank = len(shape)
        axis = self.draw(st.integers(0, rank - 1)) if rank else 0
        kinds = ["transpose", "transpose", "transpose", "unary", "binary", "constant", "softmax", "reduce", "drop", "insert", "slice"]
        kind = self.draw(st.sampled_from([*kinds, "pad", "concat", "reshape", "rows"]))
        if kind == "transpose" or rank == 0:
            order = self.draw(st.permutations(range(rank)))
            return self.put(f"Transpose<perm={order}>({x})" if rank else f"Neg({x})", tuple(shape[a] for a in order))
        same = [name for name, other in self.values if other == shape]
        fixed = tuple(size if self.draw(st.booleans()) else 1 for size in shape)
        number = np.array([axis])
        drops, wider = (*shape[:axis], *shape[axis + 1 :]), (*shape[:axis], shape[axis] + 1, *shape[axis + 1 :])
        pads = np.zeros(2 * rank, np.int64)
        pads[axis + rank] = 1
        ways: dict[str, Callable[[], tuple[str, tuple[int, ...]]]] = {
            "unary": lambda: (f"{self.draw(st.sampled_from(['Relu', 'Sigmoid', 'Neg']))}({x})", shape),
            "binary": lambda: (f"{self.draw(st.sampled_from(['Add', 'Sub', 'Mul']))}({x}, {self.draw(st.sampled_from(same))})", shape),
            "constant": lambda: (f"Add({x}, {self.constant(R.normal(size=fixed))})", shape),
            "softmax": lambda: (f"Softmax<axis={axis}>({x})", shape),
            "reduce": lambda: (f"ReduceMean({x}, {self.constant(number)})", (*shape[:axis], 1, *shape[axis + 1 :])),
            "drop": lambda: (f"ReduceMax<keepdims=0>({x}, {self.constant(number)})", drops),
            "insert": lambda: (f"Unsqueeze({x}, {self.constant(number)})", (*shape[:axis], 1, *shape[axis:])),
            "slice": lambda: (
                f"Slice({x}, {self.constant([0])}, {self.constant([1])}, {self.constant(number)})",
                (*shape[:axis], 1, *shape[axis + 1 :]),
            ),
            "pad": lambda: (f"Pad({x}, {self.constant(pads)})", wider),
            "concat": lambda: (
                f"Concat<axis={axis}>({x}, {self.draw(st.sampled_from(same))})",
                (*shape[:axis], 2 * shape[axis], *shape[axis + 1 :]),
            ),
            "reshape": lambda: self._reshape(x, shape),
            "rows": lambda: self._rows(x, shape),
        }
        self.put(*ways[kind]())

    def _reshape(self, x: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        to = tuple(self.draw(st.sampled_from(_splits(list(shape)))))
        return f"Reshape({x}, {self.constant(np.array(to))})", to

    def _rows(self, x: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        columns = math.prod(shape[1:])
        flat = f"f{len(self.values)}"
        self.body.append(f"{flat} = Reshape({x}, {self.constant(np.array([shape[0], columns]))})")
        return f"MatMul({flat}, {self.constant(R.normal(size=(columns, 4)) / columns)})", (shape[0], 4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_graph_full_of_transposes_keeps_its_function_and_gets_no_more_of_them(
    build: Any, fused: Any, operators: Any, data: Any
) -> None:
    drawn = Drawn(data)
    for _ in range(data.draw(st.integers(4, 12))):
        drawn.add()
    names = [name for name, _ in drawn.values[2:]]
    outputs = dict.fromkeys([names[-1], data.draw(st.sampled_from(names))])
    text = ", ".join(f"double {name}" for name in outputs)
    model = build("double[2,3,4,5] x, double[2,3,4,5] y", text, " ".join(drawn.body), **drawn.constants)
    after = fused(model, tolerance=1e-8)
    assert operators(after).count("Transpose") <= operators(model).count("Transpose")
