"""A build as a whole: what ships, what is refused, what the exit code says."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import optimizer
from optimizer.errors import InputError, UnavailableError

Make = Callable[..., Path]
Build = Callable[..., tuple[Any, dict[str, Any]]]

needs_tensorrt = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")


def candidate(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in report["candidates"] if one["name"] == name)


def test_a_precision_asked_for_by_name_is_delivered_also_where_it_is_slower(make: Make, build: Build) -> None:
    outcome, report = build(make(), precision="int8")
    assert outcome.exit_code in (0, 4)
    assert report["precision"]["requested"] == "int8"
    assert any(layer["realised"].startswith("int8") for layer in report["precision"]["layers"])
    engine = outcome.engine()
    assert engine.run({"x": np.ones((1, 16), np.float32)})["y"].shape == (1, 10)


def test_auto_never_ships_what_is_slower_than_its_unquantized_sibling(make: Make, build: Build) -> None:
    _, report = build(make())
    shipped = next(one for one in report["candidates"] if one["outcome"] == "shipped")
    assert shipped["name"] == "fp32" or shipped["speedup"] > 1
    assert {"fp32", "int8", "int8 dynamic"} <= {one["name"] for one in report["candidates"]}
    assert all(one["outcome"] == "shipped" or one["reason"] for one in report["candidates"])


def test_the_layer_that_calibration_shows_to_be_broken_is_left_out(make: Make, build: Build) -> None:
    _, report = build(make(spoiled=True), precision="int8")
    whole = candidate(report, "int8")
    mended = [one for one in report["candidates"] if one["name"].startswith("int8 ") and 0 < one["int8_layers"] < whole["int8_layers"]]
    assert min(one["distance"] for one in mended) < whole["distance"] / 2


def test_without_calibration_data_static_int8_is_left_out_and_the_report_says_so(make: Make, build: Build) -> None:
    _, report = build(make(), calibration=None)
    assert "int8" not in {one["name"] for one in report["candidates"] if one["outcome"] != "not built"}
    assert any("calibration" in one["reason"] for one in report["candidates"] if one["name"] == "int8")


def test_without_evaluation_data_only_what_loses_nothing_ships(make: Make, build: Build) -> None:
    outcome, report = build(make(), evaluation=None)
    assert outcome.exit_code == 0
    assert report["gate"]["metric"] == "max_abs"
    assert next(one for one in report["candidates"] if one["outcome"] == "shipped")["name"] == "fp32"


def test_int8_by_name_without_evaluation_data_is_inconclusive_and_says_why(make: Make, build: Build) -> None:
    outcome, report = build(make(), evaluation=None, precision="int8")
    assert outcome.exit_code == 4
    assert "evaluation data" in report["gate"]["reason"]
    assert (outcome.folder / "passport.json").exists()


@pytest.mark.parametrize(("word", "code"), [("pass", 0), ("fail", 3)])
def test_an_inconclusive_verdict_can_be_taken_for_another(make: Make, build: Build, word: str, code: int) -> None:
    outcome, report = build(make(), evaluation=None, precision="int8", on_inconclusive=word)
    assert outcome.exit_code == code
    assert report["verdict"] == "inconclusive"
    assert (outcome.folder / "passport.json").exists() == (code == 0)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_precision_that_the_backend_lacks_is_refused_with_the_reason(make: Make, build: Build, precision: str) -> None:
    folder = make()
    with pytest.raises(UnavailableError, match="ONNX Runtime"):
        build(folder, precision=precision)
    assert not (folder / "out").exists()


def test_a_plan_in_which_no_layer_is_left_to_compute_in_int8_is_no_int8_plan(make: Make, build: Build) -> None:
    folder = make()
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[1, 16] x) => (float[1, 1, 10] y) <int64[3] shape = {1, 1, 16}> { t = Transpose<perm = [1, 0]>(x)
        r = Reshape(t, shape) p = MatMul(r, w) h = Transpose<perm = [2, 0, 1]>(p) y = Transpose<perm = [1, 2, 0]>(h) }"""
    model = onnx.parser.parse_model(text)
    weight = np.random.default_rng(1).standard_normal((16, 10)).astype(np.float32) * np.geomspace(1e-2, 1e2, 16, dtype=np.float32)[:, None]
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, folder / "model.onnx")
    _, report = build(folder, precision="int8", evaluation=None)
    names = [one["name"] for one in report["candidates"]]
    assert {"int8", "int8 dynamic"} <= set(names)
    assert not any("without" in name for name in names)


def test_int8_by_name_of_a_model_without_a_layer_for_it_is_refused_with_the_reason(make: Make, build: Build) -> None:
    folder = make()
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[1, 16] x) => (float[1, 16] y) { y = Erf(x) }'
    onnx.save(onnx.parser.parse_model(text), folder / "model.onnx")
    with pytest.raises(UnavailableError, match=r"No layer of this model can run in INT8 .*Erf"):
        build(folder, precision="int8")
    assert build(folder)[0].exit_code == 0


