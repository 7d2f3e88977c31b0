"""The ladder in a build: which samples and sizes it takes, and what a build says where import broke the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import optimizer
from optimizer import climbing
from optimizer.climbing import sizes_of
from optimizer.engine import Arrays
from optimizer.errors import InputError, UnavailableError
from optimizer.model import Model, Source
from optimizer.plan import Shape
from optimizer.planner import finals
from optimizer.reference import Reference

Array = NDArray[Any]


def classifier() -> onnx.ModelProto:
    draw = np.random.default_rng(3)
    weights = [
        numpy_helper.from_array((draw.standard_normal(size) / 4).astype(np.float32), name)
        for name, size in (("a", (16, 24)), ("b", (24, 10)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="layer0"),
        helper.make_node("Relu", ["h"], ["r"], name="relu0"),
        helper.make_node("MatMul", ["r", "b"], ["y"], name="layer1"),
    ]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 16), ("y", 10))]
    graph = helper.make_graph(nodes, "classifier", tensors[:1], tensors[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


class Trained:
    """A parent whose second product another exporter got wrong."""

    def __init__(self, model: Model, spoil: float) -> None:
        graph = model.graph.clone()
        for value in graph.graph.initializers.values():
            if value.name == "b" and value.const_value is not None:
                value.const_value = ir.tensor(value.const_value.numpy() * np.float32(spoil), name="b")
        self._graph = graph
        self._tensors = {layer.name: layer.outputs[0] for layer in model.layers}

    def run(self, feeds: Arrays) -> dict[str, Array]:
        return Reference(self._graph).run(feeds)

    def layers(self, feeds: Arrays, names: Sequence[str]) -> dict[str, Array]:
        found = Reference(self._graph, [self._tensors[name] for name in names]).run(feeds)
        return {name: found[self._tensors[name]] for name in names}

    def close(self) -> None:
        return


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, dict[str, Any]]]:
    monkeypatch.setattr(finals, "RACE_SECONDS", 0.5)
    model, draw = classifier(), np.random.default_rng(5)
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=draw.standard_normal((40, 16)).astype(np.float32))

    def built(running: Callable[[Any, Model], Any]) -> tuple[Any, dict[str, Any]]:
        monkeypatch.setattr(climbing.importers, "running", running)
        words = {"calibration": str(tmp_path / "data.npz"), "threads": 1, "precision": "fp32"}
        outcome = optimizer.build(tmp_path / "model.onnx", tmp_path / "out", **words)
        return outcome, json.loads((tmp_path / "out" / "report.json").read_text())

    return built


def test_a_wrong_export_fails_at_its_rung_and_layer_also_where_nothing_was_quantized(build: Any, tmp_path: Path) -> None:
    outcome, report = build(lambda _, model: Trained(model, 1.001))
    assert (outcome.exit_code, report["verdict"]) == (3, "fail")
    assert "imported is not the same as source, first at layer1" in outcome.headline
    assert report["ladder"][0]["breaks"]
    assert not any(rung["breaks"] for rung in report["ladder"][1:])
    assert not (tmp_path / "out" / "passport.json").exists()
    assert "first at layer1" in (tmp_path / "out" / "junit.xml").read_text()


def test_where_the_framework_is_not_here_the_ladder_says_so_and_begins_with_the_imported_graph(build: Any) -> None:
    def refusing(_: Any, __: Model) -> Any:
        raise UnavailableError("There is no such framework here.", "Install it.")

    outcome, report = build(refusing)
    assert outcome.exit_code == 0
    imported, fused, *_ = report["ladder"]
    assert "There is no such framework here." in imported["note"]
    assert (imported["against"], imported["difference"], fused["against"]) == ("source", None, "imported")
    assert any("not run in its own framework" in note for note in report["notes"])


def test_equal_forms_pass_and_are_held_against_each_other_in_a_batch_too(build: Any) -> None:
    outcome, report = build(lambda _, model: Trained(model, 1.0))
    assert outcome.exit_code == 0
    assert [rung["rung"] for rung in report["ladder"]] == ["imported", "fused", "typed fp32", "engine"]
    assert {tuple(rung["sizes"]) for rung in report["ladder"]} == {("the usual shapes", "a batch of 4")}


def _model(*shape: int | str) -> Model:
    text = f'<ir_version: 10, opset_import: ["": 20]> g (float[{",".join(map(str, shape))}] x) => (float[N] y) {{ y = Relu(x) }}'
    return Model(ir.from_onnx_text(text), Source("onnx", "m", ""))


def _feeds(*shapes: tuple[int, ...]) -> list[dict[str, Array]]:
    return [{"x": np.ones(shape, np.float32)} for shape in shapes]


def _told(sizes: Any) -> dict[str, list[tuple[int, ...]]]:
    return {name: [feed["x"].shape for feed in feeds] for name, feeds in sizes.items()}


def test_a_range_that_was_asked_for_is_tried_at_both_ends() -> None:
    asked = {"x": Shape((1, 3, 8), (1, 3, 16), (2, 3, 32))}
    told = _told(sizes_of(_feeds(*[(1, 3, 16)] * 6), _model("n", 3, "t"), asked))
    assert told == {
        "the usual shapes": [(1, 3, 16)] * 4,
        "the smallest shapes (x 1x3x8)": [(1, 3, 8)],
        "the largest shapes (x 2x3x32)": [(2, 3, 32)],
    }


def test_data_of_several_sizes_is_tried_at_its_smallest_and_largest_and_a_free_batch_as_one() -> None:
    told = _told(sizes_of(_feeds((1, 9), (1, 5), (1, 30), (1, 9)), _model("n", "t"), {}))
    assert told["the smallest shapes (x 1x5)"] == [(1, 5)]
    assert told["the largest shapes (x 1x30)"] == [(1, 30)]
    assert told["a batch of 4"] == [(4, 9)]
    assert "a batch of 4" not in _told(sizes_of(_feeds((1, 9)), _model(1, 9), {}))


def test_a_size_that_the_parent_refuses_is_left_out_and_told(build: Any) -> None:
    class OneAtATime(Trained):
        def run(self, feeds: Arrays) -> dict[str, Array]:
            if len(next(iter(feeds.values()))) > 1:
                raise InputError("It takes one sample.", "Give one.")
            return super().run(feeds)

    outcome, report = build(lambda _, model: OneAtATime(model, 1.0))
    assert outcome.exit_code == 0
    assert {tuple(rung["sizes"]) for rung in report["ladder"]} == {("the usual shapes",)}
    assert any("does not run with a batch of 4" in note and "one sample" in note for note in report["notes"])
