"""What the report tells of each layer beside the unquantized engine's, and of how far INT8 went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from optimizer.engine import Built, Candidate, Realised
from optimizer.plan import Plan
from optimizer.provenance import from_json, to_json
from optimizer.report.report import Report
from optimizer.report.views import console, html

BEFORE = Built(
    (
        Realised("conv1", "Conv", "fp32", "fp32", ms=2.0, weights=4000, activations=8000, multiplications=90),
        Realised("fc", "Gemm", "fp32", "fp32", ms=1.0, weights=400, activations=40, multiplications=10),
    ),
    {"weights": 4400, "activations": 8_000_000, "file": 5000},
)
AFTER = Built(
    (
        Realised("conv1", "Conv", "int8", "int8", ms=0.5, weights=1000, activations=2000, multiplications=90),
        Realised("fc", "Gemm", "int8", "fp32", ms=0.75, reason="<b>no room</b>\x1b[31m", weights=400, activations=40, multiplications=10),
        Realised("new", "Reshape", "fp32", "fp32"),
    ),
    {"weights": 1400, "activations": 2_000_000, "run": 2_500_000},
)


def made(make_report: Callable[..., Report]) -> Report:
    fp32 = Candidate("fp32", Plan("onnxruntime", "cpu", "fp32"), built=BEFORE)
    int8 = Candidate("int8", Plan("onnxruntime", "cpu", "fp32"), built=AFTER, outcome="shipped")
    return make_report(subject=int8, candidates=[fp32, int8])


def test_a_layer_stands_beside_what_it_was_in_the_unquantized_engine(make_report: Callable[..., Report]) -> None:
    report = made(make_report)
    conv, _, new = report.precision.layers
    assert (conv.ms, conv.weights, conv.activations) == (0.5, 1000, 2000)
    assert (conv.parent_ms, conv.parent_weights, conv.parent_activations) == (2.0, 4000, 8000)
    assert (new.ms, new.parent_ms, new.parent_weights) == (None, None, None)
    assert (report.memory, report.parent_memory) == (AFTER.memory, BEFORE.memory)
    assert from_json(to_json(report), Report, "report.json") == report


def test_the_page_shows_times_sizes_and_what_int8_did_not_reach(make_report: Callable[..., Report]) -> None:
    page = html.render(made(make_report))
    assert "INT8 was asked for 2 layers, and 1 run in it: 90.0% of all multiplications by weights." in page
    assert "&lt;b&gt;no room&lt;/b&gt;\\x1b[31m" in page
    assert '<td class="number">0.500</td><td class="number">2.000</td>' in page
    assert '<td class="number">1.0</td><td class="number">4.0</td><td class="number">2.0</td><td class="number">8.0</td>' in page
    assert '<td>activations</td><td class="number">2.0</td><td class="number">8.0</td>' in page
    assert '<td>run</td><td class="number">2.5</td><td class="number"></td>' in page


def test_the_terminal_names_the_dearest_layer_that_int8_did_not_reach(make_report: Callable[..., Report]) -> None:
    told = " ".join(console.render(made(make_report)).split())
    assert "INT8 INT8 was asked for 2 layers, and 1 run in it: 90.0% of all multiplications by weights" in told
    assert "not fc, 0.750 ms: <b>no room</b>\\x1b[31m" in told


def test_nothing_is_said_of_int8_where_nobody_asked_for_it(make_report: Callable[..., Report]) -> None:
    report = made(make_report)
    fp32 = replace(report.precision, int8=replace(report.precision.int8, asked=0) if report.precision.int8 else None)
    report = replace(report, precision=fp32)
    assert "INT8 was asked" not in html.render(report)
    assert "INT8 was asked" not in console.render(report)
