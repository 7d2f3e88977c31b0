"""`optimize build` hands on what was asked, and shows what came of it where it belongs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx_ir as ir
import pytest

from kernels.target import Target
from optimizer.cli.build import command
from optimizer.engine import Built, Candidate, Parity, Realised
from optimizer.errors import InputError
from optimizer.latency import MaxLatency
from optimizer.model import Model, Source
from optimizer.plan import Plan, Shape
from optimizer.progress import Track
from optimizer.provenance import to_json
from optimizer.report.report import Failure, Provenance, Report, Reports, report_from, reports_from
from optimizer.request import Request

Run = Callable[..., Any]


def a_report(verdict: str = "pass", code: int = 0) -> Report:
    parity = Parity(verdict, "top1", 0.8, 0.8, 0.008, 0.0, -0.001, 0.001, 2000, None, "this CPU", "it is under the budget.")  # type: ignore[arg-type]
    built = Built((Realised("[red]conv\x1b[1m", "Conv", "int8", "fp32", reason="why"),))
    candidate = Candidate("int8", Plan("onnxruntime", "cpu", "int8"), built=built, parity=parity, outcome="shipped")
    source = Source("onnx", "m.onnx", "0" * 64)
    return report_from(
        model=Model(ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), source),
        target=Target("cpu", "cpu", "x86-64", "a CPU"),
        requested="auto",
        subject=candidate,
        candidates=[candidate],
        parity=parity,
        provenance=Provenance(source, {}),
        exit_code=code,
    )


@dataclass(frozen=True)
class Outcome:
    report: Report | Reports
    folder: Path

    @property
    def exit_code(self) -> int:
        return self.report.exit_code

    @property
    def headline(self) -> str:
        return self.report.headline


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Puts a pipeline in place that notes the request, makes noise on standard output, and gives what stands in the list."""
    requests: list[Any] = []
    results: list[Any] = []

    def build(request: Request, track: Track) -> Outcome:
        requests.append(request)
        track("calibrating", 0, 2)
        track("calibrating", 2, 2)
        os.write(1, b"a library in C writes\n")
        sys.stdout.write("a library in Python writes\n")
        result = results[0] if results else a_report()
        if isinstance(result, BaseException):
            raise result
        return Outcome(result, tmp_path / "out")

    fake = ModuleType("optimizer.pipeline")
    fake.build = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "optimizer.pipeline", fake)
    requests.append(results)
    return requests


def test_every_word_reaches_the_request(optimize: Run, asked: list[Any]) -> None:
    ended = optimize(
        *("build", "net.th", "-o", "out", "--target", "cpu", "--target", "l4", "--backend", "onnxruntime", "--precision", "int8"),
        *("--calibration", "c.npz", "--evaluation", "e.npz", "--task", "classification", "--metric", "top1", "--max-drop", "0.5pp"),
        *("--min-metric", "0.8", "--min-speedup", "1.5", "--max-latency", "2ms@p99x4", "--objective", "throughput"),
        *("--shapes", "x=1x3x32x32", "--shapes", "y=1:2:4"),
        *("--factory", "net.py:make", "--factory-arg", "n=10", "--factory-arg", "m=a=b", "--threads", "1", "--seed", "7"),
        *("--on-inconclusive", "fail", "--require-measured"),
    )
    assert ended.code == 0
    request = asked[1]
    assert request == Request(
        model=Path("net.th"),
        output=Path("out"),
        targets=("cpu", "l4"),
        backends=("onnxruntime",),
        precision="int8",
        calibration="c.npz",
        evaluation="e.npz",
        task="classification",
        metric="top1",
        max_drop="0.5pp",
        min_metric=0.8,
        min_speedup=1.5,
        max_latency=MaxLatency(2.0, "p99", concurrency=4),
        objective="throughput",
        shapes={"x": Shape(*[(1, 3, 32, 32)] * 3), "y": Shape((1,), (2,), (4,))},
        factory="net.py:make",
        factory_args={"n": "10", "m": "a=b"},
        threads=1,
        seed=7,
        on_inconclusive="fail",
        require_measured=True,
    )


def test_a_plan_reaches_the_request(optimize: Run, asked: list[Any]) -> None:
    assert optimize("net.onnx", "-o", "out", "--plan", "p.json").code == 0
    assert asked[1] == Request(model=Path("net.onnx"), output=Path("out"), plan=Path("p.json"))


def test_the_options_are_what_a_request_can_hold() -> None:
    options = {parameter.name for parameter in command.params} - {"config", "as_json"}
    assert options == {field.name for field in fields(Request)} - {"preprocessing", "folder"} | {"tokenizer"}, "a part of preprocessing"


def test_a_model_without_a_command_is_built_with_the_defaults(optimize: Run, asked: list[Any]) -> None:
    assert optimize("net.onnx", "-o", "out").code == 0
    assert optimize("-o", "out", "net.onnx").code == 0
    assert asked[1] == asked[2] == Request(model=Path("net.onnx"), output=Path("out"))


