"""The command line from a file to a sealed folder, with everything that users and machines do to it on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

import optimizer

Run = Callable[..., Any]

GRAPH = """<ir_version: 9, opset_import: ["": 20]> net (float[batch,64] input) => (float[batch,8] y)
{ h = MatMul(input, w1)  r = Relu(h)  y = MatMul(r, w2) }"""
HOSTILE = ["[red]first[/red]\x1b[2J", "<script>alert(1)</script>", "]]>\x00\u202e&"]


def save(file: Path, names: list[str] | None = None) -> Path:
    """A small network, its three layers called as told."""
    model = onnx.parser.parse_model(GRAPH)
    draw = np.random.default_rng(0)
    for name, shape in (("w1", (64, 256)), ("w2", (256, 8))):
        model.graph.initializer.append(onnx.numpy_helper.from_array((draw.standard_normal(shape) / 8).astype(np.float32), name))
    for node, name in zip(model.graph.node, names or ["features.0", "features.1", "head"], strict=True):
        node.name = name
    onnx.save(model, file)
    return file


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder as a user has it: a model, calibration and evaluation data."""
    save(tmp_path / "net.onnx")
    samples = np.random.default_rng(1).standard_normal((400, 64)).astype(np.float32)
    np.savez(tmp_path / "calibration.npz", input=samples[:200])
    np.savez(tmp_path / "evaluation.npz", input=samples[200:])
    return tmp_path


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_model_becomes_an_engine_that_verifies_loads_and_runs(work: Path, optimize_apart: Run) -> None:
    data = ("--calibration", "calibration.npz", "--evaluation", "evaluation.npz", "--task", "classification")
    built = optimize_apart("net.onnx", "-o", "out", *data, "--json", cwd=work)
    assert built.code == 0, built.err
    assert json.loads(built.out) == json.loads((work / "out" / "report.json").read_text())
    assert built.last.startswith("PASS (exit 0): ")
    assert str(work) not in built.out
    assert left(work) == ["calibration.npz", "evaluation.npz", "net.onnx", "out"]
    assert {"engine.onnx", "passport.json", "plan.json", "report.html", "report.json", "junit.xml"} <= set(left(work / "out"))
    assert optimize_apart("verify", work / "out", "--load").code == 0
    feed = np.random.default_rng(2).standard_normal((3, 64)).astype(np.float32)
    with optimizer.load(work / "out") as engine:
        assert engine.run({"input": feed})["y"].shape == (3, 8)
        np.testing.assert_array_equal(engine.run({"input": feed})["y"], engine.run_raw({"input": feed})["y"])
    again = optimize_apart("net.onnx", "-o", "out", "--precision", "fp32", cwd=work)
    assert again.code == 0, again.err
    assert json.loads((work / "out" / "report.json").read_text())["precision"]["requested"] == "fp32"
    assert left(work) == ["calibration.npz", "evaluation.npz", "net.onnx", "out"]


