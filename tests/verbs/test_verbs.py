"""What can be done with models and engines beside building them, as functions and on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.cli.main import run
from optimizer.errors import InputError, UnavailableError, VerificationError
from optimizer.plan import Shape
from optimizer.provenance import to_json
from optimizer.report.report import Failure, Report, reports_from
from optimizer.verbs.bench import bench
from optimizer.verbs.doctor import doctor
from optimizer.verbs.inspect import Inspected, InspectedEngine, inspect
from optimizer.verbs.verify import verify

Make = Callable[..., Path]


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_verify_accepts_an_engine_as_built_and_can_load_it(engine: Make) -> None:
    folder = engine()
    assert verify(folder).unloadable is None
    assert verify(folder, try_to_load=True).loaded


def test_verify_ends_in_6_for_one_flipped_bit(engine: Make, capfd: pytest.CaptureFixture[str]) -> None:
    folder = engine()
    assert run(["verify", str(folder)]) == 0
    flip_a_bit(folder / "engine.onnx")
    with pytest.raises(VerificationError):
        verify(folder)
    capfd.readouterr()
    assert run(["verify", str(folder)]) == 6
    assert capfd.readouterr().err.startswith("VERIFICATION FAILED (exit 6): engine.onnx in engine is not the file that was built")


def test_verify_says_what_keeps_an_engine_from_loading_here(engine: Make) -> None:
    folder = engine(target="l4", kind="tensorrt")
    assert "l4" in (verify(folder).unloadable or "").lower()
    with pytest.raises(UnavailableError):
        verify(folder, try_to_load=True)


def test_bench_times_engines_of_one_model_against_the_first(engine: Make, onnx_file: Path) -> None:
    found = bench([engine("one"), engine("two"), onnx_file], seconds=0.6, shapes={"input": Shape((1, 64), (8, 64), (8, 64))})
    assert list(found.timings) == ["one", "two", "net.onnx"]
    assert found.baseline == "one"
    assert found.inputs == "random numbers (input 8x64)"
    assert all(timing.milliseconds > 0 and timing.low <= timing.ratio <= timing.high for timing in found.timings.values())
    assert found.timings["one"].ratio == 1.0


def test_bench_runs_on_samples_where_they_are_given(engine: Make, onnx_file: Path) -> None:
    data = onnx_file.with_name("data.npz")
    np.savez(data, input=np.zeros((40, 64), np.float32))
    found = bench([onnx_file, engine("one")], seconds=0.3, evaluation=str(data))
    assert found.inputs == "the first 16 samples of data.npz"


def test_bench_puts_each_to_a_load_test_where_clients_are_asked_for(
    engine: Make, onnx_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = engine("one")
    found = bench([folder, onnx_file], seconds=0.1, concurrency=3)
    assert list(found.loads) == ["one", "net.onnx"]
    assert all(load.concurrency == 3 and load.p99.high is not None for load in found.loads.values())
    capfd.readouterr()
    assert run(["bench", str(folder), "--seconds", "0.1", "--concurrency", "2"]) == 0
    assert "; 2 clients, " in capfd.readouterr().out
    assert run(["bench", str(folder), "--concurrency", "0"]) == 2


def test_bench_refuses_what_can_not_be_compared(engine: Make) -> None:
    one = engine("one")
    with pytest.raises(InputError, match="given twice"):
        bench([one, one])
    with pytest.raises(InputError, match="other does not take the same inputs"):
        bench([one, engine("other", width=32)])


def test_inspect_tells_layers_fusions_and_who_can_take_a_model(onnx_file: Path) -> None:
    found = inspect(onnx_file, targets=["cpu", "h100"])
    assert isinstance(found, Inspected)
    assert [spec.name for spec in found.inputs] == ["input"]
    assert found.operators["MatMul"] == 2
    takers = {(taker.target, taker.backend): taker for taker in found.takers}
    assert takers["cpu", "onnxruntime"].missing is None
    assert "int8" in takers["cpu", "onnxruntime"].precisions
    assert list(takers["cpu", "onnxruntime"].not_int8) == ["layer.y"]
    assert takers["h100", "onnxruntime"].missing is not None


def test_inspect_shows_what_an_engine_came_to_once_it_is_verified(engine: Make) -> None:
    folder = engine()
    found = inspect(folder)
    assert isinstance(found, InspectedEngine)
    assert [layer.op for layer in found.report.precision.layers][:1] == ["MatMul"]
    flip_a_bit(folder / "report.json")
    with pytest.raises(VerificationError):
        inspect(folder)


def test_inspect_shows_the_report_where_nothing_passed_and_of_several_targets(engine: Make) -> None:
    folder = engine()
    (folder / "passport.json").unlink()
    one = inspect(folder)
    assert isinstance(one, InspectedEngine)
    assert one.passport is None
    assert isinstance(one.report, Report)
    (folder / "report.json").write_bytes(
        to_json(reports_from({"cpu": one.report, "h100": Failure("NOT AVAILABLE", "No.", "Take cpu.", 5)}))
    )
    several = inspect(folder)
    assert isinstance(several, InspectedEngine)
    assert several.report.headline == "cpu pass, h100 not available"


def test_doctor_finds_this_cpu_served_and_names_the_way_out_for_others() -> None:
    found = doctor()
    here = {(one.target, one.backend): one for one in found.served}
    assert here["cpu", "onnxruntime"].missing is None
    assert here["cpu", "onnxruntime"].runs_here
    assert "handover" in (here["h100", "tensorrt"].missing or "")
    assert found.problems == ()


def arguments(verb: str, engine: Make, onnx_file: Path) -> list[str]:
    words = {
        "verify": ["verify", engine()],
        "bench": ["bench", engine("a"), engine("b"), "--seconds", "0.2"],
        "inspect": ["inspect", onnx_file],
        "inspect an engine": ["inspect", engine("c")],
        "doctor": ["doctor"],
        "qualify": ["qualify", engine("q"), "--seconds", "0.2"],
    }[verb]
    return [str(word) for word in words]


@pytest.mark.parametrize("verb", ["verify", "bench", "inspect", "inspect an engine", "doctor", "qualify"])
def test_each_verb_shows_itself_and_gives_json_alone_on_request(
    verb: str, engine: Make, onnx_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = arguments(verb, engine, onnx_file)
    capfd.readouterr()
    assert run(words) == 0
    shown = capfd.readouterr()
    assert len(shown.out.splitlines()) > 1
    assert shown.err.splitlines()[-1].startswith("PASS (exit 0): ")
    assert run([*words, "--json"]) == 0
    captured: Any = capfd.readouterr()
    assert isinstance(json.loads(captured.out), dict)


def test_qualify_gates_against_the_model_and_attests_it(engine: Make, onnx_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = engine(source=onnx_file)
    assert run(["qualify", str(folder), "--model", str(onnx_file), "--seconds", "0.2"]) == 0
    assert "no lossy step" in capfd.readouterr().err
    assert len(list((folder / "attestations").iterdir())) == 1
    verify(folder)


def test_qualify_of_a_gpu_that_is_not_here_ends_in_5(engine: Make, capfd: pytest.CaptureFixture[str]) -> None:
    folder = engine(target="l4", kind="tensorrt")
    assert run(["qualify", str(folder)]) == 5
    assert capfd.readouterr().err.startswith("NOT AVAILABLE (exit 5): ")
    assert not (folder / "attestations").exists()


@pytest.mark.parametrize("words", [["inspect", "nowhere.onnx"], ["verify", "nowhere"], ["bench", "nowhere"], ["bench", "nowhere.onnx"]])
def test_what_is_not_there_is_wrong_input(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    said = capfd.readouterr()
    assert said.err.splitlines()[-1].startswith("WRONG INPUT (exit 2): ")
    assert "Traceback" not in said.err
    assert said.out == ""