def test_a_speed_that_is_not_reached_is_a_fail_with_a_report_and_no_engine(make: Make, build: Build) -> None:
    outcome, report = build(make(), min_speedup=1000.0)
    assert outcome.exit_code == 3
    assert "1000x" in report["gate"]["reason"]
    assert {file.name for file in outcome.folder.iterdir()} == {"report.json", "report.html", "junit.xml", "timings.jsonl", "parent.jsonl"}


def test_what_loses_nothing_still_has_to_reach_the_metric_that_is_asked(make: Make, build: Build) -> None:
    folder = make()
    data = dict(np.load(folder / "evaluation.npz"))
    data["y"] = (data["y"] + (np.arange(len(data["y"])) % 2)) % 10  # a parent that is right half of the time
    np.savez(folder / "evaluation.npz", **data)
    outcome, report = build(folder, precision="fp32", min_metric=0.8)
    assert outcome.exit_code == 3
    assert "does not reach the 0.8 that --min-metric asks" in report["gate"]["reason"]
    assert build(folder, precision="fp32", min_metric=0.4)[0].exit_code == 0


def test_a_budget_that_can_not_be_met_ships_the_plan_that_loses_nothing(make: Make, build: Build) -> None:
    outcome, report = build(make(), max_drop="0.0001pp")
    assert outcome.exit_code == 0
    assert next(one for one in report["candidates"] if one["outcome"] == "shipped")["name"] == "fp32"


def test_a_plan_that_was_written_builds_the_same_engine_again(make: Make, build: Build) -> None:
    folder = make()
    first, _ = build(folder, precision="int8")
    engine, plan = (first.folder / "engine.onnx").read_bytes(), folder / "plan.json"
    plan.write_bytes((first.folder / "plan.json").read_bytes())
    again, report = build(folder, plan=plan)
    assert (again.folder / "engine.onnx").read_bytes() == engine
    assert next(one for one in report["candidates"] if one["outcome"] == "shipped")["name"] == "given plan"


def test_random_calibration_leaves_its_mark_everywhere(make: Make, build: Build) -> None:
    outcome, report = build(make(), calibration=None, random_calibration=True, precision="int8")
    assert report["provenance"]["random_calibration"] is True
    assert any("random" in note for note in report["notes"])
    assert json.loads((outcome.folder / "passport.json").read_text())["random_calibration"] is True
    assert json.loads((outcome.folder / "calibration.json").read_text())["key"]["data"] == "random"


def test_evaluation_samples_that_calibration_saw_are_no_evidence(make: Make, build: Build) -> None:
    folder = make()
    with pytest.raises(InputError, match="also in the calibration data"):
        build(folder, evaluation=str(folder / "calibration.npz"))


def test_the_same_words_give_the_same_tables_and_ranges(make: Make, build: Build) -> None:
    folder = make()
    tables = []
    for _ in range(2):
        outcome, _ = build(folder, precision="int8")
        tables.append((outcome.folder / "calibration.json").read_bytes())
    assert tables[0] == tables[1]


@needs_tensorrt
def test_for_a_gpu_that_is_not_here_the_verdict_is_a_simulation_and_can_be_refused(make: Make, build: Build) -> None:
    outcome, report = build(make(), targets=("l4",))
    assert outcome.exit_code == 0
    assert report["gate"]["gated_on"] == "simulation"
    assert report["speed"]["timed_on"] is None
    assert all(one["launches"] for one in report["candidates"])
    assert (outcome.folder / "handover" / "model.onnx").exists()
    measured, _ = build(make(), targets=("l4",), require_measured=True)
    assert measured.exit_code == 4


@needs_tensorrt
def test_free_dimensions_are_fixed_for_a_gpu_and_the_report_says_to_what(make: Make, build: Build) -> None:
    _, report = build(make(batch="n"), targets=("l4",))
    assert any("1x16" in note for note in report["notes"])


def test_a_gpu_without_an_engine_of_ours_gets_the_handover_alone(make: Make, build: Build) -> None:
    outcome, report = build(make(), targets=("h100",))
    assert outcome.exit_code == 0
    assert not list(outcome.folder.glob("engine*"))
    assert (outcome.folder / "handover" / "build.sh").exists()
    assert {layer["name"] for layer in report["precision"]["layers"]} >= {"layer0", "layer1", "layer2"}
    assert all(layer["realised"] != layer["planned"] for layer in report["precision"]["layers"])
    with pytest.raises(UnavailableError, match="handover"):
        optimizer.load(outcome.folder)


@pytest.mark.parametrize("target", ["cpu", pytest.param("l4", marks=needs_tensorrt)])
def test_int8_by_name_is_refused_where_no_layer_can_have_it(make: Make, build: Build, target: str) -> None:
    folder = make()
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[1, 16] x) => (float[1, 16] y) { r = Relu(x) y = Sigmoid(r) }'
    )
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(UnavailableError, match="No layer of this model can run in INT8"):
        build(folder, precision="int8", targets=(target,))
    assert not (folder / "out").exists()
