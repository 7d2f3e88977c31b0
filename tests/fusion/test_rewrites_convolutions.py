"""Rewrites of convolutions keep the function, in float64, over all strides, pads and kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimizer.fusion.rewrites import REWRITES
from optimizer.fusion.rewrites.blocks import BLOCKS
from optimizer.model import Model

R = np.random.default_rng(5)
Rewriting = Callable[[Model, str], Model]
Operators = Callable[[Model], list[str]]
few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def convolutions(draw: st.DrawFn, axes: int, outputs: int = 9) -> tuple[str, str, dict[str, Any]]:
    """Input, body and constants of a convolution with few channels."""
    inputs, outputs = draw(st.integers(1, 4)), draw(st.integers(1, outputs))
    kernel = [draw(st.integers(1, 7)) for _ in range(axes)]
    strides = [draw(st.integers(1, 4))] * axes if draw(st.booleans()) else [draw(st.integers(1, 3)) for _ in range(axes)]
    pads = [draw(st.integers(0, 3)) for _ in range(2 * axes)]
    sizes = [draw(st.integers(max(1, extent - pads[axis]), 17)) for axis, extent in enumerate(kernel)]
    dilations = [draw(st.sampled_from([1, 1, 1, 2])) if size > 2 * extent else 1 for size, extent in zip(sizes, kernel, strict=True)]
    constants: dict[str, Any] = {"w": R.normal(size=(outputs, inputs, *kernel))}
    if draw(st.booleans()):
        constants["b"] = R.normal(size=outputs)
    behind = draw(st.sampled_from(["y = Identity(c)", "y = Relu(c)", "y = Clip(c, low)", "y = Add(c, low)", "y = Add(c, c)"]))
    constants["low"] = np.asarray(-0.5)
    attributes = f"strides={strides}, pads={pads}, dilations={dilations}"
    body = f"c = Conv<{attributes}>(x, w{', b' if 'b' in constants else ''}) {behind}"
    return f"double[{','.join(map(str, (2, inputs, *sizes)))}] x", body, constants


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@few
@given(data=st.data())
def test_blocks_compute_the_same(block: tuple[int, ...], data: st.DataObject, build: Any, rewrite: Rewriting) -> None:
    inputs, body, constants = data.draw(convolutions(len(block)))
    rewrite(build(inputs, "double y", body, **constants), f"blocks of {' x '.join(map(str, block))} into channels")


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("rule", ["strides into channels", "taps over padding cut off", "convolution of one window into Gemm"])
@few
@given(data=st.data())
def test_a_rewritten_convolution_computes_the_same(rule: str, axes: int, data: st.DataObject, build: Any, rewrite: Rewriting) -> None:
    inputs, body, constants = data.draw(convolutions(axes))
    rewrite(build(inputs, "double y", body, **constants), rule)


@pytest.mark.parametrize(
    ("block", "size", "written"),
    [
        ("4 x 4", "16,16", ["Conv", "DepthToSpace"]),
        ("2 x 4", "16,16", ["Conv"]),
        ("1 x 16", "16,16", ["Conv", "Reshape", "Transpose", "Reshape"]),
        ("4 x 4", "15,18", ["Conv", "DepthToSpace", "Slice"]),
        ("4 x 4", "5,5", ["Conv"]),
    ],
)
def test_a_block_is_tried_where_it_fills_the_registers(
    block: str, size: str, written: list[str], build: Any, rewrite: Rewriting, operators: Operators
) -> None:
    model = build(f"double[1,8,{size}] x", "double y", "[out] y = Conv<pads=[1,1,1,1]>(x, w)", w=R.normal(size=(1, 8, 3, 3)))
    assert operators(rewrite(model, f"blocks of {block} into channels")) == written


def test_a_kernel_of_one_pixel_gains_nothing_from_blocks(build: Any, rewrite: Rewriting, operators: Operators) -> None:
    model = build("double[1,8,16,16] x", "double y", "y = Conv(x, w)", w=R.normal(size=(8, 8, 1, 1)))
    assert operators(rewrite(model, "blocks of 1 x 2 into channels")) == ["Conv"]


def test_a_filter_over_one_channel_reads_a_stride_at_once(build: Any, rewrite: Rewriting, operators: Operators) -> None:
    model = build("double[1,1,640] x", "double y", "[stft] y = Conv<strides=[128]>(x, w)", w=R.normal(size=(6, 1, 256)))
    assert operators(rewrite(model, "strides into channels")) == ["Reshape", "Transpose", "Conv"]


@few
@given(
    size=st.integers(1, 4), inputs=st.integers(1, 5), outputs=st.integers(1, 5), bias=st.booleans(), then=st.sampled_from(["Relu", "Exp"])
)
def test_a_transposed_convolution_without_overlap_computes_pixels(
    size: int, inputs: int, outputs: int, bias: bool, then: str, build: Any, rewrite: Rewriting, operators: Operators
) -> None:
    constants = {"w": R.normal(size=(inputs, outputs, size, size))} | ({"b": R.normal(size=outputs)} if bias else {})
    body = f"[up] u = ConvTranspose<strides=[{size},{size}]>(x, w{', b' if bias else ''}) y = {then}(u)"
    after = rewrite(build(f"double[2,{inputs},3,5] x", "double y", body, **constants), "transposed convolution into pixels")
    assert operators(after) == ["Conv", then, "DepthToSpace"]


@pytest.mark.parametrize(
    "attributes", ["strides=[3,3]", "strides=[2,2], pads=[0,0,1,1]", "strides=[2,2], output_padding=[1,1]", "strides=[2,1]"]
)
def test_a_transposed_convolution_with_overlap_or_a_cut_stays(
    attributes: str, build: Any, rewrite: Rewriting, operators: Operators
) -> None:
    model = build("double[1,2,4,4] x", "double y", f"y = ConvTranspose<{attributes}>(x, w)", w=R.normal(size=(2, 3, 2, 2)))
    assert operators(rewrite(model, "transposed convolution into pixels")) == ["ConvTranspose"]


def test_a_head_of_transposed_convolutions_is_laid_back_once(build: Any, rewrite: Rewriting, operators: Operators) -> None:
    body = "a = ConvTranspose<strides=[2,2]>(x, w, b) r = Relu(a) c = ConvTranspose<strides=[2,2]>(r, v) y = Sigmoid(c)"
    constants = {"w": R.normal(size=(6, 5, 2, 2)), "b": R.normal(size=5), "v": R.normal(size=(5, 1, 2, 2))}
    model = build("double[1,6,3,4] x", "double y", body, **constants)
    once = rewrite(model, "transposed convolution into pixels")
    twice = rewrite(once, "transposed convolution into pixels")
    assert operators(twice) == ["Conv", "Relu", "Conv", "Sigmoid", "DepthToSpace", "DepthToSpace"]


@few
@given(
    first=st.sampled_from([(1, 1), (3, 2)]),
    second=st.sampled_from([(1, 1), (2, 3)]),
    biases=st.tuples(st.booleans(), st.booleans()),
    pads=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    stride=st.integers(1, 2),
)
def test_two_convolutions_with_nothing_between_are_one(
    first: tuple[int, int],
    second: tuple[int, int],
    biases: tuple[bool, bool],
    pads: tuple[int, int],
    stride: int,
    build: Any,
    rewrite: Rewriting,
) -> None:
    constants: dict[str, Any] = {"v": R.normal(size=(5, 3, *first)), "w": R.normal(size=(4, 5, *second))}
    constants |= {name: R.normal(size=count) for name, count, wanted in zip("bc", (5, 4), biases, strict=True) if wanted}
    names = [f", {name}" if wanted else "" for name, wanted in zip("bc", biases, strict=True)]
    a = f"a = Conv<pads={[pads[0]] * 4}, strides=[{stride},{stride}]>(x, v{names[0]})"
    model = build("double[2,3,8,9] x", "double y", f"{a} y = Conv<pads={[pads[1]] * 4}>(a, w{names[1]})", **constants)
    after = rewrite(model, "convolution of convolution")
    pixels = [kernel == (1, 1) and not pad for kernel, pad in zip((first, second), pads, strict=True)]
    exact = pixels[1] or (pixels[0] and stride == 1 and not (pads[1] and biases[0]))
    assert len(after.graph.graph) == (1 if exact else 2)


def test_a_product_that_multiplies_too_much_stays_two(build: Any, rewrite: Rewriting, operators: Operators) -> None:
    constants = {"v": R.normal(size=(2, 32, 1, 1)), "w": R.normal(size=(32, 2, 1, 1))}
    assert operators(
        rewrite(build("double[1,32,4,4] x", "double y", "a = Conv(x, v) y = Conv(a, w)", **constants), "convolution of convolution")
    ) == [
        "Conv",
        "Conv",
    ]


def test_what_is_read_between_two_convolutions_keeps_them_apart(build: Any, rewrite: Rewriting, operators: Operators) -> None:
    constants = {"v": R.normal(size=(4, 4, 1, 1)), "w": R.normal(size=(4, 4, 1, 1))}
    model = build("double[1,4,4,4] x", "double y, double a", "a = Conv(x, v) y = Conv(a, w)", **constants)
    assert operators(rewrite(model, "convolution of convolution")) == ["Conv", "Conv"]


def test_taps_that_see_only_padding_are_cut(build: Any, rewrite: Rewriting) -> None:
    model = build("double[1,4,1,6] x", "double y", "y = Conv<pads=[2,2,2,2]>(x, w)", w=R.normal(size=(3, 4, 5, 5)))
    after = rewrite(model, "taps over padding cut off")
    (node,) = after.graph.graph
    assert node.inputs[1] is not None
    assert list(node.inputs[1].shape or ()) == [3, 4, 1, 5]
    assert list(node.attributes.get_ints("pads", ())) == [0, 2, 0, 2]


@few
@given(
    order=st.permutations([(0, 0), (1, 0), (0, 1), (1, 1)]),
    chained=st.booleans(),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    size=st.sampled_from([(8, 6), (8, 7)]),
)
def test_pixels_of_a_grid_and_their_convolution_are_one_convolution(
    order: list[tuple[int, int]],
    chained: bool,
    kernel: int,
    stride: int,
    size: tuple[int, int],
    build: Any,
    rewrite: Rewriting,
    operators: Operators,
) -> None:
    constants: dict[str, Any] = {"w": R.normal(size=(5, 12, kernel, kernel)), "b": R.normal(size=5)}
    constants |= {"end": np.array([99]), "two": np.array([2]), "h": np.array([2]), "v": np.array([-1]), "ends": np.array([99, 99])}
    constants |= {"zero": np.array([0]), "one": np.array([1]), "twos": np.array([2, 2]), "hw": np.array([2, 3])}
    lines = []
    for place, (row, column) in enumerate(order):
        rows, columns = ("zero", "one")[row], ("zero", "one")[column]
        if chained:
            lines += [f"r{place} = Slice(x, {rows}, end, h, two)", f"p{place} = Slice(r{place}, {columns}, end, v, two)"]
        else:
            constants[f"s{place}"] = np.array([row, column])
            lines.append(f"p{place} = Slice(x, s{place}, ends, hw, twos)")
    used = {
        name: array for name, array in constants.items() if any(f"{name}," in line or f"{name})" in line for line in lines) or name in "wb"
    }
    lines.append(f"c = Concat<axis=1>(p0, p1, p2, p3) y = Conv<pads=[1,0,0,1], strides=[{stride},{stride}]>(c, w, b)")
    if size[1] % 2:
        lines = [f"y = Conv<pads={[1, 1, 1, 1]}>(x, w)"]
        used = {"w": R.normal(size=(5, 3, kernel, kernel))}
    after = rewrite(build(f"double[1,3,{size[0]},{size[1]}] x", "double y", " ".join(lines), **used), "Focus into one convolution")
    assert operators(after) == ["Conv"]


def test_a_grid_that_is_no_grid_stays(build: Any, rewrite: Rewriting, operators: Operators) -> None:
    constants = {"s": np.array([0, 0]), "t": np.array([2, 0]), "e": np.array([99, 99]), "a": np.array([2, 3]), "two": np.array([2, 2])}
    body = "p = Slice(x, s, e, a, two) q = Slice(x, t, e, a, two) c = Concat<axis=1>(p, p) y = Conv(c, w) z = Identity(q)"
    model = build("double[1,3,8,8] x", "double y, double z", body, w=R.normal(size=(2, 6, 1, 1)), **constants)
    assert operators(rewrite(model, "Focus into one convolution")).count("Slice") == 1
    body = "p = Slice(x, t, e, a, two) c = Concat<axis=1>(p, p) y = Conv(c, w)"
    model = build("double[1,3,8,8] x", "double y", body, w=R.normal(size=(2, 6, 1, 1)), **{k: v for k, v in constants.items() if k != "s"})
    assert operators(rewrite(model, "Focus into one convolution")) == ["Slice", "Concat", "Conv"]


@few
@given(
    kind=st.sampled_from(["Conv", "Gemm", "Gemm<transB=1>", "MatMul"]),
    outputs=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    biased=st.integers(0, 3),
    same_kernel=st.booleans(),
)
def test_siblings_are_one_layer_and_a_split(
    kind: str, outputs: list[int], biased: int, same_kernel: bool, build: Any, rewrite: Rewriting, operators: Operators
) -> None:
    constants: dict[str, Any] = {}
    lines = []
    for place, count in enumerate(outputs):
        extent = 3 if place and not same_kernel else 1
        shape = {"Conv": (count, 4, extent, extent), "Gemm": (4, count), "Gemm<transB=1>": (count, 4), "MatMul": (4, count)}[kind]
        constants[f"w{place}"] = R.normal(size=shape)
        bias = place < biased and kind != "MatMul"
        constants |= {f"b{place}": R.normal(size=count)} if bias else {}
        lines.append(f"[l{place}] y{place} = {kind}(x, w{place}{f', b{place}' if bias else ''})")
    declared = ", ".join(f"double y{place}" for place in range(len(outputs)))
    size = "1,4,5,5" if kind == "Conv" else "3,4"
    after = rewrite(build(f"double[{size}] x", declared, " ".join(lines), **constants), "siblings into one layer")
    joins = len(outputs) > 1 and any(count % 16 for count in outputs) and (same_kernel or kind != "Conv")
    if joins:
        assert operators(after) == [kind.partition("<")[0], "Split"]
        assert after.layers[0].name == "+".join(f"l{place}" for place in range(len(outputs)))


def test_siblings_that_read_in_another_way_stay(build: Any, rewrite: Rewriting, operators: Operators) -> None:
    body = "y = Conv<pads=[1,1,1,1]>(x, w) z = Conv<pads=[0,1,2,1]>(x, v)"
    model = build("double[1,4,5,5] x", "double y, double z", body, w=R.normal(size=(3, 4, 3, 3)), v=R.normal(size=(3, 4, 3, 3)))
    assert operators(rewrite(model, "siblings into one layer")) == ["Conv", "Conv"]


@pytest.mark.parametrize("form", ["x, m", "m, x"])
@pytest.mark.parametrize("product", ["x, s", "s, x"])
def test_a_gate_beside_its_input_is_one_pass(form: str, product: str, build: Any, rewrite: Rewriting, operators: Operators) -> None:
    body = f"s = GlobalAveragePool(x) m = Mul({product}) y = Add({form})"
    rule = "gate " + form.replace("m", product.replace(", ", " ")).replace(",", " +")
    assert operators(rewrite(build("double[2,3,4,5] x", "double y", body), rule)) == ["GlobalAveragePool", "Add", "Mul"]


def test_a_product_of_the_same_size_is_no_gate(build: Any, rewrite: Rewriting, operators: Operators) -> None:
    model = build("double[2,3] x, double[2,3] s", "double y", "m = Mul(x, s) y = Add(x, m)")
    assert operators(rewrite(model, "gate x + x s")) == ["Mul", "Add"]
    grown = build("double[2,1] x, double[3] s", "double y", "m = Mul(x, s) y = Add(x, m)")
    assert operators(rewrite(grown, "gate x + x s")) == ["Mul", "Add"]


@few
@given(inputs=st.integers(1, 6), outputs=st.integers(1, 6), bias=st.booleans(), alone=st.booleans(), kernel=st.sampled_from([1, 1, 3]))
def test_a_mean_runs_over_the_fewer_channels(
    inputs: int, outputs: int, bias: bool, alone: bool, kernel: int, build: Any, rewrite: Rewriting
) -> None:
    constants = {"w": R.normal(size=(outputs, inputs, kernel, kernel))} | ({"b": R.normal(size=outputs)} if bias else {})
    body = f"c = Conv(x, w{', b' if bias else ''}) y = GlobalAveragePool(c)"
    after = rewrite(
        build(f"double[2,{inputs},4,5] x", "double y" if alone else "double y, double c", body, **constants),
        "mean before convolution of pixels",
    )
    moved = any(fusion.rule == "mean before convolution of pixels" for fusion in after.fusions)
    assert moved == (kernel == 1 and (alone or inputs < outputs))


def test_every_rewrite_of_a_convolution_refuses_what_it_can_not_read(build: Any, rewrite: Rewriting, operators: Operators) -> None:
    bodies = ['y = Conv<auto_pad="SAME_UPPER">(x, w)', "y = Conv<group=2>(x, v)", "k = Mul(w, s) y = Conv(x, k)"]
    constants = {"w": R.normal(size=(1, 2, 3, 3)), "v": R.normal(size=(2, 1, 3, 3))}
    for body in bodies:
        used = {name: array for name, array in constants.items() if f"{name})" in body or f"{name}," in body}
        model = build("double[1,2,16,16] x, double s", "double y", body, **used)
        for rule in REWRITES:
            assert operators(rewrite(model, rule.name)).count("Conv") == 1


@few
@given(
    scale=st.sampled_from([(), (1,), (3, 1, 1), (1, 3, 1, 1), (4,), (3, 4, 4)]),
    shift=st.sampled_from([(), (3, 1, 1), (1, 1, 1, 4)]),
    between=st.booleans(),
)
def test_scale_and_shift_of_channels_are_a_depthwise_convolution(
    scale: tuple[int, ...], shift: tuple[int, ...], between: bool, build: Any, rewrite: Rewriting, operators: Operators
) -> None:
    outputs = "double y, double m" if between else "double y"
    model = build("double[2,3,4,4] x", outputs, "m = Mul(x, s) y = Add(m, t)", s=R.normal(size=scale), t=R.normal(size=shift))
    after = rewrite(model, "scale and shift into depthwise convolution")
    by_channel = all(size in {(), (1,), (3, 1, 1), (1, 3, 1, 1)} for size in (scale, shift))
    assert operators(after) == (["Conv"] if by_channel and not between else ["Mul", "Add"])


def test_a_bias_that_padding_would_stand_in_for_keeps_two_convolutions_apart(build: Any, rewrite: Rewriting, operators: Operators) -> None:
    constants = {"v": R.normal(size=(4, 4, 1, 1)), "b": R.normal(size=4), "w": R.normal(size=(4, 4, 3, 3))}
    for pads, count in (("1,1,1,1", 2), ("0,0,0,0", 1)):
        model = build("double[1,4,5,5] x", "double y", f"a = Conv(x, v, b) y = Conv<pads=[{pads}]>(a, w)", **constants)
        assert len(operators(rewrite(model, "convolution of convolution"))) == count


def test_a_tap_over_padding_stays_where_the_next_one_begins_inside(build: Any, rewrite: Rewriting) -> None:
    model = build("double[1,2,3] x", "double y", "y = Conv<dilations=[3], pads=[1,0]>(x, w)", w=R.normal(size=(3, 2, 2)))
    assert not rewrite(model, "taps over padding cut off").fusions
