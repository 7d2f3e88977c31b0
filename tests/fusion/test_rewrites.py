"""Rewrites that the planner may choose: what is offered, what is written, and what a plan that does not fit is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from optimizer.errors import InputError
from optimizer.fusion import fuse
from optimizer.fusion.rewrites import EVERYWHERE, REWRITES, SAFER, offers, rewritten
from optimizer.graph import sha256
from optimizer.model import SAME_NUMBERS, Model, is_layer
from optimizer.plan import Rewrite

R = np.random.default_rng(5)
BLOCKS = "blocks of 4 x 4 into channels"
STRIDES = "strides into channels"


@pytest.fixture
def two_convolutions(build: Callable[..., Model]) -> Model:
    """A small convolution of stride 2 over one channel, then a dear one with one output channel."""
    body = (
        "[small] a = Conv<pads=[1,1,1,1],strides=[2,2]>(x, w) [act] b = Relu(a) [dear] c = Conv<pads=[2,2,2,2]>(b, v) [last] y = Sigmoid(c)"
    )
    return fuse(build("double[1,1,32,32] x", "double y", body, w=R.normal(size=(20, 1, 3, 3)), v=R.normal(size=(1, 20, 5, 5))), ())


def test_the_dearest_layer_is_offered_first(two_convolutions: Model) -> None:
    found = offers(two_convolutions)
    assert found[0] == Rewrite(BLOCKS, "dear")
    assert Rewrite(STRIDES, "small") in found
    assert [each.layer for each in found] == sorted((each.layer for each in found), key=["dear", "small"].index)


def test_what_gives_a_little_at_many_layers_is_offered_for_all_of_them(
    build: Callable[..., Model], same: Callable[[Model, Model], None]
) -> None:
    gates = " ".join(
        f"s{i} = GlobalAveragePool(x{i}) [mul{i}] m{i} = Mul(x{i}, s{i}) [add{i}] x{i + 1} = Add(x{i}, m{i})" for i in range(3)
    )
    model = fuse(build("double[1,2,3,4] x0", "double x3", gates), ())
    found = offers(model)
    assert found[0] == Rewrite("gate x + x s", EVERYWHERE)
    assert {each.layer for each in found[1:]} == {"add0", "add1", "add2"}
    after = rewritten(model, found[:1])
    same(model, after)
    assert [node.op_type for node in after.graph.graph] == ["GlobalAveragePool", "Add", "Mul"] * 3
    assert {fusion.rule for fusion in after.fusions} == {"gate x + x s"}
    assert not offers(after)


def test_a_layer_that_takes_no_time_is_not_offered(build: Callable[..., Model]) -> None:
    body = "s = GlobalAveragePool(x) m = Mul(x, s) a = Add(x, m) y = Conv(a, w)"
    dear = build("double[1,2,9,9] x", "double y", body, w=R.normal(size=(16000, 2, 3, 3)))
    assert offers(fuse(dear, ())) == ()


def test_what_makes_low_precision_safe_is_offered_whatever_it_costs(build: Callable[..., Model]) -> None:
    body = "q = Mul(x, x) m = ReduceMean(x, a) s = ReduceMean(q, a) k = Mul(m, m) [variance] v = Sub(s, k) y = Conv(x, w) z = Identity(v)"
    model = build("double[1,2,9,9] x", "double y, double z", body, a=np.array([2, 3]), w=R.normal(size=(16000, 2, 3, 3)))
    assert offers(fuse(model, ())) == (Rewrite("safe variance", "variance"),)
    assert {"safe variance"} == SAFER


def test_an_offer_can_be_appended_to_the_rewrites_before_it(two_convolutions: Model, same: Callable[[Model, Model], None]) -> None:
    chosen: tuple[Rewrite, ...] = ()
    for _ in range(3):
        chosen += offers(rewritten(two_convolutions, chosen))[:1]
    at_once = rewritten(two_convolutions, chosen)
    one_by_one = two_convolutions
    for each in chosen:
        one_by_one = rewritten(one_by_one, [each])
    assert sha256(at_once.graph) == sha256(one_by_one.graph)
    assert {each.rule for each in chosen} <= {fusion.rule for fusion in at_once.fusions}
    same(two_convolutions, at_once)


def test_the_model_given_stays_as_it_is(two_convolutions: Model) -> None:
    before = sha256(two_convolutions.graph)
    rewritten(two_convolutions, offers(two_convolutions)[:1])
    assert sha256(two_convolutions.graph) == before
    assert not two_convolutions.fusions


def test_layers_keep_the_users_names_and_what_is_added_belongs_to_them(two_convolutions: Model) -> None:
    after = rewritten(two_convolutions, [Rewrite(BLOCKS, "dear")])
    assert [layer.name for layer in after.layers] == ["small", "act", "dear", "last"]
    assert [node.op_type for node in after.graph.graph if not is_layer(node)] == ["DepthToSpace"]


def test_what_follows_reads_the_folded_layout(two_convolutions: Model, operators: Callable[[Model], list[str]]) -> None:
    after = rewritten(two_convolutions, [Rewrite(BLOCKS, "dear")])
    assert operators(after) == ["Conv", "Relu", "Conv", "Sigmoid", "DepthToSpace"]


def test_tensors_in_another_arrangement_tell_whose_numbers_they_hold(two_convolutions: Model) -> None:
    after = rewritten(two_convolutions, [Rewrite(BLOCKS, "dear"), Rewrite(STRIDES, "small")])
    told = {node.op_type: node.outputs[0].metadata_props.get(SAME_NUMBERS) for node in after.graph.graph if node.outputs[0].name != "y"}
    assert told == {"Pad": "x", "SpaceToDepth": "x", "Conv": "c", "Relu": None, "Sigmoid": "y"}


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        (Rewrite("turn into gold", "dear"), "turn into gold"),
        (Rewrite(BLOCKS, "deer"), "deer"),
        (Rewrite(BLOCKS, "small"), "does not apply"),
        (Rewrite(BLOCKS, "act"), "does not apply"),
        (Rewrite("siblings into one layer", "dear"), "does not apply"),
        (Rewrite("siblings into one layer", EVERYWHERE), "does not apply"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_by_rule_and_layer(two_convolutions: Model, chosen: Rewrite, told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        rewritten(two_convolutions, [chosen])
    assert chosen.rule in str(error.value)


def test_a_rewrite_is_not_done_twice(two_convolutions: Model) -> None:
    chosen = Rewrite(BLOCKS, "dear")
    with pytest.raises(InputError, match="does not apply"):
        rewritten(two_convolutions, [chosen, chosen])


def test_rules_have_names_of_their_own() -> None:
    names = [rule.name for rule in REWRITES]
    assert len(set(names)) == len(names)


def test_a_graph_without_sizes_or_layers_is_offered_nothing(build: Callable[..., Model]) -> None:
    free = build("double[n,1,h,w] x", "double y", "y = Conv<strides=[2,2]>(x, k)", k=R.normal(size=(2, 1, 3, 3)))
    assert offers(fuse(free, ())) == ()
    assert offers(fuse(build("double[2] x", "double y", "y = Identity(x)"), ())) == ()


def test_a_weight_that_the_caller_may_replace_stays(build: Callable[..., Model]) -> None:
    model: Any = build("double[1,1,32,32] x, double[1,1,5,5] w", "double y", "y = Conv(x, w)")
    assert offers(fuse(model, ())) == ()
