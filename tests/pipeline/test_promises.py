"""What a build promises beside the engine: demands that hold together, plans that are repeated or refused, nothing private in a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import optimizer.pipeline
import optimizer.request
from optimizer.errors import InputError, UnavailableError

Make = Callable[..., Path]
Build = Callable[..., tuple[Any, dict[str, Any]]]

needs_tensorrt = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")


def test_a_speed_that_is_not_reached_is_a_fail_also_where_an_inconclusive_verdict_would_do(make: Make, build: Build) -> None:
    outcome, report = build(make(), evaluation=None, precision="int8", on_inconclusive="pass", min_speedup=1000.0)
    assert outcome.exit_code == 3
    assert "1000x" in report["headline"]


@needs_tensorrt
def test_a_measurement_that_is_demanded_is_not_waived_with_an_inconclusive_verdict(make: Make, build: Build) -> None:
    words = {"evaluation": None, "precision": "int8", "on_inconclusive": "pass"}
    assert build(make(), targets=("l4",), **words)[0].exit_code == 0
    assert build(make(), targets=("l4",), require_measured=True, **words)[0].exit_code == 4


def test_without_calibration_data_others_are_still_held_against_the_unquantized_plan(make: Make, build: Build) -> None:
    _, report = build(make(), calibration=None)
    assert report["candidates"][0]["name"] == "fp32"
    assert report["speed"]["baseline"] == "fp32"


def test_evaluation_data_that_judges_a_model_again_is_counted(make: Make, build: Build) -> None:
    folder = make()
    for count in (1, 2):
        _, report = build(folder, precision="int8", max_drop=f"{count}pp")
        assert report["provenance"]["evaluation"]["judged"] == count
        assert any("has judged this model in 2 builds" in note for note in report["notes"]) == (count == 2)


def test_what_the_engine_must_reach_is_told_before_any_candidate_is_judged(make: Make) -> None:
    folder, told = make(), list[str]()
    data = {name: str(folder / f"{name}.npz") for name in ("calibration", "evaluation")}
    words = {**data, "threads": 1, "precision": "int8", "max_drop": "2pp", "backends": ["onnxruntime"]}
    outcome = optimizer.pipeline.build(
        optimizer.request.request_from_words(folder / "model.onnx", folder / "out", **words), track=lambda step, *_: told.append(step)
    )
    threshold = "gate: top1 of the engine must be over 98.00 % (parent 100.00 %)"
    assert told.index(threshold) < next(index for index, step in enumerate(told) if step.startswith("gate: int8"))
    assert outcome.report.gate.threshold == pytest.approx(0.98)


def test_a_backend_that_does_not_serve_the_target_is_refused_and_another_that_was_asked_for_is_taken(make: Make, build: Build) -> None:
    folder = make()
    with pytest.raises(UnavailableError, match="TensorRT builds for NVIDIA GPUs"):
        build(folder, backends=("tensorrt",))
    with pytest.raises(UnavailableError, match="no backend called 'onnxruntme'"):
        build(folder, backends=("onnxruntime", "onnxruntme"), precision="fp32")
    assert build(folder, backends=("tensorrt", "onnxruntime"), precision="fp32")[0].exit_code == 0


def test_a_plan_that_does_not_fit_is_refused_in_words(make: Make, build: Build) -> None:
    folder = make()
    outcome, _ = build(folder, precision="int8")
    plan, file = json.loads((outcome.folder / "plan.json").read_text()), folder / "plan.json"
    for change, reason in (
        ({"backend": "openvino"}, "for the backend openvino"),
        ({"precisions": {**plan["precisions"], "conv9": "int8"}}, "names a layer 'conv9'"),
        ({"precisions": {"layer1": "int8"}, "ranges": {}}, "has no range for the tensor"),
        ({"shapes": {"x": {"smallest": [2], "usual": [2], "largest": [2]}}}, "other --shapes"),
        ({"base": "int7"}, "plan.json can't be read"),
    ):
        file.write_text(json.dumps({**plan, **change}))
        with pytest.raises(InputError, match=reason):
            build(folder, plan=file)


def test_an_embedding_has_no_agreement_of_decisions_and_a_lossy_rung_names_its_worst_layer(make: Make, build: Build) -> None:
    _, report = build(make(spoiled=True), precision="int8", task="embedding")
    imported, fused, *lossy = report["ladder"]
    assert (imported["rung"], imported["against"]) == ("imported", "source")
    assert {rung["metric"] for rung in report["ladder"]} == {"cosine"}
    assert {rung["agreement"] for rung in report["ladder"]} == {None}
    assert imported["worst_layer"] is fused["worst_layer"] is None
    assert lossy[0]["worst_layer"] in {"layer0", "layer1", "layer2"}
    assert not any(rung["breaks"] for rung in (imported, fused))


def test_no_file_of_an_engine_folder_tells_where_anything_lay(make: Make, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make()
    monkeypatch.chdir("/")
    (folder / "mine.py").write_text(
        "import numpy as np\n"
        "def right(outputs, labels):\n    return (outputs['y'].argmax(1) == labels).astype('float64')\n"
        f"def data():\n    for part in ('x',):\n        yield dict(np.load({str(folder / 'calibration.npz')!r}))\n"
    )
    outcome, report = build(folder, metric=f"{folder / 'mine.py'}:right", calibration=f"{folder / 'mine.py'}:data", precision="int8")
    assert report["gate"]["metric"] == "mine.py:right"
    assert report["provenance"]["calibration"]["source"] == "mine.py:data"
    for file in outcome.folder.rglob("*"):
        assert file.is_dir() or str(folder).encode() not in file.read_bytes(), file.name
