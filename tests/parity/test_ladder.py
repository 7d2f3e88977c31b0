"""The ladder: which step breaks, by how much more than rounding explains, and at which layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from optimizer.parity import divergence
from optimizer.parity.difference import difference, layout
from optimizer.parity.divergence import Form, first_divergence, graph_form
from optimizer.parity.ladder import climb, start
from optimizer.parity.rounding import shaken
from optimizer.reference import Reference

Array = NDArray[Any]

NET = """<ir_version: 10, opset_import: ["": 20]> g (float[N,T,4] x) => (float[N,T,4] y)
<float[4,4] w1 = {0.9, -0.2, 0.4, 0.1, 0.3, 0.8, -0.5, 0.2, -0.1, 0.6, 0.7, 0.3, 0.2, -0.4, 0.1, 1.1}, float[4] b1 = {0.5, -0.3, 0.2, 0.1},
 float[4,4] w2 = {1.1, 0.2, -0.4, 0.3, -0.3, 0.9, 0.5, 0.1, 0.2, -0.6, 0.8, 0.4, 0.1, 0.4, -0.2, 0.7}, float[4] one = {1.0, 1.0, 1.0, 1.0},
 float[4] zero = {0.0, 0.0, 0.0, 0.0}>
{ a = MatMul(x, w1)  b = Add(a, b1)  c = LayerNormalization<axis = -1, epsilon = 0.00001>(b, one, zero)
  d = Relu(c)  e = MatMul(d, w2)  y = Tanh(e) }"""
LAYERS = ("fc1", "fc1/Add", "norm", "relu", "fc2", "tanh")

Change = Callable[[ir.Model], None]


def net(change: Change | None = None) -> ir.Model:
    model = ir.from_onnx_text(NET)
    for name, node in zip(LAYERS, model.graph, strict=True):
        node.name = name
    if change is not None:
        change(model)
    return model


def feeds(count: int = 2, time: int = 6) -> list[dict[str, Array]]:
    draw = np.random.default_rng(4)
    return [{"x": draw.standard_normal((1, time, 4)).astype(np.float32)} for _ in range(count)]


def weight(name: str, change: Callable[[Array], Array]) -> Change:
    def changed(model: ir.Model) -> None:
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(change(value.const_value.numpy().copy()), name=name)

    return changed


def epsilon(model: ir.Model) -> None:
    model.graph[2].attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-3)


def frozen(model: ir.Model) -> None:
    """Every length but 6 is refused behind the second product."""
    target = ir.Value(name="shape", const_value=ir.tensor(np.array([-1, 6, 4])), type=ir.TensorType(ir.DataType.INT64))
    model.graph.register_initializer(target)
    old = model.graph[5]
    reshaped = ir.node("Reshape", [old.inputs[0], target], name="frozen")
    reshaped.outputs[0].name, reshaped.outputs[0].type = "f", ir.TensorType(ir.DataType.FLOAT)
    model.graph.insert_before(old, reshaped)
    old.replace_input_with(0, reshaped.outputs[0])


@dataclass(frozen=True)
class Framework:
    """Another framework with the same network: shows a few layers by tensor, laid out its own way."""

    model: ir.Model
    shows: Sequence[str]
    lay: Callable[[Array], Array]
    watch: Sequence[str]

    def run(self, given: Mapping[str, Array]) -> dict[str, Array]:
        shown = [name for name in self.watch if name in self.shows]
        found = Reference(self.model, shown).run(given)
        return {name: self.lay(array) if name in shown else array for name, array in found.items()}

    def close(self) -> None:
        return


def source(imported: ir.Model, shows: Sequence[str] = ("a", "b", "c", "d", "e"), lay: Callable[[Array], Array] = lambda x: x) -> Form:
    return Form("source", imported, lambda watch: Framework(net(), shows, lay, watch), own=False)


def test_equal_forms_climb_to_the_top() -> None:
    sizes = {"usual": feeds(), "longest": feeds(1, 9)}
    climbed = start(source(net()), sizes)
    optimized = Form("engine", net(), lambda watch: Reference(net(), watch, optimized=True), own=False)
    for form in (graph_form("imported", net()), graph_form("fused", net()), optimized):
        climbed = climb(climbed, form, sizes)
    assert [rung.rung for rung in climbed.rungs] == ["imported", "fused", "engine"]
    assert [rung.against for rung in climbed.rungs] == ["source", "imported", "fused"]
    assert climbed.broken is None
    assert {rung.sizes for rung in climbed.rungs} == {("usual", "longest")}


@pytest.mark.parametrize(
    ("change", "layer"),
    [
        (epsilon, "norm"),
        (weight("b1", np.zeros_like), "fc1/Add"),
        (weight("w2", lambda w: w.astype(np.float16).astype(np.float32)), "fc2"),
        (weight("w1", lambda w: w[:, [1, 0, 2, 3]]), "fc1"),
    ],
)
def test_a_wrong_export_breaks_the_first_rung_at_its_layer(change: Change, layer: str) -> None:
    wrong = net(change)
    climbed = climb(start(source(wrong), {"usual": feeds()}), graph_form("imported", wrong), {"usual": feeds()})
    rung = climbed.rungs[0]
    assert (rung.breaks, rung.worst_layer) == (True, layer)
    assert rung.difference is not None
    assert rung.explained is not None
    assert rung.difference > 3 * rung.explained
    assert "'y' with usual" in rung.note


def test_the_layer_is_found_also_between_those_that_the_framework_shows_and_however_it_lays_them_out() -> None:
    wrong = net(epsilon)
    channels_first = source(wrong, ("b", "d"), lambda x: x.transpose(2, 0, 1))
    climbed = climb(start(channels_first, {"usual": feeds()}), graph_form("imported", wrong), {"usual": feeds()})
    assert climbed.rungs[0].worst_layer == "norm+relu"


def test_a_step_that_breaks_is_told_once() -> None:
    wrong = net(epsilon)
    climbed = climb(start(graph_form("imported", net()), {"usual": feeds()}), graph_form("fused", wrong), {"usual": feeds()})
    climbed = climb(climbed, graph_form("typed", wrong), {"usual": feeds()})
    assert [rung.breaks for rung in climbed.rungs] == [True, False]
    assert climbed.broken is climbed.rungs[0]


def test_a_frozen_length_breaks_where_the_length_is_another() -> None:
    wrong = net(frozen)
    sizes = {"usual": feeds(), "the longest shapes": feeds(1, 9)}
    climbed = climb(start(source(wrong), sizes), graph_form("imported", wrong), sizes)
    rung = climbed.rungs[0]
    assert (rung.breaks, rung.worst_layer) == (True, "frozen+tanh")
    assert "source runs with the longest shapes, imported does not" in rung.note
    assert rung.sizes == ("usual",)


def test_a_size_that_the_parent_cant_take_is_no_fault_of_the_others() -> None:
    sizes = {"usual": feeds(), "longest": feeds(1, 9)}
    climbed = climb(start(graph_form("imported", net(frozen)), sizes), graph_form("fused", net()), sizes)
    assert climbed.rungs[0].sizes == ("usual",)
    assert climbed.broken is None


def test_an_engine_that_computes_something_else_is_found_by_what_it_shows() -> None:
    wrong = net(weight("w2", lambda w: w * 1.01))
    climbed = start(graph_form("typed", net()), {"usual": feeds()})
    shown = climb(climbed, Form("engine", net(), lambda watch: Reference(wrong, watch), own=False), {"usual": feeds()}).rungs[0]
    silent = climb(climbed, Form("engine", net(), lambda _: Reference(wrong), own=False), {"usual": feeds()}).rungs[0]
    assert (shown.breaks, shown.worst_layer) == (True, "fc2")
    assert (silent.breaks, silent.worst_layer) == (True, "fc1+norm+relu+fc2+tanh")


def test_an_engine_that_does_not_run_breaks_without_a_layer() -> None:
    sizes = {"usual": feeds(), "longest": feeds(1, 9)}
    engine = Form("engine", net(), lambda watch: Reference(net(frozen), watch), own=False)
    rung = climb(start(graph_form("typed", net()), sizes), engine, sizes).rungs[0]
    assert (rung.breaks, rung.worst_layer) == (True, None)
    assert "engine does not" in rung.note


def test_nan_on_one_sample_breaks() -> None:
    class Broken(Framework):
        def run(self, given: Mapping[str, Array]) -> dict[str, Array]:
            return {name: array * np.float32(np.nan) for name, array in super().run(given).items()}

    engine = Form("engine", net(), lambda watch: Broken(net(), (), lambda x: x, watch), own=False)
    rung = climb(start(graph_form("typed", net()), {"usual": feeds()}), engine, {"usual": feeds()}).rungs[0]
    assert rung.breaks
    assert rung.difference == np.inf


def test_a_fault_behind_a_branch_is_found_though_the_branch_reads_weights_from_around_it() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[4] x) => (float[4] y) <float[500] w = {0.0},
     float[4] b = {1.5, 2.5, 3.5, 4.5}, bool yes = {1}>
    { h = Tanh(x)
      k = If(yes)<then_branch = t () => (float[4] o) { s = ReduceSum<keepdims = 0>(w)  o = Mul(h, s) },
                  else_branch = e () => (float[4] p) { p = Neg(h) }>
      y = Add(k, b) }"""

    def branched(change: Change | None = None) -> ir.Model:
        model = ir.from_onnx_text(text)
        model.graph.initializers["w"].const_value = ir.tensor(np.full(500, 0.01, np.float32), name="w")
        for name, node in zip(("tanh", "branch", "bias"), model.graph, strict=True):
            node.name = name
        if change is not None:
            change(model)
        return model

    forms = (graph_form("imported", branched()), graph_form("fused", branched(weight("b", lambda b: b + 1))))
    found = first_divergence(*forms, [{"x": np.ones(4, np.float32)}])
    assert found is not None
    assert found.layers == ("bias",)


