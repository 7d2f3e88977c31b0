"""Fusing as a whole: to a fixed point, recorded, unique names, metadata kept, duplicates and dead weight gone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optimizer.errors import InputError, OptimizeError
from optimizer.fusion import ORDER, Rule, fuse, step
from optimizer.fusion.rule import MatchResult
from optimizer.model import FOR_LAYER, Fusion

R = np.random.default_rng(10)


class Swap(Rule):
    """Relu becomes Neg or Neg becomes Relu: two of them never end."""

    def __init__(self, before: str, after: str) -> None:
        super().__init__(f"{before} to {after}")
        self.before, self.after = before, after

    def pattern(self, op: Any, x: Any) -> Any:
        return getattr(op, self.before)(x)

    def check(self, *_: Any, **__: Any) -> MatchResult:
        return MatchResult()

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.op(self.after, x)


def test_rules_that_undo_each_other_end_with_an_error_that_names_them(build: Any) -> None:
    order = (step("a", "", [Swap("Relu", "Neg")]), step("b", "", [Swap("Neg", "Relu")]))
    with pytest.raises(OptimizeError, match="Neg to Relu, Relu to Neg"):
        fuse(build("double[2] x", "double z", "z = Relu(x)"), order)


def test_a_graph_of_an_older_opset_is_refused(build: Any) -> None:
    with pytest.raises(InputError, match="opset 20"):
        fuse(build("double[2] x", "double z", "z = Relu(x)", opset=17))


def test_every_step_has_a_name_and_a_reason_for_its_place() -> None:
    assert len({each.name for each in ORDER}) == len(ORDER)
    assert all(each.why for each in ORDER)


def test_new_initializers_never_take_a_name_that_is_in_use(build: Any, fused: Any) -> None:
    body = '["c"] y = Conv(x, w) ["s"] z = Mul(y, k) ["c2"] u = Conv(x, w2) ["s"] v = Mul(u, "w*s")'
    constants = {
        "w": R.normal(size=(4, 3, 3, 3)),
        "k": R.normal(size=(4, 1, 1)),
        "w2": R.normal(size=(4, 3, 3, 3)),
        "w*s": R.normal(size=(4, 1, 1)),
    }
    after = fused(build("double[1,3,6,6] x", "double z, double v", body, **constants))
    assert [node.op_type for node in after.graph.graph] == ["Conv", "Conv"]


def test_metadata_of_all_nodes_that_went_in_is_kept_and_that_of_the_graph(build: Any) -> None:
    model = build("double[1,3,6,6] x", "double z", "y = Conv(x, w) z = Mul(y, k)", w=R.normal(size=(4, 3, 3, 3)), k=2.0)
    conv, mul = model.graph.graph
    conv.metadata_props.update(origin="conv", kind="layer")
    mul.metadata_props.update(origin="mul", scope="tail")
    model.graph.metadata_props["about"] = "a test"
    after = fuse(model)
    (node,) = after.graph.graph
    assert dict(node.metadata_props) == {"origin": "conv", "kind": "layer", "scope": "tail"}
    assert after.graph.metadata_props["about"] == "a test"


def test_fusions_that_were_there_stay_in_front(build: Any) -> None:
    model = build("double[2] x", "double z", "y = Identity(x) z = Neg(y)")
    exported = Fusion("by an importer", ("bn",), "conv")
    assert fuse(model.with_graph(model.graph, [exported])).fusions[0] == exported


def test_a_helper_node_says_which_layer_it_works_for(build: Any, fused: Any) -> None:
    after = fused(build("double[1,3,4,4] x", "double z", '["pool"] z = ReduceMean<keepdims=0>(x, axes)', axes=np.array([2, 3])))
    pool, flatten = after.graph.graph
    assert (pool.name, flatten.name, flatten.metadata_props[FOR_LAYER]) == ("pool", "pool.Flatten", "pool")


def test_nodes_that_compute_the_same_are_one(build: Any, fused: Any, operators: Any) -> None:
    body = '["a"] a = Pow(x, c) ["b"] b = Pow(x, d) e = Relu(a) f = Relu(b) z = Sub(e, f)'
    after = fused(build("double[2] x", "double z", body, c=3.0, d=3.0))
    assert operators(after) == ["Pow", "Relu", "Sub"]
    assert Fusion("computed twice", ("a", "b"), "a") in after.fusions


def test_nodes_that_differ_or_are_random_or_named_outputs_are_not_one(build: Any, operators: Any) -> None:
    random = build("double[2] x", "double z", "a = RandomNormalLike(x) b = RandomNormalLike(x) z = Sub(a, b)")
    assert operators(fuse(random)) == ["RandomNormalLike", "RandomNormalLike", "Sub"]
    outputs = build("double[2] x", "double a, double b", "a = Neg(x) b = Neg(x)")
    assert operators(fuse(outputs)) == ["Neg", "Neg"]
    different = build("double[2,2] x", "double z", "a = Softmax<axis=0>(x) b = Softmax<axis=1>(x) z = Sub(a, b)")
    assert operators(fuse(different)) == ["Softmax", "Softmax", "Sub"]


def test_a_large_weight_of_the_same_bytes_is_stored_once(build: Any, fused: Any) -> None:
    w = R.normal(size=(40, 40))
    after = fused(build("double[2,40] x", "double z", "y = MatMul(x, w) r = Relu(y) z = MatMul(r, v)", w=w, v=w.copy()))
    assert list(after.graph.graph.initializers) == ["w"]
    assert Fusion("weight stored twice", ("w", "v"), "w") in after.fusions


def test_weights_that_differ_in_one_number_stay_two(build: Any, fused: Any) -> None:
    w = R.normal(size=(40, 40))
    v = w.copy()
    v[-1, -1] += 1
    after = fused(build("double[2,40] x", "double z", "y = MatMul(x, w) r = Relu(y) z = MatMul(r, v)", w=w, v=v))
    assert sorted(after.graph.graph.initializers) == ["v", "w"]


def test_what_nothing_reads_goes_and_is_told_but_inputs_stay(build: Any, fused: Any, operators: Any) -> None:
    model = build("double[2] x, double[3] unused", "double z", '["dead"] y = Exp(x) ["dead2"] w = Neg(y) ["live"] z = Relu(x)', c=1.0)
    after = fused(model)
    assert operators(after) == ["Relu"]
    assert {fusion.layers for fusion in after.fusions} == {("dead",), ("dead2",)}
    assert not after.graph.graph.initializers


BRANCHES = (
    """then_branch = yes () => (double[2,3] t) { i = Identity(y) t = Relu(i) }, else_branch = no () => (double[2,3] e) { e = Neg(w) }"""
)


def test_bodies_of_branches_are_left_alone_and_what_they_read_stays(build: Any, fused: Any, operators: Any) -> None:
    body = f"y = Mul(x, k) w = Add(x, k) z = If(flag)<{BRANCHES}>"
    after = fused(build("double[2,3] x, bool flag", "double z", body, k=2.0))
    assert operators(after) == ["Mul", "Add", "If"]
    branch = next(node for node in after.graph.graph if node.op_type == "If").attributes["then_branch"].as_graph()
    assert [node.op_type for node in branch] == ["Identity", "Relu"]


def test_a_value_that_only_a_branch_reads_is_renamed_for_it_too(build: Any, fused: Any, operators: Any) -> None:
    body = f"a = Relu(x) y = Identity(a) w = Identity(a) z = If(flag)<{BRANCHES}>"
    assert operators(fused(build("double[2,3] x, bool flag", "double z", body))) == ["Relu", "If"]


def test_fusing_leaves_fresh_shapes(build: Any) -> None:
    after = fuse(build("double[n,3,8,8] x", "double z", "y = Conv(x, w) q = Mul(y, k) z = Relu(q)", w=R.normal(size=(4, 3, 3, 3)), k=2.0))
    for node in after.graph.graph:
        assert str(node.outputs[0].shape) == "[n,4,6,6]"
