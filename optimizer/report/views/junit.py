"""JUnit XML: a CI shows the gate, each rung of the ladder and each layer that fell back as a test case."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from optimizer.report.escape import markup
from optimizer.report.headline import NUMERIC, broken, dropped, points, score
from optimizer.report.report import LayerReport, Report

_FAIL = 3
"""The exit code of a FAIL, which an INCONCLUSIVE verdict can be taken for."""


@dataclass(frozen=True)
class _Case:
    group: str
    name: str
    text: str
    failure: str = ""
    skipped: str = ""


def render(report: Report) -> str:
    """The report as one test suite: a FAIL is a failure, INCONCLUSIVE and what fell back are skipped with the reason."""
    cases = [_gate(report), _speed(report), *_ladder(report), *_layers(report.precision.layers)]
    failures = sum(bool(case.failure) for case in cases)
    skipped = sum(bool(case.skipped) for case in cases)
    name = markup(f"optimize {report.provenance.source.file} for {report.target.name}")
    return "\n".join(
        [
            '<?xml version="1.0" encoding="UTF-8"?>',
            f'<testsuites tests="{len(cases)}" failures="{failures}" errors="0" skipped="{skipped}">',
            f'  <testsuite name="{name}" tests="{len(cases)}" failures="{failures}" errors="0" skipped="{skipped}">',
            *(_element(case) for case in cases),
            "  </testsuite>",
            "</testsuites>",
            "",
        ]
    )


def _gate(report: Report) -> _Case:
    gate, metric = report.gate, report.gate.metric
    text = f"{gate.reason} ({gate.samples} samples, gated on {gate.gated_on})"
    if metric != NUMERIC:
        text = (
            f"{metric}: parent {score(gate.parent, metric)}, engine {score(gate.engine, metric)}, "
            f"drop {dropped(gate.drop, gate.low, gate.high, metric)}, budget {points(gate.budget, metric)}, {text}"
        )
    return _Case(
        "gate",
        metric,
        text,
        failure=gate.reason or text if report.exit_code == _FAIL else "",
        skipped=gate.reason or text if report.verdict == "inconclusive" and report.exit_code != _FAIL else "",
    )


def _speed(report: Report) -> _Case:
    speed = report.speed
    if speed.timed_on is None:
        return _Case("speed", "speedup", "", skipped="not timed: the target is not here")
    return _Case("speed", "speedup", f"{speed.engine_ms} ms, {speed.speedup} [{speed.low}, {speed.high}] times {speed.baseline}")


def _ladder(report: Report) -> Iterable[_Case]:
    for rung in report.ladder:
        yield _Case(
            "ladder",
            rung.rung,
            f"differs by {rung.difference} from {rung.against}, rounding explains {rung.explained}; agreement {rung.agreement}, "
            f"SQNR {rung.sqnr_db} dB, largest difference {rung.max_abs}, output's own sensitivity {rung.output_sensitivity}, "
            f"layer {rung.worst_layer}. {rung.note}",
            failure=broken(rung) if rung.breaks and report.exit_code == _FAIL else "",
            skipped=broken(rung) if rung.breaks and report.exit_code != _FAIL else "",
        )


def _layers(layers: Iterable[LayerReport]) -> Iterable[_Case]:
    for layer in layers:
        if layer.differs:
            text = f"planned {layer.planned}, realised {layer.realised}"
            yield _Case("layers that fell back", layer.name, text, skipped=f"{text}: {layer.reason or 'the backend gave no reason'}")


def _element(case: _Case) -> str:
    inside = [
        f'<failure message="{markup(case.failure)}"/>' if case.failure else "",
        f'<skipped message="{markup(case.skipped)}"/>' if case.skipped else "",
        f"<system-out>{markup(case.text)}</system-out>" if case.text else "",
    ]
    return f'    <testcase classname="{markup(case.group)}" name="{markup(case.name)}">{"".join(inside)}</testcase>'