def test_few_layers_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "_WATCHED", 2)
    found = first_divergence(graph_form("imported", net()), graph_form("fused", net(epsilon)), feeds())
    assert found is not None
    assert found.layer == "norm"
    assert found.ratio > 10


def test_rungs_tell_error_and_sensitivity_side_by_side() -> None:
    noisy = net(weight("w2", lambda w: w * np.float32(1.01)))
    climbed = start(graph_form("imported", net()), {"usual": feeds()})
    for form in (graph_form("fused", net()), graph_form("int8", noisy)):
        climbed = climb(climbed, form, {"usual": feeds()})
    near, far = climbed.rungs
    assert near.agreement == 1.0
    assert near.sqnr_db == np.inf
    assert 30 < far.sqnr_db < 60
    assert 1e-8 < far.output_sensitivity == near.output_sensitivity < 1e-5


def test_an_error_as_large_as_the_sensitivity_shows_nothing_and_says_so() -> None:
    near = net(weight("w2", lambda w: w * np.float32(1 + 2**-22)))
    rung = climb(start(graph_form("imported", net()), {"usual": feeds()}), graph_form("fused", near), {"usual": feeds()}).rungs[0]
    assert not rung.breaks
    assert "shows nothing" in rung.note


def test_rounding_moves_every_number_a_little_and_indices_not_at_all() -> None:
    text = """<ir_version: 10, opset_import: ["": 22]> g (float[2,3] x) => (float[2,3] y)
    <float[3,3] table = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0}>
    { i = Cast<to = 7>(x)  r = ReduceMax<keepdims = 0>(i)  row = Gather(table, r)  y = Add(x, row) }"""
    graph = ir.from_onnx_text(text)
    given = {"x": np.array([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]], np.float32)}
    exact, moved = Reference(graph).run(given)["y"], Reference(shaken(graph, {}, 1)).run(given)["y"]
    assert 0 < difference(exact, moved).relative < 2e-6
    again = Reference(shaken(graph, {}, 1)).run(given)["y"]
    np.testing.assert_array_equal(moved, again)