def test_names_out_of_a_hostile_model_steer_nothing(work: Path, optimize_apart: Run) -> None:
    names = [name.replace("\x00", "") for name in HOSTILE]
    built = optimize_apart(save(work / "hostile.onnx", names), "-o", work / "out", "--precision", "fp32")
    assert built.code == 0, built.err
    for shown in (built.out, built.err):
        assert not any(unicodedata.category(character) in ("Cc", "Cf") for character in shown.replace("\n", ""))
    page = (work / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    ElementTree.parse(work / "out" / "junit.xml")
    inspected = optimize_apart("inspect", work / "out")
    assert "\x1b" not in inspected.out


def empty(work: Path) -> list[str]:
    (work / "net.onnx").write_bytes(b"")
    return []


def truncated(work: Path) -> list[str]:
    content = (work / "net.onnx").read_bytes()
    (work / "net.onnx").write_bytes(content[: len(content) // 2])
    return []


def no_model(work: Path) -> list[str]:
    (work / "net.onnx").unlink()
    return []


def no_data(_work: Path) -> list[str]:
    return ["--calibration", "nowhere.npz"]


def wrong_shape(work: Path) -> list[str]:
    np.savez(work / "wrong.npz", input=np.zeros((10, 63), np.float32))
    return ["--calibration", "wrong.npz"]


def wrong_name(work: Path) -> list[str]:
    np.savez(work / "wrong.npz", pixels=np.zeros((10, 64), np.float32), mask=np.zeros((10, 64), np.float32))
    return ["--calibration", "wrong.npz"]


def not_a_number(work: Path) -> list[str]:
    np.savez(work / "nan.npz", input=np.full((10, 64), np.nan, np.float32))
    return ["--calibration", "nan.npz"]


def no_samples(work: Path) -> list[str]:
    np.savez(work / "none.npz", input=np.zeros((0, 64), np.float32))
    return ["--calibration", "none.npz"]


def bare_budget(_work: Path) -> list[str]:
    return ["--evaluation", "evaluation.npz", "--max-drop", "1", "--task", "classification"]


def output_is_a_file(work: Path) -> list[str]:
    (work / "out").write_text("mine")
    return []


def output_is_not_ours(work: Path) -> list[str]:
    (work / "out").mkdir()
    (work / "out" / "thesis.txt").write_text("mine")
    return []


def broken_config(work: Path) -> list[str]:
    (work / "optimize.toml").write_text("target = [")
    return ["--config", "optimize.toml"]


def unknown_word(work: Path) -> list[str]:
    (work / "optimize.toml").write_text("speed = 'high'")
    return ["--config", "optimize.toml"]


def output_of_a_long_name(_work: Path) -> list[str]:
    return ["-o", "n" * 300]


def data_of_a_long_name(_work: Path) -> list[str]:
    return ["--calibration", "n" * 300]


WRONG = [
    *(empty, truncated, no_model, no_data, wrong_shape, wrong_name, not_a_number, no_samples, bare_budget),
    *(output_is_a_file, output_is_not_ours, output_of_a_long_name, data_of_a_long_name, broken_config, unknown_word),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input_is_one_clear_error_and_leaves_nothing(
    wrong: Callable[[Path], list[str]], work: Path, optimize: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = wrong(work)
    monkeypatch.chdir(work)
    before = left(work)
    ended = optimize("net.onnx", "-o", "out", *words)
    assert ended.code == 2, ended.err
    assert ended.last.startswith("WRONG INPUT (exit 2): ")
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert left(work) == before


def test_a_full_disk_is_told_and_leaves_nothing(work: Path, optimize: Run) -> None:
    small = work / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        ended = optimize(work / "net.onnx", "-o", small / "out", "--precision", "fp32")
        assert (ended.code, "Traceback" in ended.err) == (2, False), ended.err
        assert "full" in ended.last
        assert left(small) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_folder_that_may_not_be_written_is_told(work: Path, optimize: Run) -> None:
    ended = optimize(work / "net.onnx", "-o", "/sys/kernel/out")
    assert ended.code == 2
    assert "can't be written" in ended.last


def test_of_several_targets_one_that_fails_leaves_the_rest(work: Path, optimize: Run) -> None:
    ended = optimize(work / "net.onnx", "-o", work / "out", "--precision", "fp32", "--target", "cpu", "--target", "abacus", "--json")
    assert ended.code == 5, ended.err
    summary = json.loads(ended.out)
    assert summary["targets"]["cpu"]["verdict"] == "pass"
    assert "abacus" in summary["failures"]["abacus"]["reason"]
    assert left(work / "out") == ["cpu", "report.json"]
    assert optimize("verify", work / "out" / "cpu").code == 0
    assert ended.last.startswith("NOT AVAILABLE (exit 5): ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("seconds", [0.4, 1.2, 2.0])
def test_a_build_that_is_stopped_leaves_nothing_or_a_whole_engine(
    work: Path, optimize: Run, number: signal.Signals, seconds: float
) -> None:
    command = [
        sys.executable,
        "-c",
        "from optimizer.cli.main import main; main()",
        "net.onnx",
        "-o",
        "out",
        "--calibration",
        "calibration.npz",
    ]
    with subprocess.Popen(command, cwd=work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        time.sleep(seconds)
        child.send_signal(number)
        child.wait(30)
    if (work / "out").exists():
        assert optimize("verify", work / "out").code == 0
    if number != signal.SIGKILL:
        assert ".out.partial" not in left(work)


def test_what_a_killed_build_left_does_not_stand_in_the_way_of_the_next(work: Path, optimize: Run) -> None:
    (work / ".out.partial" / "scratch").mkdir(parents=True)
    (work / ".out.partial" / "scratch" / "engine.onnx").write_bytes(b"half")
    assert optimize(work / "net.onnx", "-o", work / "out", "--precision", "fp32").code == 0
    assert ".out.partial" not in left(work)
    assert optimize("verify", work / "out").code == 0
