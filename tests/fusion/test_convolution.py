"""Scale and shift of a channel go into the weight only where the function stays the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.fusion import fuse
from optimizer.fusion.convolution import Before, Behind
from optimizer.model import Fusion, Model

R = np.random.default_rng(3)
NORMALIZATION = {
    "gamma": R.uniform(0.5, 2, 4),
    "beta": R.normal(size=4),
    "mean": R.normal(size=4),
    "variance": R.uniform(0.5, 2, 4),
}
CONVOLUTION = {"w": R.normal(size=(4, 3, 3, 3))}
SCALES: list[tuple[int, ...]] = [(), (1,), (4, 1, 1), (1, 4, 1, 1), (6,), (4, 1, 6), (1, 1, 1, 1, 1), (2, 4, 1, 1)]


def conv(build: Callable[..., Model], after: str, **constants: Any) -> Model:
    body = f'["a.conv"] y = Conv<pads=[1,1,1,1]>(x, w) {after}'
    return build("double[2,3,6,6] x", "double z", body, **CONVOLUTION, **constants)


def test_a_batch_normalization_goes_into_the_convolution_and_the_names_are_joined(build: Any, fused: Any, operators: Any) -> None:
    model = conv(build, '["a.bn"] z = BatchNormalization<epsilon=0.001>(y, gamma, beta, mean, variance)', **NORMALIZATION)
    after = fused(model)
    assert operators(after) == ["Conv"]
    assert after.fusions == (Fusion("BatchNormalization into Conv", ("a.conv", "a.bn"), "a.conv+bn"), *after.fusions[1:])
    assert [layer.name for layer in after.layers] == ["a.conv+bn"]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("operator", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_arithmetic_of_a_channel_goes_into_grouped_and_depthwise_convolutions(
    build: Any, fused: Any, operators: Any, operator: str, group: int, bias: bool
) -> None:
    c = R.uniform(0.5, 2, (4, 1, 1))
    weights = {"w": R.normal(size=(4, 4 // group, 3, 3)), "c": c} | ({"b": R.normal(size=4)} if bias else {})
    body = f"y = Conv<group={group}, pads=[1,1,1,1]>(x, w{', b' if bias else ''}) z = {operator}(y, c)"
    assert operators(fused(build("double[1,4,6,6] x", "double z", body, **weights))) == ["Conv"]


def test_a_batch_normalization_goes_into_a_transposed_convolution(build: Any, fused: Any, operators: Any) -> None:
    body = "y = ConvTranspose<strides=[2,2]>(x, w) z = BatchNormalization(y, gamma, beta, mean, variance)"
    model = build("double[1,6,5,5] x", "double z", body, w=R.normal(size=(6, 4, 3, 3)), **NORMALIZATION)
    assert operators(fused(model)) == ["ConvTranspose"]


def test_a_grouped_transposed_convolution_shares_out_its_channels(build: Any) -> None:
    torch = pytest.importorskip("torch", reason="onnx.reference can't compute a grouped ConvTranspose")
    x, w, c = R.normal(size=(1, 6, 5, 5)), R.normal(size=(6, 2, 3, 3)), R.normal(size=(4, 1, 1))
    fused = fuse(build("double[1,6,5,5] x", "double z", "y = ConvTranspose<group=2>(x, w) z = Mul(y, c)", w=w, c=c))
    (node,) = fused.graph.graph
    scaled = node.inputs[1].const_value.numpy().copy()
    convolve = torch.nn.functional.conv_transpose2d
    got, want = (convolve(torch.tensor(x), torch.tensor(weight), groups=2).numpy() for weight in (scaled, w))
    np.testing.assert_allclose(got, want * c, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [(), (1,), (4,), (1, 4)])
def test_a_batch_normalization_goes_into_a_gemm_with_its_alpha_and_beta(
    build: Any, fused: Any, operators: Any, transposed: int, bias: tuple[int, ...]
) -> None:
    body = f"y = Gemm<transB={transposed}, alpha=0.5, beta=2.0>(x, w, b) z = BatchNormalization(y, gamma, beta, mean, variance)"
    w = R.normal(size=(4, 5) if transposed else (5, 4))
    assert operators(fused(build("double[3,5] x", "double z", body, w=w, b=R.normal(size=bias), **NORMALIZATION))) == ["Gemm"]


def test_a_gemm_whose_bias_differs_by_sample_is_left_alone(build: Any, fused: Any, operators: Any) -> None:
    constants = {"w": R.normal(size=(5, 4)), "b": R.normal(size=(3, 4)), "c": R.normal(size=4)}
    model = build("double[3,5] x", "double z", "y = Gemm(x, w, b) z = Mul(y, c)", **constants)
    assert operators(fused(model)) == ["Gemm", "Mul"]


def test_a_product_of_matrices_with_a_bias_becomes_a_gemm(build: Any, fused: Any, operators: Any) -> None:
    model = build("double[n,5] x", "double[n,4] z", "y = MatMul(x, w) z = Add(b, y)", w=R.normal(size=(5, 4)), b=R.normal(size=4))
    assert operators(fused(model)) == ["Gemm"]


def test_a_product_of_more_dimensions_takes_a_scale_but_no_bias(build: Any, fused: Any, operators: Any, reasons: Any) -> None:
    constants = {"w": R.normal(size=(5, 4)), "c": R.normal(size=4), "b": R.normal(size=4)}
    model = build("double[2,n,5] x", "double[2,n,4] z", "y = MatMul(x, w) s = Mul(y, c) z = Add(s, b)", **constants)
    assert operators(fused(model)) == ["MatMul", "Add"]
    plain = build("double[2,n,5] x", "double[2,n,4] z", "y = MatMul(x, w) z = Add(y, b)", w=constants["w"], b=constants["b"])
    assert "a product of more than two dimensions takes no bias" in reasons(plain, Behind("MatMul", "Add"))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from(SCALES),
    operator=st.sampled_from(["Mul", "Add", "Div", "Sub"]),
    left=st.booleans(),
    reader=st.sampled_from(["none", "node", "output", "weight"]),
)
def test_scale_goes_into_the_weight_only_where_the_function_stays_the_same(
    build: Any, fused: Any, operators: Any, shape: tuple[int, ...], operator: str, left: bool, reader: str
) -> None:
    operands = "c, y" if left else "y, c"
    another = {"none": "", "node": " v = Relu(y)", "output": "", "weight": " v = ReduceSum(w)"}[reader]
    outputs = "double z" + {"none": "", "output": ", double y"}.get(reader, ", double v")
    body = f"y = Conv<pads=[1,1,1,1]>(x, w) z = {operator}({operands}){another}"
    model = build("double[2,3,6,6] x", outputs, body, **CONVOLUTION, c=R.uniform(0.5, 2, shape))
    after = fused(model)
    shares = reader in {"node", "output"} or (reader == "weight" and operator in {"Mul", "Div"})
    by_channel = shape in {(), (1,), (4, 1, 1), (1, 4, 1, 1)}
    mirrored = left and operator in {"Div", "Sub"}
    assert (operator not in operators(after)) == (by_channel and not shares and not mirrored)


def test_a_weight_with_another_reader_keeps_a_scale_out_but_not_a_shift(build: Any, fused: Any, operators: Any, reasons: Any) -> None:
    body = "y = Conv(x, w) z = Mul(y, c) v = Conv(u, w)"
    inputs, outputs = "double[1,3,6,6] x, double[1,3,6,6] u", "double z, double v"
    model = build(inputs, outputs, body, **CONVOLUTION, c=R.normal(size=(4, 1, 1)))
    assert operators(fused(model)) == ["Conv", "Mul", "Conv"]
    assert reasons(model, Behind("Conv", "Mul")) >= {"the weight has another reader"}
    shifted = build(inputs, outputs, body.replace("Mul", "Add"), **CONVOLUTION, c=R.normal(size=(4, 1, 1)))
    assert operators(fused(shifted)) == ["Conv", "Conv"]


def test_a_weight_that_the_caller_may_replace_is_left_alone(build: Any, fused: Any, operators: Any, reasons: Any) -> None:
    model = build("double[1,3,6,6] x, double[4,3,3,3] w", "double z", "y = Conv(x, w) z = Mul(y, c)", c=R.normal(size=(4, 1, 1)))
    assert operators(fused(model)) == ["Conv", "Mul"]
    assert reasons(model, Behind("Conv", "Mul")) >= {"the weight is computed, or open to the caller"}
    with_default = build(
        "double[1,3,6,6] x, double[4,3,3,3] v", "double z", "y = Conv(x, v) z = Mul(y, c)", c=R.normal(size=(4, 1, 1)), v=CONVOLUTION["w"]
    )
    assert operators(fused(with_default)) == ["Conv", "Mul"]


def test_a_weight_that_is_an_output_stays_what_it_is(build: Any, fused: Any, operators: Any) -> None:
    model = build(
        "double[1,3,6,6] x", "double z, double[4,3,3,3] w", "y = Conv(x, w) z = Mul(y, c)", **CONVOLUTION, c=R.normal(size=(4, 1, 1))
    )
    assert operators(fused(model)) == ["Conv", "Mul"]


def test_a_value_that_a_branch_reads_from_outside_has_another_reader(build: Any, fused: Any, operators: Any) -> None:
    branches = "then_branch = yes () => (double[1,4,4,4] t) { t = Relu(y) }, else_branch = no () => (double[1,4,4,4] e) { e = Neg(y) }"
    body = f"y = Conv(x, w) z = Mul(y, c) v = If(flag)<{branches}>"
    model = build("double[1,3,6,6] x, bool flag", "double z, double v", body, **CONVOLUTION, c=R.normal(size=(4, 1, 1)))
    assert operators(fused(model)) == ["Conv", "Mul", "If"]


def test_a_normalization_in_training_mode_is_left_alone(build: Any, reasons: Any) -> None:
    body = "z, m, v = BatchNormalization<training_mode=1>(y, gamma, beta, mean, variance)"
    model = conv(build, body, **NORMALIZATION)
    assert reasons(model, Behind("Conv", "BatchNormalization")) >= {"the normalization is in training mode"}


def test_a_normalization_along_another_axis_than_the_product_is_left_alone(build: Any, fused: Any, operators: Any) -> None:
    body = "y = MatMul(x, w) z = BatchNormalization(y, gamma, beta, mean, variance)"
    model = build("double[2,4,5] x", "double z", body, w=R.normal(size=(5, 4)), **NORMALIZATION)
    assert operators(fused(model)) == ["MatMul", "BatchNormalization"]


def test_a_half_precision_weight_that_would_overflow_is_left_alone(build: Any, fused: Any, operators: Any, reasons: Any) -> None:
    def model(scale: float) -> Model:
        w, c = np.full((1, 1, 1, 1), 600, np.float16), np.array(scale, np.float16)
        return build("float16[1,1,2,2] x", "float16 z", "y = Conv(x, w) z = Mul(y, c)", w=w, c=c)

    assert operators(fused(model(2.0))) == ["Conv"]
    assert reasons(model(600.0), Behind("Conv", "Mul")) == {"the new weight leaves the range of its type"}


@pytest.mark.parametrize("operator", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("shape", [(), (4, 1, 1), (1, 4, 1, 1)])
def test_arithmetic_before_an_unpadded_convolution_goes_into_it(
    build: Any, fused: Any, operators: Any, operator: str, group: int, shape: tuple[int, ...]
) -> None:
    constants = {"w": R.normal(size=(6, 4 // group, 3, 3)), "b": R.normal(size=6), "c": R.uniform(0.5, 2, shape)}
    model = build("double[1,4,6,6] x", "double z", f"y = {operator}(x, c) z = Conv<group={group}>(y, w, b)", **constants)
    assert operators(fused(model)) == ["Conv"]


def test_a_shift_before_a_padded_convolution_stays_but_a_scale_goes_in(build: Any, fused: Any, operators: Any, reasons: Any) -> None:
    def model(operator: str, pads: str) -> Model:
        return build(
            "double[1,3,6,6] x", "double z", f"y = {operator}(x, c) z = Conv<{pads}>(y, w)", **CONVOLUTION, c=R.normal(size=(3, 1, 1))
        )

    for pads in ("pads=[1,1,1,1]", 'auto_pad="SAME_UPPER"'):
        assert operators(fused(model("Mul", pads))) == ["Conv"]
        assert operators(fused(model("Add", pads))) == ["Add", "Conv"]
        assert reasons(model("Add", pads), Before("Add", "Conv")) >= {"padding puts zeros where the shift would stand"}


def test_a_normalization_before_a_pointwise_convolution_goes_into_it(build: Any, fused: Any, operators: Any) -> None:
    body = "y = BatchNormalization(x, gamma, beta, mean, variance) z = Conv(y, w)"
    assert operators(fused(build("double[n,4,6,6] x", "double z", body, w=R.normal(size=(3, 4, 1, 1)), **NORMALIZATION))) == ["Conv"]


@pytest.mark.parametrize("operator", ["Mul", "Add"])
def test_arithmetic_before_a_gemm_goes_into_it(build: Any, fused: Any, operators: Any, operator: str) -> None:
    constants = {"w": R.normal(size=(4, 5)), "b": R.normal(size=4), "c": R.normal(size=5)}
    body = f"y = {operator}(c, x) z = Gemm<transB=1, alpha=0.5, beta=2.0>(y, w, b)"
    assert operators(fused(build("double[3,5] x", "double z", body, **constants))) == ["Gemm"]


def test_arithmetic_that_makes_channels_out_of_one_is_left_alone(build: Any, fused: Any, operators: Any) -> None:
    model = build("double[1,1,6,6] x", "double z", "y = Mul(x, c) z = Conv(y, w)", **CONVOLUTION, c=R.normal(size=(3, 1, 1)))
    assert operators(fused(model)) == ["Mul", "Conv"]
