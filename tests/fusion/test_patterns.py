"""Activations, normalizations and means that were written out become one operator, and only where every constant is right."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from optimizer.fusion.activation import Gelu, HardSwish, HardSwishOfSigmoid
from optimizer.fusion.normalization import IntoNormalization, LayerNormalization
from optimizer.fusion.pooling import MeanOfPixels

R = np.random.default_rng(5)

CURVES = {
    "Erf of x / root": "a = Div(x, root) curve = Erf(a)",
    "Erf of x * inverse": "a = Mul(inverse, x) curve = Erf(a)",
    "Tanh with Pow": "p = Pow(x, three) q = Mul(cubic, p) a = Add(x, q) t = Mul(factor, a) curve = Tanh(t)",
    "Tanh with Mul": "p = Mul(x, x) r = Mul(x, p) q = Mul(r, cubic) a = Add(q, x) t = Mul(a, factor) curve = Tanh(t)",
    "Tanh with the cubic inside": "p = Mul(x, cubic) r = Mul(x, p) q = Mul(x, r) a = Add(x, q) t = Mul(a, factor) curve = Tanh(t)",
}
PRODUCTS = (
    "g = Mul({x}, {gate}) z = Mul({half}, g)",
    "g = Mul({gate}, {half}) z = Mul({x}, g)",
    "g = Mul({x}, {half}) z = Mul({gate}, g)",
    "g = Mul({half}, {x}) z = Mul(g, {gate})",
    "g = Mul({gate}, {x}) z = Mul(g, {half})",
)
GELU = {
    "half": 0.5,
    "one": 1.0,
    "root": math.sqrt(2),
    "inverse": math.sqrt(0.5),
    "three": 3.0,
    "cubic": 0.044715,
    "factor": math.sqrt(2 / math.pi),
}


def gelu(build: Any, curve: str, product: str, kind: type = np.float64, **changes: float) -> Any:
    body = f"{CURVES[curve]} gate = Add(one, curve) {product.format(x='x', gate='gate', half='half')}"
    constants = {name: kind(value) for name, value in (GELU | changes).items()}
    word = {np.float64: "double", np.float32: "float", np.float16: "float16"}[kind]
    return build(f"{word}[2,7] x", f"{word} z", body, **constants)


@pytest.mark.parametrize(("curve", "product"), list(itertools.product(CURVES, PRODUCTS)))
def test_gelu_is_found_in_every_order_of_its_factors(build: Any, fused: Any, operators: Any, curve: str, product: str) -> None:
    after = fused(gelu(build, curve, product))
    assert operators(after) == ["Gelu"]
    approximate = next(iter(after.graph.graph)).attributes.get_string("approximate", "none")
    assert approximate == ("none" if "Erf" in curve else "tanh")


@pytest.mark.parametrize("name", ["half", "one", "root"])
def test_gelu_is_left_alone_where_a_constant_is_another(build: Any, fused: Any, operators: Any, reasons: Any, name: str) -> None:
    model = gelu(build, "Erf of x / root", PRODUCTS[0], **{name: 1.5})
    assert "Gelu" not in operators(fused(model))
    assert any("the constant is not" in reason for reason in reasons(model, Gelu("none", "xg.h")))


def test_a_constant_counts_as_right_when_its_own_type_can_not_tell(build: Any, fused: Any, operators: Any) -> None:
    assert operators(fused(gelu(build, "Erf of x / root", PRODUCTS[0], np.float16))) == ["Gelu"]
    assert "Gelu" not in operators(fused(gelu(build, "Erf of x / root", PRODUCTS[0], root=float(np.float16(math.sqrt(2))))))


def test_gelu_whose_middle_is_read_elsewhere_is_left_alone(build: Any, fused: Any, operators: Any) -> None:
    body = f"{CURVES['Erf of x / root']} gate = Add(one, curve) g = Mul(x, gate) z = Mul(g, half)"
    model = build("double[2,7] x", "double z, double gate", body, **GELU)
    assert "Gelu" not in operators(fused(model))


RAMP = "a = Add(x, three) r = Clip(a, low, high)"
SWISHES = (
    f"{RAMP} m = Mul(x, r) z = Div(m, six)",
    f"{RAMP} m = Div(r, six) z = Mul(m, x)",
    f"{RAMP} m = Mul(r, x) z = Mul(sixth, m)",
    f"{RAMP} m = Mul(r, sixth) z = Mul(x, m)",
)
SWISH = {"three": 3.0, "low": 0.0, "high": 6.0, "six": 6.0, "sixth": 1 / 6}


@pytest.mark.parametrize("body", SWISHES)
def test_hard_swish_is_found_in_four_nodes(build: Any, fused: Any, operators: Any, body: str) -> None:
    assert operators(fused(build("double[2,7] x", "double z", body, **SWISH))) == ["HardSwish"]


def test_hard_swish_with_another_ceiling_is_left_alone(build: Any, fused: Any, operators: Any, reasons: Any) -> None:
    model = build("double[2,7] x", "double z", SWISHES[0], **SWISH | {"high": 5.0})
    assert "HardSwish" not in operators(fused(model))
    assert reasons(model, HardSwish("xr/6")) >= {"the constant is not 6"}


def test_hard_swish_is_found_behind_hard_sigmoid(build: Any, fused: Any, operators: Any, reasons: Any) -> None:
    def model(word: str, slope: float) -> Any:
        return build(f"{word}[2,7] x", f"{word} z", f"g = HardSigmoid<alpha={slope}, beta=0.5>(x) z = Mul(g, x)")

    assert operators(fused(model("float", 0.16666667))) == ["HardSwish"]
    assert reasons(model("float", 0.2), HardSwishOfSigmoid(True)) == {"the slope is not 1/6 or the offset not 1/2"}
    assert reasons(model("double", 0.16666667), HardSwishOfSigmoid(True)) == {"in float64 the slope is not 1/6 but the float32 next to it"}


def normalization(
    build: Any, ending: str = "z = Div(d, s)", *, square: str = "q = Mul(d, d)", axes: Any = (-1,), keep: int = 1, **constants: Any
) -> Any:
    body = (
        f"m = ReduceMean<keepdims={keep}>(x, axes) d = Sub(x, m) {square} v = ReduceMean(q, axes) e = Add(v, epsilon) s = Sqrt(e) {ending}"
    )
    fixed = {"axes": np.array(axes), "epsilon": float(np.float32(1e-5)), "two": 2.0, "one": 1.0}
    return build("double[2,3,4,5] x", "double z", body, **fixed | constants)


@pytest.mark.parametrize("square", ["q = Mul(d, d)", "q = Pow(d, two)"])
@pytest.mark.parametrize("ending", ["z = Div(d, s)", "r = Reciprocal(s) z = Mul(d, r)", "r = Div(one, s) z = Mul(r, d)"])
@pytest.mark.parametrize("axes", [(-1,), (3,), (-2, -1), (2, 3, 1)])
def test_layer_normalization_is_found_in_primitives(
    build: Any, fused: Any, operators: Any, square: str, ending: str, axes: tuple[int, ...]
) -> None:
    after = fused(normalization(build, ending, square=square, axes=axes))
    assert operators(after) == ["LayerNormalization"]
    assert next(iter(after.graph.graph)).attributes.get_int("axis") == -len(axes)


def test_scale_and_shift_behind_a_layer_normalization_become_its_own(build: Any, fused: Any, operators: Any) -> None:
    ending = "n = Div(d, s) g = Mul(gamma, n) z = Add(g, beta)"
    for shape in ((5,), (1, 5), ()):
        after = fused(normalization(build, ending, gamma=R.normal(size=shape), beta=R.normal(size=shape)))
        assert operators(after) == ["LayerNormalization"]
        assert len(next(iter(after.graph.graph)).inputs) == 3


MULTIPLIED_OUT = (
    "minus = Neg(m) t = Mul(minus, k) z = Add(a, t)",
    "p = Mul(m, k) t = Neg(p) z = Add(a, t)",
    "minus = Neg(m) p = Mul(k, minus) t = Add(p, beta) z = Add(a, t)",
    "p = Mul(m, k) t = Sub(beta, p) z = Add(a, t)",
)


@pytest.mark.parametrize("shift", MULTIPLIED_OUT)
@pytest.mark.parametrize("factor", ["k = Mul(r, gamma)", "k = Identity(r)"])
def test_layer_normalization_is_found_with_scale_and_shift_multiplied_out(
    build: Any, fused: Any, operators: Any, factor: str, shift: str
) -> None:
    ending = f"r = Reciprocal(s) {factor} a = Mul(x, k) {shift}"
    constants = {name: R.normal(size=(1, 1, 1, 5)) for name in ("gamma", "beta") if name in ending}
    assert operators(fused(normalization(build, ending, **constants), tolerance=1e-9)) == ["LayerNormalization"]


def test_a_multiplied_out_normalization_with_another_factor_stays(build: Any, fused: Any, operators: Any) -> None:
    ending = "r = Reciprocal(s) k = Mul(r, gamma) a = Mul(x, k) minus = Neg(m) t = Mul(minus, r) z = Add(a, t)"
    assert "LayerNormalization" not in operators(fused(normalization(build, ending, gamma=R.normal(size=5)), tolerance=1e-9))


def test_a_scale_that_is_not_by_normalized_element_stays(build: Any, fused: Any, operators: Any, reasons: Any) -> None:
    model = normalization(build, "n = Div(d, s) z = Mul(n, gamma)", gamma=R.normal(size=(4, 1)))
    after = fused(model)
    assert operators(after) == ["LayerNormalization", "Mul"]
    assert reasons(after, IntoNormalization("Mul")) == {"the constant is not one number a normalized element"}


def test_a_mean_over_other_than_the_last_axes_is_no_layer_normalization(build: Any, fused: Any, operators: Any, reasons: Any) -> None:
    for axes in ((1,), (1, 3)):
        model = normalization(build, axes=axes)
        assert "LayerNormalization" not in operators(fused(model))
        assert reasons(model, LayerNormalization("d / s")) == {"the mean does not run over the last axes"}


def test_an_epsilon_that_float32_does_not_hold_is_left_alone(build: Any, fused: Any, operators: Any) -> None:
    assert "LayerNormalization" not in operators(fused(normalization(build, epsilon=1e-5)))


def test_a_normalization_over_a_free_size_is_left_alone(build: Any, reasons: Any) -> None:
    body = "m = ReduceMean(x, axes) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, axes) e = Add(v, epsilon) s = Sqrt(e) z = Div(d, s)"
    model = build("double[2,n] x", "double z", body, axes=np.array([-1]), epsilon=0.5)
    assert reasons(model, LayerNormalization("d / s")) == {"the normalized sizes are free"}


@pytest.mark.parametrize("axes", [(2, 3), (-1, -2), (3, 2)])
@pytest.mark.parametrize("keep", [0, 1])
def test_a_mean_over_all_pixels_is_global_average_pooling(build: Any, fused: Any, operators: Any, axes: tuple[int, ...], keep: int) -> None:
    model = build("double[n,3,4,5] x", "double z", f'["head.mean"] z = ReduceMean<keepdims={keep}>(x, axes)', axes=np.array(axes))
    after = fused(model)
    assert operators(after) == ["GlobalAveragePool"] + ([] if keep else ["Flatten"])
    assert [layer.name for layer in after.layers] == ["head.mean"]


@pytest.mark.parametrize(("shape", "axes"), [("2,3,4,5", (2,)), ("2,3,4,5", (1, 2, 3)), ("2,3,4", (2,)), ("2,3,4,5", (1, 2))])
def test_other_means_are_left_alone(build: Any, fused: Any, operators: Any, reasons: Any, shape: str, axes: tuple[int, ...]) -> None:
    model = build(f"double[{shape}] x", "double z", "z = ReduceMean(x, axes)", axes=np.array(axes))
    assert operators(fused(model)) == ["ReduceMean"]
    assert reasons(model, MeanOfPixels()) == {"the mean does not run over exactly the pixels of an image"}


def test_a_mean_of_integers_is_left_alone(build: Any, fused: Any, operators: Any) -> None:
    model = build("int32[2,3,4,5] x", "int32 z", "z = ReduceMean(x, axes)", axes=np.array([2, 3]))
    assert operators(fused(model)) == ["ReduceMean"]
