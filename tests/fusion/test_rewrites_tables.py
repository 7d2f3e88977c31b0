"""Look-ups instead of one-hot products, and arithmetic on rows done once on the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from optimizer.fusion import fuse
from optimizer.fusion.rewrites import offers, rewritten
from optimizer.fusion.rewrites.folded import ALONE
from optimizer.model import Model

R = np.random.default_rng(5)
Rewriting = Callable[[Model, str], Model]
Operators = Callable[[Model], list[str]]
few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
TABLE = R.uniform(0.1, 2, size=(7, 4))


def outputs(model: Model, **feeds: Any) -> list[Any]:
    import onnx_ir as ir

    return ReferenceEvaluator(ir.to_proto(model.graph)).run(None, feeds)


@pytest.mark.parametrize("kind", ["int64", "int32", "double"])
@pytest.mark.parametrize("first", [True, False])
def test_an_equal_product_is_a_look_up_and_what_is_no_class_gives_zeros(kind: str, first: bool, build: Any, operators: Operators) -> None:
    numpy_kind = {"double": "float64"}.get(kind, kind)
    body = f"e = Equal({'x, n' if first else 'n, x'}) c = Cast<to=11>(e) y = MatMul(c, w)"
    model = fuse(build(f"{kind}[3,5,1] x", "double y", body, n=np.arange(7, dtype=numpy_kind), w=TABLE), ())
    after = rewritten(model, offers(model)[:1])
    assert "MatMul" not in operators(after)
    assert "Gather" in operators(after)
    codes = np.array([0, 6, 3, 7, -1, 100, 2, 5, -7, 1, 4, 6, 0, 0, 8]).reshape(3, 5, 1).astype(numpy_kind)
    if kind == "double":
        codes[0] += 0.5
    np.testing.assert_array_equal(outputs(after, x=codes)[0], outputs(model, x=codes)[0])


def test_a_one_hot_product_is_a_look_up_and_an_index_may_count_from_the_end(build: Any, operators: Operators) -> None:
    model = fuse(
        build("int64[12] x", "double y", "c = OneHot(x, n, v) y = MatMul(c, w)", n=np.asarray(7), v=np.array([0.0, 1.0]), w=TABLE), ()
    )
    after = rewritten(model, offers(model)[:1])
    assert "OneHot" not in operators(after)
    codes = np.array([0, 6, 3, 7, -1, 100, -7, -8, 5, 1, -100, 2])
    wanted = np.where(((codes >= -7) & (codes < 7))[:, None], TABLE[np.clip(codes, -7, 6)], 0)
    np.testing.assert_array_equal(outputs(after, x=codes)[0], wanted)


@pytest.mark.parametrize(
    "body",
    [
        "c = OneHot(x, n, off) y = MatMul(c, w)",
        "c = OneHot<axis=0>(x, n, v) y = MatMul(c, w)",
        "c = OneHot(x, n, v) y = MatMul(c, w) z = Identity(c)",
        "e = Equal(x, n) c = Cast<to=11>(e) y = MatMul(c, w)",
    ],
)
def test_what_is_no_one_hot_code_stays(body: str, build: Any) -> None:
    constants = {"n": np.asarray(7), "off": np.array([0.5, 1.0]), "v": np.array([0.0, 1.0]), "w": TABLE}
    used = {name: array for name, array in constants.items() if f"{name})" in body or f"{name}," in body}
    model = fuse(build("int64[7] x", "double y, double z" if "z =" in body else "double y", body, **used), ())
    assert not any("look-up" in offer.rule for offer in offers(model))


ROWWISE = {
    "Add": "Add(r, row)",
    "Sub": "Sub(r, one)",
    "Mul": "Mul(r, wide)",
    "Div": "Div(r, row)",
    "LayerNormalization": "LayerNormalization<axis=-1, epsilon=0.01>(r, row, row)",
    "MatMul": "MatMul(r, m)",
    "Pow": "Pow(r, one)",
} | {operator: f"{operator}(r)" for operator in ALONE}


@pytest.mark.parametrize("operator", ROWWISE)
def test_arithmetic_on_rows_goes_into_the_table(operator: str, build: Any, rewrite: Rewriting, operators: Operators) -> None:
    constants = {"row": R.uniform(0.5, 1, 4), "one": np.asarray([0.25]), "wide": R.normal(size=(1, 1, 4)), "m": R.normal(size=(4, 6))}
    used = {name: array for name, array in constants.items() if f", {name}" in ROWWISE[operator]}
    model = build("int64[2,3] i", "double y", f"r = Gather(w, i) y = {ROWWISE[operator]}", w=TABLE, **used)
    assert operators(rewrite(model, f"{operator} into table")) == ["Gather"]


def test_a_whole_chain_goes_into_the_table_at_once(build: Any, rewrite: Rewriting, operators: Operators) -> None:
    body = "r = Gather(w, i) a = Add(r, row) n = LayerNormalization(a, row, row) m = MatMul(n, k) y = Gelu(m)"
    model = build("int64[2,3] i", "double y", body, w=TABLE, row=R.uniform(0.5, 1, 4), k=R.normal(size=(4, 3)))
    assert operators(rewrite(model, "Add into table")) == ["Gather"]


def test_rows_of_one_place_are_combined_in_the_table(build: Any, rewrite: Rewriting, operators: Operators) -> None:
    body = "r = Gather(w, i) p = Gather(v, i) s = Sigmoid(r) m = Mul(r, s) d = Sub(one, m) y = Add(d, p)"
    model = build("int64[2,3] i", "double y", body, w=TABLE, v=TABLE[:, :1], one=np.asarray(1.0))
    assert operators(rewrite(model, "Sigmoid into table")) == ["Gather"]


@pytest.mark.parametrize(
    "body",
    [
        "r = Gather(w, i) y = Add(r, b)",
        "r = Gather<axis=1>(w, i) y = Add(r, row)",
        "r = Gather(w, i) y = Add(r, column)",
        "r = Gather(w, i) q = Gather(v, j) y = Add(r, q)",
        "r = Gather(w, i) y = MatMul(row, r)",
        "r = Gather(w, i) y = Add(r, row) z = Gather(w, j)",
        "r = Gather(w, i) y = MatMul(r, large)",
        "r = Gather(w, i) y = LayerNormalization<axis=1>(r, square)",
    ],
)
def test_what_is_not_done_to_each_row_alone_stays(body: str, build: Any) -> None:
    constants = {
        "v": TABLE,
        "row": np.ones(4),
        "column": np.ones((4, 1)),
        "large": np.ones((4, 17)),
        "square": np.ones((4, 4)),
        "w": TABLE[:4],
    }
    used = {name: array for name, array in constants.items() if f"{name})" in body or f"{name}," in body}
    model = build("int64[2,4] i, int64[1] j, double[4] b", "double y, double z" if "z =" in body else "double y", body, **used)
    assert not any("into table" in offer.rule for offer in offers(fuse(model, ())))


@few
@given(
    operator=st.sampled_from(["Relu", "Sigmoid", "Mul", "Pow", "Clip", "Sub"]),
    mode=st.sampled_from(["DCR", "CRD"]),
    outputs=st.integers(1, 5),
    bias=st.booleans(),
)
def test_a_users_fold_is_put_off(
    operator: str, mode: str, outputs: int, bias: bool, build: Any, rewrite: Rewriting, operators: Operators
) -> None:
    low = ", low" if operator in {"Mul", "Pow", "Sub", "Clip"} else ""
    body = f'd = DepthToSpace<blocksize=2, mode="{mode}">(x) y = {operator}(d{low})'
    constants = {"low": np.asarray(2.0)} if low else {}
    assert operators(rewrite(build("double[1,12,3,4] x", "double y", body, **constants), f"{operator} before DepthToSpace")) == [
        operator,
        "DepthToSpace",
    ]
    body = f'd = DepthToSpace<blocksize=2, mode="{mode}">(x) y = Conv(d, w{", b" if bias else ""})'
    constants = {"w": R.normal(size=(outputs, 3, 1, 1))} | ({"b": R.normal(size=outputs)} if bias else {})
    after = rewrite(build("double[1,12,3,4] x", "double y", body, **constants), "Conv before DepthToSpace")
    assert operators(after) == (["Conv", "DepthToSpace"] if outputs < 5 else ["DepthToSpace", "Conv"])


@pytest.mark.parametrize("body", ["y = Mul(d, row)", "y = Relu(d) z = Identity(d)"])
def test_what_needs_the_pixels_where_they_were_stays(body: str, build: Any) -> None:
    used = {"row": np.ones(6)} if "row" in body else {}
    model = build(
        "double[1,12,3,3] x", "double y, double z" if "z =" in body else "double y", f"d = DepthToSpace<blocksize=2>(x) {body}", **used
    )
    assert not any("before DepthToSpace" in offer.rule for offer in offers(fuse(model, ())))