def test_a_power_stays_whole_where_rounding_would_make_it_nan() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[4] x) => (float[4] y) <float two = {2.0}> { s = Sin(x)  y = Pow(s, two) }"""
    graph, given = ir.from_onnx_text(text), {"x": np.array([-3.0, -1.0, 1.0, 2.0], np.float32)}
    assert difference(Reference(graph).run(given)["y"], Reference(shaken(graph, {}, 1)).run(given)["y"]).relative < 1e-5


def test_a_model_that_rounding_alone_upsets_is_told_to_show_nothing() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[4] x) => (float[4] y) <float a = {0.1}, float big = {33333333.3}>
    { s = Mul(x, a)  b = Mul(s, big)  y = Sin(b) }"""
    given = {"usual": [{"x": np.linspace(1, 9, 4, dtype=np.float32)}]}
    form = graph_form("imported", ir.from_onnx_text(text))
    rung = climb(start(form, given), graph_form("fused", ir.from_onnx_text(text)), given).rungs[0]
    assert "rounding alone can change" in rung.note


def test_what_rounding_explains_grows_with_the_step_of_the_precision() -> None:
    given = feeds(1)[0]
    exact = Reference(net()).run(given)["y"]
    steps = [
        difference(exact, Reference(shaken(net(), dict.fromkeys(LAYERS, how), 1)).run(given)["y"]).relative
        for how in ("fp32", "fp16", "bf16")
    ]
    assert steps[0] * 100 < steps[1] < steps[2] / 3
    assert difference(exact, Reference(shaken(net(), {"fc1": "int8"}, 1)).run(given)["y"]).relative > 1e-3


def test_differences_count_nan_and_other_shapes_as_infinite() -> None:
    one = np.array([1.0, 2.0, np.inf])
    assert difference(one, one.copy()).max_abs == 0.0
    assert difference(one, one.copy()).sqnr_db == np.inf
    assert difference(one, np.array([1.0, np.nan, np.inf])).max_abs == np.inf
    assert difference(one, one[:2]).max_abs == np.inf
    assert difference(np.array([3.0, 4.0]), np.array([3.0, 4.5])).sqnr_db == pytest.approx(20)
    assert difference(np.array(["a", "b"], object), np.array(["a", "c"], object)).relative == np.inf


def test_another_layout_is_seen_through_and_another_size_is_not() -> None:
    here = np.arange(24.0).reshape(1, 2, 3, 4)
    found = layout(here.transpose(0, 2, 3, 1), here)
    assert found is not None
    np.testing.assert_array_equal(found.of(here.transpose(0, 2, 3, 1)), here)
    assert layout(here[:, :1], here) is None
    assert layout(np.float32(1), np.float32(2)) is not None
    square = np.arange(64.0).reshape(1, 4, 4, 4)
    found = layout(square.transpose(0, 2, 3, 1), square)
    assert found is not None
    np.testing.assert_array_equal(found.of(square.transpose(0, 2, 3, 1)), square)
    mirrored = layout(square.transpose(0, 1, 3, 2), square)
    assert mirrored is not None
    assert not np.array_equal(mirrored.of(square.transpose(0, 1, 3, 2)), square)
