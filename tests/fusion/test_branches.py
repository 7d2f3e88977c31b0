"""An If whose condition is known gives way to its branch; any other stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from optimizer.fusion import fuse
from optimizer.model import Model, Source

X = {"x": np.arange(-4, 4, dtype=np.float32).reshape(2, 4)}


def imported(text: str) -> Model:
    graph = ir.from_onnx_text(text)
    for place, node in enumerate(graph.graph):
        node.name = node.name or f"n{place}"
    return Model(graph, Source("onnx", "net.onnx", "0"))


def answers(graph: ir.Model, feeds: dict[str, Any] = X) -> list[np.ndarray]:
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)
    return ReferenceEvaluator(proto).run(None, feeds)


def branching(condition: str, more: str = "") -> str:
    """y is x + 1 where the condition holds, else x times 2."""
    return f"""<ir_version: 10, opset_import: ["" : 20]>
    net (float[2,4] x{more}) => (float[2,4] y) <float one = {{1.0}}, float two = {{2.0}}> {{
        {condition}
        chosen = If (c) <
            then_branch = yes () => (float[2,4] t) {{ t = Add (x, one) }},
            else_branch = no () => (float[2,4] e) {{ e = Mul (x, two) }}
        >
        y = Relu (chosen)
    }}"""


@pytest.mark.parametrize(("word", "op"), [("1", "Add"), ("0", "Mul")])
def test_the_branch_of_a_constant_condition_takes_the_place_of_the_if(word: str, op: str) -> None:
    before = imported(branching(f"c = Constant <value = bool {{{word}}}> ()"))
    after = fuse(before)
    assert [node.op_type for node in after.graph.graph] == [op, "Relu"]
    np.testing.assert_array_equal(answers(after.graph)[0], answers(before.graph)[0])
    assert ("known branch", ("n1",)) in [(fusion.rule, fusion.layers) for fusion in after.fusions]


def test_a_condition_made_of_known_sizes_is_known() -> None:
    text = branching("s = Shape (x) n = Size (s) r = Constant <value = int64 {2}> () c = Equal (n, r)")
    assert [node.op_type for node in fuse(imported(text)).graph.graph] == ["Add", "Relu"]


@pytest.mark.parametrize("condition", ["c = Identity (flag)", "s = ReduceMax <keepdims = 0> (x) c = Greater (s, one)"])
def test_what_the_callers_numbers_decide_stays(condition: str) -> None:
    after = fuse(imported(branching(condition, ", bool flag" if "flag" in condition else "")))
    assert "If" in [node.op_type for node in after.graph.graph]
    assert "known branch" not in {fusion.rule for fusion in after.fusions}


def test_layers_of_a_branch_keep_their_names_and_unnamed_ones_are_called_after_the_if() -> None:
    model = imported(branching("c = Constant <value = bool {1}> ()"))
    inner = next(node for node in model.graph.graph.all_nodes() if node.op_type == "Add")
    assert inner.name == ""
    assert "n1.then.Add" in [layer.name for layer in fuse(model).layers]
    inner.name = "decoder.bias"
    assert "decoder.bias" in [layer.name for layer in fuse(model).layers]


def test_names_that_another_part_of_the_graph_uses_are_changed() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    net (float[2,4] x, bool flag) => (float[2,4] y) <float one = {1.0}> {
        c = Constant <value = bool {1}> ()
        a = If (c) <then_branch = yes () => (float[2,4] t) { t = Add (x, one) }, else_branch = no () => (float[2,4] e) { e = Neg (x) }>
        b = If (flag) <then_branch = yes () => (float[2,4] t) { t = Exp (a) }, else_branch = no () => (float[2,4] e) { e = Abs (a) }>
        y = Relu (b)
    }"""
    before = imported(text)
    after = fuse(before)
    for flag in (True, False):
        feeds = {**X, "flag": np.array(flag)}
        np.testing.assert_array_equal(answers(after.graph, feeds)[0], answers(before.graph, feeds)[0])


def test_outputs_of_the_model_keep_their_names_also_where_a_branch_hands_its_input_on() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    net (float[2,4] x) => (float[2,4] y, float[2,4] z) {
        c = Constant <value = bool {1}> ()
        h = Exp (x)
        y, z = If (c) <
            then_branch = yes () => (float[2,4] t, float[2,4] u) { t = Identity (h) u = Neg (h) },
            else_branch = no () => (float[2,4] e, float[2,4] f) { e = Abs (x) f = Neg (x) }
        >
    }"""
    before = imported(text)
    after = fuse(before)
    assert [value.name for value in after.graph.graph.outputs] == ["y", "z"]
    assert "If" not in [node.op_type for node in after.graph.graph]
    for found, wanted in zip(answers(after.graph), answers(before.graph), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_branches_within_branches_are_taken_as_far_as_conditions_are_known() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    net (float[2,4] x) => (float[2,4] y) <float one = {1.0}> {
        c = Constant <value = bool {1}> ()
        y = If (c) <
            then_branch = yes () => (float[2,4] t) {
                d = Constant <value = bool {0}> ()
                u = If (d) <
                    then_branch = deep () => (float[2,4] v) { v = Exp (x) },
                    else_branch = deeper () => (float[2,4] w) { w = Add (x, one) }
                >
                t = Relu (u)
            },
            else_branch = no () => (float[2,4] e) { e = Abs (x) }
        >
    }"""
    before = imported(text)
    after = fuse(before)
    assert [node.op_type for node in after.graph.graph] == ["Add", "Relu"]
    np.testing.assert_array_equal(answers(after.graph)[0], answers(before.graph)[0])


def test_a_weight_that_only_a_branch_never_taken_shares_counts_as_unshared() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    net (float[1,3,4,4] x) => (float[1,2,4,4] y) <float[2,3,1,1] w = {1.0,2.0,3.0,4.0,5.0,6.0}, float s = {3.0}> {
        c = Constant <value = bool {1}> ()
        a = If (c) <
            then_branch = yes () => (float[1,2,4,4] t) { t = Conv (x, w) },
            else_branch = no () => (float[1,2,4,4] e) { q = Abs (w) e = Conv (x, q) }
        >
        y = Mul (a, s)
    }"""
    after = fuse(imported(text))
    assert [node.op_type for node in after.graph.graph] == ["Conv"]
