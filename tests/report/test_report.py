"""report.json tells all, in DESIGN's words, and nothing that is private."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kernels.target import Target
from kernels.timing import Timing
from optimizer.engine import Candidate
from optimizer.plan import Plan
from optimizer.provenance import from_json, to_json
from optimizer.report.headline import dropped, headline_from, points, score
from optimizer.report.report import Failure, Report, Reports, portable, reports_from, worst

Make = Callable[..., Report]

PROMISED = {
    "schema": None,
    "verdict": None,
    "gate": {"metric", "parent", "engine", "budget", "drop", "low", "high", "samples", "samples_needed", "gated_on"},
    "ladder": {"rung", "metric", "agreement", "sqnr_db", "max_abs", "output_sensitivity"},
    "precision": {"requested", "realised", "layers"},
    "speed": {"baseline_ms", "engine_ms", "speedup", "low", "high", "timed_on"},
    "memory": set(),
    "fusions": {"rule", "layers"},
    "candidates": {"backend", "precision", "knobs", "latency_ms", "verdict", "reason"},
    "target": {"name"},
    "provenance": set(),
}


def test_the_json_has_every_key_that_the_design_promises(make_report: Make) -> None:
    content = json.loads(to_json(make_report()))
    for key, inside in PROMISED.items():
        value = content[key]
        found = value[0] if isinstance(value, list) else value
        assert inside is None or inside <= found.keys(), key
    assert content["precision"]["layers"][0].keys() >= {"name", "op", "planned", "realised", "reason"}


def test_the_json_comes_back_as_the_report_that_was_written(make_report: Make) -> None:
    report = make_report()
    assert from_json(to_json(report), Report, "report.json") == report


def test_speed_is_the_paired_ratio_over_the_sibling_that_it_ran_against(make_report: Make) -> None:
    speed = make_report().speed
    assert (speed.engine_ms, speed.baseline_ms, speed.baseline, speed.speedup) == (0.5, 0.95, "fp32", 1.9)
    assert speed.timed_on == "AMD EPYC (family 25)"


def test_what_was_not_timed_says_so_and_shows_static_counts(make_report: Make, l4: Target) -> None:
    report = make_report(target=l4)
    assert report.speed.timed_on is None
    assert report.speed.speedup is None
    assert report.candidates[1].launches == 57
    assert report.candidates[1].moved_bytes == 57 * 120_000
    assert "not timed" in report.headline
    assert report.headline.endswith("simulated on the CPU, never run on an L4")


def test_a_t4_is_a_t4_and_an_a100_an_a100(make_report: Make, l4: Target) -> None:
    for device, words in (("NVIDIA T4", "a T4"), ("NVIDIA A100", "an A100"), ("GeForce RTX 4090", "a GeForce RTX 4090")):
        assert make_report(target=replace(l4, device=device)).headline.endswith(f"never run on {words}")


def test_the_headline_of_a_model_that_came_quantized_does_not_pass_it_off_as_float(make_report: Make) -> None:
    report = make_report()
    subject = Candidate("fp32", Plan("onnxruntime", "cpu", "fp32"))
    headline = headline_from(subject, [subject], report.gate, report.target, "auto", quantized=True)
    assert headline.startswith("FP32 beside the INT8 that it came with, not timed")


def test_the_headline_says_what_a_faster_one_would_have_lost(make_report: Make) -> None:
    headline = make_report().headline
    assert headline.startswith("INT8 1.90x faster than FP32 [1.85, 1.95]; top1 81.95 % -> 81.80 %, drop 0.15 pp [-0.20, 0.52]")
    assert "INT8 dynamic 3.10x held back: it would lose 3.20 pp" in headline


def test_what_was_asked_for_by_name_and_is_slower_is_called_slower(make_report: Make) -> None:
    report = make_report()
    subject = Candidate("int8", Plan("onnxruntime", "cpu", "int8"), timing=Timing(1.2, 1.3, 1.4, "fp32", 0.83, 0.8, 0.86, 9, "", "here"))
    assert headline_from(subject, [subject], report.gate, report.target, "int8").startswith(
        "INT8 0.83x as fast as FP32 [0.80, 0.86], slower; "
    )
    own = replace(subject, name="fp32", timing=replace(subject.timing, ratio=1.0))
    assert "nothing lower" in headline_from(own, [own], report.gate, report.target, "auto")
    assert "nothing lower" not in headline_from(own, [own], report.gate, report.target, "fp32")


def test_an_open_verdict_says_how_many_samples_would_decide(make_report: Make) -> None:
    assert "about 600 more samples would decide" in make_report(verdict="inconclusive").headline


def test_a_verdict_that_the_drop_alone_would_not_give_says_why(make_report: Make) -> None:
    report = make_report()
    subject = Candidate("int8", Plan("onnxruntime", "cpu", "int8"))
    gate = replace(report.gate, verdict="fail", reason="1.20x is less than the 1.5x that was demanded")
    assert "0.82 pp allowed; 1.20x is less than the 1.5x that was demanded" in headline_from(subject, [subject], gate, report.target, "")


def test_the_lowest_precision_and_the_counts_are_those_of_the_built_engine(make_report: Make) -> None:
    precision = make_report().precision
    assert precision.realised == "int8"
    assert precision.counts == {"int8": 19, "fp32": 1}
    assert [layer.name for layer in precision.layers if layer.differs] == ["layer2.1.conv2"]


def test_private_paths_do_not_reach_the_report(make_report: Make) -> None:
    home, here = Path.home(), Path.cwd()
    notes = [f"{here}/net.py was read", f"see {home}/.cache/x", "/somewhere/private/data.npz is short"]
    report = make_report(notes=notes)
    assert report.notes == ("net.py was read", "see .cache/x", "data.npz is short")
    text = to_json(report).decode()
    assert str(here) not in text
    assert "/somewhere" not in text


def test_names_that_look_like_paths_are_left_alone() -> None:
    assert portable("/encoder/layer.0/MatMul fell back", [Path.cwd(), Path("/")]) == "/encoder/layer.0/MatMul fell back"


@pytest.mark.parametrize(
    ("value", "metric", "as_score", "as_points"),
    [
        (0.8195, "top1", "81.95 %", "81.95 pp"),
        (-0.00001, "agreement", "-0.00 %", "0.00 pp"),
        (0.5, "rmse", "0.5", "0.5"),
        (None, "mae", "none", "unknown"),
    ],
)
def test_rates_are_told_in_percent_and_points_and_others_in_their_own_unit(
    value: float | None, metric: str, as_score: str, as_points: str
) -> None:
    assert (score(value, metric), points(value, metric)) == (as_score, as_points)
    assert dropped(None, None, None, metric) == "unknown"


def test_the_exit_code_of_several_targets_is_the_worst(make_report: Make) -> None:
    assert worst([0, 4, 3]) == 3
    assert worst([0, 5, 3, 2]) == 2
    reports = reports_from({"cpu": make_report(), "h100": Failure("NOT AVAILABLE", "no.", "none.", 5)})
    assert (reports.exit_code, reports.headline) == (5, "cpu pass, h100 not available")
    assert from_json(to_json(reports), Reports, "report.json").exit_code == 5
