"""Slices and Pads joined, axes moved early, a variance that loses nothing: the function stays, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from optimizer.fusion import fuse
from optimizer.fusion.rewrites import offers
from optimizer.model import Model

R = np.random.default_rng(5)
Rewriting = Callable[[Model, str], Model]
Operators = Callable[[Model], list[str]]
few = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def slices(draw: st.DrawFn) -> dict[str, np.ndarray[Any, Any]]:
    """Starts, ends, axes and steps of one Slice of 8 x 9 numbers."""
    axes = draw(st.sampled_from([[0], [1], [-1], [0, 1]]))
    places = [(draw(st.integers(-9, 9)), draw(st.integers(-9, 99)), draw(st.integers(1, 3))) for _ in axes]
    starts, ends, steps = zip(*places, strict=True)
    return {name: np.array(numbers) for name, numbers in zip("seap", (starts, ends, axes, steps), strict=True)}


@few
@given(first=slices(), second=slices())
def test_two_slices_are_one(first: Any, second: Any, build: Any, rewrite: Rewriting, operators: Operators) -> None:
    constants = {f"{name}1": array for name, array in first.items()} | {f"{name}2": array for name, array in second.items()}
    model = build("double[8,9] x", "double y", "a = Slice(x, s1, e1, a1, p1) y = Slice(a, s2, e2, a2, p2)", **constants)
    after = rewrite(model, "Slice of Slice")
    (value,) = after.graph.graph.outputs
    assert (operators(after) == ["Slice"]) == (0 not in list(value.shape or ()))


pads = st.lists(st.integers(0, 3), min_size=4, max_size=4)


@few
@given(first=pads, second=pads, numbers=st.sampled_from([(None, None), (None, 0.0), (2.0, 2.0), (1.0, 2.0)]))
def test_two_pads_of_one_constant_are_one(
    first: list[int], second: list[int], numbers: Any, build: Any, rewrite: Rewriting, operators: Operators
) -> None:
    constants = {"p": np.array(first), "q": np.array(second)} | {
        n: np.asarray(v) for n, v in zip("cd", numbers, strict=True) if v is not None
    }
    fillers = [f", {name}" if value is not None else "" for name, value in zip("cd", numbers, strict=True)]
    model = build("double[2,3] x", "double y", f"a = Pad(x, p{fillers[0]}) y = Pad(a, q{fillers[1]})", **constants)
    assert operators(rewrite(model, "Pad of Pad")) == (["Pad"] if numbers != (1.0, 2.0) else ["Pad", "Pad"])


@few
@given(around=pads, taken=slices())
def test_a_slice_of_a_pad_loses_one_of_the_two(around: list[int], taken: Any, build: Any, rewrite: Rewriting, operators: Operators) -> None:
    model = build(
        "double[4,5] x",
        "double y",
        "a = Pad(x, w) y = Slice(a, s, e, a1, p)",
        w=np.array(around),
        **{"a1" if n == "a" else n: v for n, v in taken.items()},
    )
    after = rewrite(model, "Slice of Pad")
    assert not after.fusions or len(operators(after)) == 1


@pytest.mark.parametrize("mode", ["edge", "reflect"])
def test_a_pad_that_repeats_pixels_stays(mode: str, build: Any) -> None:
    body = f'a = Pad<mode="{mode}">(x, p) y = Pad<mode="{mode}">(a, p)'
    assert offers(fuse(build("double[4,5] x", "double y", body, p=np.array([1, 1, 1, 1])), ())) == ()


@pytest.mark.parametrize(
    ("size", "step", "pad", "written"),
    [
        ((8, 6), 2, [0, 2, 0, 0, 0, 3, 0, 0], ["Conv"]),
        ((7, 5), 2, [0, 2, 0, 0, 0, 2, 0, 0], ["Conv"]),
        ((9, 9), 3, [0, 0, 0, 0, 0, 4, 0, 0], ["Conv"]),
        ((8, 6), 2, [0, 2, 1, 0, 0, 2, 0, 0], ["Slice", "Pad"]),
    ],
)
def test_a_shortcut_by_slice_and_pad_is_a_convolution(
    size: tuple[int, int], step: int, pad: list[int], written: list[str], build: Any, rewrite: Rewriting, operators: Operators
) -> None:
    constants = {"s": np.array([0, 0]), "e": np.array([99, 99]), "a": np.array([2, 3]), "t": np.array([step, step]), "p": np.array(pad)}
    model = build(f"double[2,3,{size[0]},{size[1]}] x", "double y", "c = Slice(x, s, e, a, t) y = Pad(c, p)", **constants)
    assert operators(rewrite(model, "strided Slice with new channels into convolution")) == written


def test_a_shortcut_that_starts_or_ends_elsewhere_stays(build: Any, rewrite: Rewriting, operators: Operators) -> None:
    for start, end in (([1, 1], [99, 99]), ([0, 0], [4, 99])):
        constants = {
            "s": np.array(start),
            "e": np.array(end),
            "a": np.array([2, 3]),
            "t": np.array([2, 2]),
            "p": np.array([0, 1, 0, 0, 0, 0, 0, 0]),
        }
        model = build("double[2,3,8,8] x", "double y", "c = Slice(x, s, e, a, t) y = Pad(c, p)", **constants)
        assert operators(rewrite(model, "strided Slice with new channels into convolution")) == ["Slice", "Pad"]


@few
@given(order=st.permutations([0, 1, 2]), axis=st.sampled_from([-1, 1, 2]), given_order=st.booleans())
def test_a_transpose_goes_before_a_concat_of_the_last_axis(
    order: list[int], axis: int, given_order: bool, build: Any, rewrite: Rewriting, operators: Operators
) -> None:
    body = f"c = Concat<axis={axis}>(x, z, x) y = Transpose{f'<perm={order}>' if given_order else ''}(c)"
    after = rewrite(build("double[2,3,4] x, double[2,3,4] z", "double y", body), "Transpose before Concat")
    moved = axis != 1 and (order[-1] != 2 or not given_order)
    assert operators(after)[-1] == ("Concat" if moved else "Transpose")


@pytest.mark.parametrize(
    ("flat", "size", "axis", "stays"),
    [
        ("Flatten<axis=2>(x)", "2,3,4", -1, False),
        ("Reshape(x, f)", "2,3,4", 1, False),
        ("Reshape(x, f)", "2,3,4", 0, True),
        ("Reshape(x, g)", "2,3,4", -1, True),
    ],
)
def test_a_softmax_between_reshapes_needs_none(
    flat: str, size: str, axis: int, stays: bool, build: Any, rewrite: Rewriting, operators: Operators
) -> None:
    constants = {name: array for name, array in {"f": np.array([6, 4]), "g": np.array([4, 6])}.items() if f", {name}" in flat}
    body = f"a = {flat} b = Softmax<axis={axis}>(a) y = Reshape(b, t)"
    model = build(f"double[{size}] x", "double y", body, t=np.array([2, 3, 4]), **constants)
    assert (operators(rewrite(model, f"Softmax without {flat.split('<')[0].split('(')[0]}")) != ["Softmax"]) == stays


SQUARES = ("q = Mul(x, x)", "q = Pow(x, two)")


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("read", [False, True])
def test_a_variance_is_of_differences(square: str, keepdims: int, read: bool, build: Any, rewrite: Rewriting, operators: Operators) -> None:
    mean = f"m = ReduceMean<keepdims={keepdims}>(x, a) s = ReduceMean<keepdims={keepdims}>(q, a) k = Mul(m, m) y = Sub(s, k)"
    constants = {"a": np.array([-1, 1])} | ({"two": np.asarray(2.0)} if "two" in square else {})
    model = build("double[2,3,4] x", "double y, double m" if read else "double y", f"{square} {mean}", **constants)
    assert operators(rewrite(model, "safe variance")).count("ReduceMean") == (3 if read and not keepdims else 2)


def test_a_variance_of_pictures_is_of_differences_too(build: Any, rewrite: Rewriting, operators: Operators) -> None:
    body = "q = Mul(x, x) m = GlobalAveragePool(x) s = GlobalAveragePool(q) k = Mul(m, m) y = Sub(s, k)"
    assert operators(rewrite(build("double[2,3,4,5] x", "double y", body), "safe variance")) == [
        "GlobalAveragePool",
        "Sub",
        "Mul",
        "ReduceMean",
    ]


@pytest.mark.parametrize(
    ("operator", "number", "safe"), [("Mul", 1 / 12, True), ("Div", 12.0, True), ("Mul", 1 / 11, False), ("Div", 13.0, False)]
)
def test_a_sum_over_its_number_is_a_mean(operator: str, number: float, safe: bool, build: Any, rewrite: Rewriting) -> None:
    means = " ".join(f"t{of} = ReduceSum<keepdims=0>({of}, a) {name} = {operator}(t{of}, n)" for of, name in (("x", "m"), ("q", "s")))
    body = f"q = Mul(x, x) {means} k = Mul(m, m) v = Sub(s, k) y = Max(v, zero)"
    model = build("double[2,3,4] x", "double y", body, a=np.array([1, 2]), n=np.asarray(number), zero=np.asarray(0.0))
    assert bool(rewrite(model, "safe variance").fusions) == safe


def test_a_safe_variance_keeps_what_float32_loses(build: Any, rewrite: Rewriting) -> None:
    body = "q = Mul(x, x) m = ReduceMean(x, a) s = ReduceMean(q, a) k = Mul(m, m) y = Sub(s, k)"
    model = build("double[1,64] x", "double y", body, a=np.array([1]))
    after = rewrite(model, "safe variance")
    x = R.normal(size=(1, 64)) + 1e4

    def off(model: Model) -> float:
        graph = ir.to_proto(model.graph)
        for value in (*graph.graph.input, *graph.graph.output, *graph.graph.value_info):
            value.type.tensor_type.elem_type = 1
        return abs(float(np.squeeze(ReferenceEvaluator(graph).run(None, {"x": x.astype(np.float32)})[0])) - float(x.var()))

    assert off(after) < 1e-3
    assert off(model) > 0.1


@pytest.mark.parametrize(
    "body",
    [
        "q = Mul(x, z) m = ReduceMean(x, a) s = ReduceMean(q, a) k = Mul(m, m) y = Sub(s, k)",
        "q = Mul(x, x) m = ReduceMean(z, a) s = ReduceMean(q, a) k = Mul(m, m) y = Sub(s, k)",
        "q = Mul(x, x) m = ReduceMean(x, b) s = ReduceMean(q, a) k = Mul(m, m) y = Sub(s, k)",
        "q = Mul(x, x) m = ReduceMean(x, a) s = ReduceMean(q, a) k = Mul(m, m) y = Sub(k, s)",
        "q = Mul(x, x) m = ReduceMean<keepdims=0>(x, a) s = ReduceMean(q, a) k = Mul(m, m) y = Sub(s, k)",
    ],
)
def test_what_is_no_variance_stays(body: str, build: Any) -> None:
    constants = {"a": np.array([2])} | ({"b": np.array([1])} if ", b)" in body else {})
    model = build("double[3,3,3] x, double[3,3,3] z", "double y", body, **constants)
    assert not any(offer.rule == "safe variance" for offer in offers(fuse(model, ())))
