"""Models that carry a state, from their data to the verdict: a small recurrent cell, and the speech detector over real speech."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import optimizer
from optimizer.errors import InputError
from optimizer.planner import finals

STEPS, SIZE = 400, 32


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a cell that adds a tenth of its input to a slowly fading state, and two noisy waves as its data."""
    monkeypatch.setattr(finals, "RACE_SECONDS", 0.5)
    draw = np.random.default_rng(0)
    weights = {
        "into": draw.standard_normal((SIZE, SIZE)) / 10,
        "out": draw.standard_normal((SIZE, 2)) / SIZE,
        "fading": np.array([0.95]),
    }
    value = [1, SIZE]
    nodes = [
        helper.make_node("MatMul", ["x", "into"], ["news"], name="into"),
        helper.make_node("Mul", ["state", "fading"], ["old"], name="fading"),
        helper.make_node("Add", ["news", "old"], ["next"], name="adding"),
        helper.make_node("MatMul", ["next", "out"], ["scores"], name="out"),
    ]
    graph = helper.make_graph(
        nodes,
        "cell",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, value) for name in ("x", "state")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("scores", [1, 2]), ("next", value))],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "cell.onnx")
    for name, start in (("calibration", 0), ("evaluation", 5000)):
        time = np.arange(start, start + STEPS)[:, None] * np.linspace(0.01, 0.1, SIZE)
        np.savez(tmp_path / f"{name}.npz", x=(np.sin(time) + draw.standard_normal(time.shape) / 5).astype(np.float32))
    (tmp_path / "optimize.toml").write_text('[inputs.state]\nstate = "next"\n')
    return tmp_path


def built(folder: Path, model: Path, data: str = ".npz", **words: Any) -> dict[str, Any]:
    optimizer.build(
        model,
        folder / "out",
        calibration=str(folder / f"calibration{data}"),
        evaluation=str(folder / f"evaluation{data}"),
        config=folder / "optimize.toml",
        **words,
    )
    report: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    return report


def test_a_cell_is_calibrated_on_the_states_that_it_had_and_judged_over_the_sequence(cell: Path) -> None:
    report = built(cell, cell / "cell.onnx", precision="int8", threads=1)
    reached = json.loads((cell / "out" / "calibration.json").read_text())["statistics"]["state"]
    assert reached["maximum"] > 1.0  # zeros are what it begins with
    assert any("'state' carries the output 'next'" in note for note in report["notes"])
    assert report["gate"]["samples"] == STEPS
    assert report["gate"]["verdict"] == report["verdict"]


def test_neighbours_whose_errors_stay_alike_count_as_one_sample(cell: Path) -> None:
    """What an engine loses at one step is still in the state at the next, where the fading keeps it."""
    report = built(cell, cell / "cell.onnx", precision="int8", threads=1, metric="cosine")
    assert any("consecutive samples count as one" in note for note in report["gate"]["notes"])


@pytest.mark.parametrize(("state", "why"), [("scores", "can't carry the output 'scores'"), ("nothing", "does not have")])
def test_a_state_that_the_model_can_not_carry_is_refused(cell: Path, state: str, why: str) -> None:
    (cell / "optimize.toml").write_text(f'[inputs.state]\nstate = "{state}"\n')
    with pytest.raises(InputError, match=why):
        built(cell, cell / "cell.onnx")
    assert not (cell / "out").exists()


@pytest.fixture
def speech(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 6 seconds of speech for calibration and 18 others for evaluation."""
    monkeypatch.setattr(finals, "RACE_SECONDS", 1.0)
    with wave.open(str(assets / "speech_16k.wav")) as whole:
        rate = whole.getframerate()
        parts = {"calibration": whole.readframes(6 * rate), "evaluation": whole.readframes(18 * rate)}
    for name, sound in parts.items():
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as part:
            part.setparams((1, 2, rate, 0, "NONE", ""))
            part.writeframes(sound)
    (tmp_path / "optimize.toml").write_text(
        "[inputs.input]\nrate = 16000\nwindow = 576\nhop = 512\ncontext = 64\n"
        '[inputs.state]\nstate = "stateN"\n'
        "[inputs.sr]\nvalue = 16000\n"
    )
    return tmp_path


@pytest.mark.slow
def test_the_speech_detectors_lstm_runs_in_integers_though_its_file_has_it_inside_an_if(assets: Path, speech: Path) -> None:
    report = built(speech, assets / "silero_vad_16k.onnx", ".wav", precision="int8", threads=1, backends=["onnxruntime"], time_budget="20s")
    layers = {layer["name"]: layer for layer in report["precision"]["layers"]}
    lstm = layers["/model/decoder/rnn/LSTM"]
    tried = {one["name"].removeprefix("onnxruntime ") for one in report["candidates"]}
    assert {"int8", "int8 dynamic", "int8 static and dynamic"} <= tried
    assert lstm["planned"] == lstm["realised"]
    assert any(layer["realised"].startswith("int8") for layer in layers.values())
    assert report["verdict"] in {"pass", "inconclusive"}
    assert report["gate"]["samples"] == 18 * 16000 // 512
    assert report["gate"]["engine"] > 0.97


@pytest.mark.slow
def test_for_a_gpu_the_speech_detector_keeps_a_float_lstm_and_says_why(assets: Path, speech: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx, which builds for GPUs that are not here, is not installed")
    report = built(speech, assets / "silero_vad_16k.onnx", ".wav", target="l4")
    lstm = next(layer for layer in report["precision"]["layers"] if layer["op"] == "LSTM")
    assert lstm["realised"] in {"fp32", "fp16"}
    assert report["verdict"] in {"pass", "inconclusive"}
    assert report["gate"]["gated_on"] == "simulation"
    whole = next(one for one in report["candidates"] if one["name"] == "int8")
    assert whole["outcome"] in {"not built", "refused", "not finalist"}
    assert whole["reason"]