def test_a_flag_that_was_not_given_does_not_count_against_the_file(optimize: Run, asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "optimize.toml").write_text('random_calibration = true\nrequire_measured = true\ntarget = ["l4"]\nseed = 3\n')
    optimize("build", "net.onnx", "-o", "out", "--config", tmp_path / "optimize.toml")
    assert (asked[1].random_calibration, asked[1].require_measured, asked[1].targets, asked[1].seed) == (True, True, ("l4",), 3)


def test_with_json_standard_output_is_the_report_and_nothing_else(optimize: Run) -> None:
    ended = optimize("net.onnx", "-o", "out", "--json")
    assert ended.out.encode() == to_json(a_report())
    assert "a library in C writes" in ended.err
    assert "a library in Python writes" in ended.err
    assert "What was tried" in ended.err


def test_without_json_people_get_the_report_and_the_last_line_names_the_code(optimize: Run) -> None:
    ended = optimize("net.onnx", "-o", "out")
    assert "What was tried" in ended.out
    assert "[red]conv\\x1b[1m" in ended.out
    assert ended.last.startswith("PASS (exit 0): INT8, not timed; top1 80.00 % -> 80.00 %")


@pytest.mark.parametrize(("verdict", "code", "name"), [("fail", 3, "FAIL"), ("inconclusive", 4, "INCONCLUSIVE")])
def test_a_verdict_is_an_exit_code(optimize: Run, asked: list[Any], verdict: str, code: int, name: str) -> None:
    asked[0].append(a_report(verdict, code))
    ended = optimize("net.onnx", "-o", "out", "--json")
    assert ended.code == code
    assert ended.last.startswith(f"{name} (exit {code}): ")


def test_an_error_leaves_standard_output_empty_also_with_json(optimize: Run, asked: list[Any]) -> None:
    asked[0].append(InputError("It is empty.", "Give a whole one."))
    ended = optimize("net.onnx", "-o", "out", "--json")
    assert (ended.code, ended.out, ended.last) == (2, "", "WRONG INPUT (exit 2): It is empty. Give a whole one.")


def test_several_targets_end_in_one_table_and_the_worst_code(optimize: Run, asked: list[Any]) -> None:
    asked[0].append(reports_from({"cpu": a_report(), "h100": Failure("NOT AVAILABLE", "No.", "Take cpu.", 5)}))
    ended = optimize("net.onnx", "-o", "out")
    assert ended.code == 5
    assert "Take cpu." in ended.out
    assert ended.last == "NOT AVAILABLE (exit 5): cpu pass, h100 not available"


def test_in_ci_there_is_a_job_summary_and_no_colour(
    optimize: Run, asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (tmp_path / "summary.md").write_text("before\n")
    ended = optimize("net.onnx", "-o", "out", "--ci")
    assert asked[1].ci
    assert "\x1b" not in ended.out + ended.err
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("before\n### optimize m.onnx for cpu: PASS")


def test_in_ci_random_calibration_is_refused(optimize: Run, asked: list[Any]) -> None:
    ended = optimize("net.onnx", "-o", "out", "--ci", "--random-calibration")
    assert ended.code == 2
    assert len(asked) == 1


def test_progress_is_told_in_plain_lines_where_there_is_no_terminal(optimize: Run) -> None:
    ended = optimize("net.onnx", "-o", "out", "--json")
    assert ended.err.splitlines()[0] == "calibrating ..."
    assert "calibrating: 2 of 2" in ended.err


@pytest.mark.parametrize(("verdict", "code", "kind"), [("fail", 3, "error"), ("inconclusive", 4, "warning")])
def test_in_ci_what_is_no_pass_is_an_annotation_where_the_ci_takes_them(
    optimize: Run, asked: list[Any], monkeypatch: pytest.MonkeyPatch, verdict: str, code: int, kind: str
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    asked[0].append(a_report(verdict, code))
    ended = optimize("net.onnx", "-o", "out", "--ci", "--json")
    *_, annotation, last = ended.err.splitlines()
    assert annotation.startswith(f"::{kind} title={verdict.upper()} (exit {code})::INT8, not timed; top1 80.00 %25")
    assert last.startswith(f"{verdict.upper()} (exit {code}): ")
    assert "::" not in optimize("net.onnx", "-o", "out").err


def test_in_ci_an_error_is_an_annotation_too(optimize: Run, asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    asked[0].append(InputError("It is empty\n::set-output name=x::1.", "Give a whole one."))
    annotations = [line for line in optimize("net.onnx", "-o", "out", "--ci").err.splitlines() if line.startswith("::")]
    assert annotations == ["::error title=WRONG INPUT (exit 2)::It is empty ::set-output name=x::1. Give a whole one."]
