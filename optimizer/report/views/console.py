"""The report on a terminal: plain text, or with colour where the terminal takes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from io import StringIO

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from kernels.load import load_in_words
from optimizer.report.escape import printable
from optimizer.report.headline import NUMERIC, chance, dropped, points, required, score
from optimizer.report.report import CandidateReport, PrecisionReport, Report, Reports

_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "shipped": "green", "refused": "red"}
_MOST_LAYERS = 12
_NONE = "-"


def render(report: Report | Reports, *, colour: bool = False, width: int = 110) -> str:
    """The report as text of at most `width` columns, with ANSI colours if `colour`."""
    return _drawn(_several(report) if isinstance(report, Reports) else _one(report), colour, width)


def tabulated(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "", *, colour: bool = False, width: int = 110) -> str:
    """A table as text; its cells may hold names out of models."""
    table = _table(title, columns)
    for row in rows:
        table.add_row(*(text(cell) for cell in row))
    return _drawn(table, colour, width)


def _drawn(shown: RenderableType, colour: bool, width: int) -> str:
    stream = StringIO()
    Console(file=stream, force_terminal=colour, no_color=not colour, width=width, highlight=False, emoji=False).print(shown)
    return "".join(line.rstrip() + "\n" for line in stream.getvalue().splitlines())


def text(words: object, style: str = "") -> Text:
    """Words that may come out of a model: never read as markup, control characters spelled out."""
    return Text(printable(str(words)), style=style)


def _one(report: Report) -> Group:
    parts: list[RenderableType] = [_gate(report), text("")]
    if report.why:
        parts += [*(text(said) for said in report.why), text("")]
    parts += [_candidates(report), text("")]
    if len(report.front) > 1:
        parts += [_front(report), text("")]
    if report.outlook:
        parts += [*(text(said) for said in report.outlook), text("")]
    parts.append(_precision(report))
    if report.ladder:
        parts += [text(""), _ladder(report)]
    if report.notes:
        parts += [text(""), *(text(f"note: {note}") for note in report.notes)]
    return Group(*parts)


def _gate(report: Report) -> Group:
    gate, metric = report.gate, report.gate.metric
    lines = [
        f"target      {report.target.name}: {report.target.device} ({report.target.compute})",
        f"threshold   {required(metric, gate.threshold, gate.parent)}: {points(gate.budget, metric)} may be lost"
        if gate.threshold is not None and gate.parent is not None
        else f"gate        {gate.reason}",
    ]
    if gate.drop is not None and metric != NUMERIC:
        lines.append(
            f"{'drop':12}{points(gate.drop, metric)}, surely between {points(gate.low, metric)} and {points(gate.high, metric)}"
            f" ({score(gate.parent, metric)} -> {score(gate.engine, metric)}, {gate.samples:,} samples, gated on {gate.gated_on})"
        )
    if report.speed.timed_on is None:
        lines.append("speed       not timed: no such hardware here")
    elif report.speed.engine_ms is not None and report.speed.speedup is not None:
        lines.append(
            f"speed       {report.speed.engine_ms:.3g} ms, {report.speed.speedup:.2f}x {report.speed.baseline}"
            f" [{_number(report.speed.low, '.2f')}, {_number(report.speed.high, '.2f')}], timed on {report.speed.timed_on}"
        )
    lines += [f"{'load':12}{load_in_words(load)}" for load in report.speed.loads]
    return Group(text(f"verdict     {report.verdict}", _COLOURS[report.verdict]), *(text(line) for line in lines))


def _candidates(report: Report) -> Table:
    """What was tried; the backend stands in the title where there is only one, columns that hold nothing are left out."""
    tried = report.candidates
    timed = any(one.latency_ms is not None for one in tried)
    backends = sorted({one.backend for one in tried})
    title = "What was tried" if len(backends) > 1 else f"What was tried, by {backends[0] if backends else 'no backend'}"
    columns = {
        "candidate": [one.name for one in tried],
        "backend": [one.backend for one in tried] if len(backends) > 1 else [],
        "ms": [_number(one.latency_ms, ".3g") for one in tried] if timed else [],
        "speedup": [_speedup(one) for one in tried] if timed else [],
        "launches": [_number(one.launches, "d") for one in tried] if not timed else [],
        "MB moved": [_number(_megabytes(one.moved_bytes), ".1f") for one in tried] if not timed else [],
        "gave": [_NONE if one.gain is None else f"{one.gain:.2f}x" for one in tried],
        "in s": [_number(one.seconds, ".3g") for one in tried],
        "predicted": [one.predicted or _NONE for one in tried],
        "drop [bounds]": [_NONE if one.drop is None else dropped(one.drop, one.low, one.high, one.metric or "") for one in tried],
    }
    shown = {name: cells for name, cells in columns.items() if any(cell != _NONE for cell in cells) or name == "drop [bounds]"}
    table = _table(title, [*shown, "outcome", "why"])
    for one, *cells in zip(tried, *shown.values(), strict=True):
        table.add_row(*(text(cell) for cell in cells), text(one.outcome, _COLOURS.get(one.outcome, "")), text(one.reason))
    return table


def _speedup(one: CandidateReport) -> str:
    """The ratio with its interval."""
    if one.speedup is None:
        return _NONE
    bounds = "" if one.speedup_low is None or one.speedup_high is None else f" [{one.speedup_low:.2f}, {one.speedup_high:.2f}]"
    return f"{one.speedup:.2f}x{bounds}"


def _front(report: Report) -> Table:
    """The front of latency against loss, with what the gate measured of it."""
    table = _table(
        "The front: nothing that was tried is both faster and safer", ["candidate", "ms", "speedup", "may lose", "measured drop"]
    )
    tried = {one.name: one for one in report.candidates}
    for point in report.front:
        one = tried.get(point.name)
        drop = dropped(one.drop, one.low, one.high, one.metric or "") if one is not None and one.drop is not None else _NONE
        cells = (point.name, f"{point.milliseconds:.3g}", f"{point.speedup:.2f}x", chance(point.loss, point.decides), drop)
        table.add_row(*(text(cell) for cell in cells))
    return table


def _precision(report: Report) -> RenderableType:
    precision = report.precision
    counts = ", ".join(f"{count} {name}" for name, count in Counter(precision.counts).most_common()) or "not read back"
    shipped = "".join(f"\nplan        {printable(one.plan)}" for one in report.candidates if one.outcome == "shipped" and one.plan)
    line = (
        text(f"precision   asked {precision.requested}, realised {precision.realised}: {counts}")
        .append(shipped)
        .append(_coverage(precision))
    )
    differing = [layer for layer in precision.layers if layer.differs]
    if not differing:
        return line
    table = _table(
        f"Layers that are not what was planned ({len(differing)} of {len(precision.layers)})", ["layer", "op", "planned", "realised", "why"]
    )
    for layer in differing[:_MOST_LAYERS]:
        table.add_row(*(text(word) for word in (layer.name, layer.op, layer.planned, layer.realised, layer.reason)))
    more = len(differing) - _MOST_LAYERS
    return Group(line, table, *([text(f"... and {more} more: see report.html")] if more > 0 else []))


def _coverage(precision: PrecisionReport) -> str:
    """A line on how far INT8 went, where it was asked for, and the dearest layer that it did not reach."""
    found = precision.int8
    if found is None or not found.asked:
        return ""
    dearest = next((one for one in found.missing if one.asked), None)
    time = f", {dearest.ms:.3f} ms" if dearest is not None and dearest.ms is not None else ""
    without = f"; not {printable(dearest.layer)}{time}: {printable(dearest.reason)}" if dearest is not None else ""
    return f"\nINT8        {found.sentence}{without}"


def _ladder(report: Report) -> Table:
    columns = ["rung", "against", "differs by", "explained", "layer", "agreement", "SQNR dB", "sensitivity", "note"]
    table = _table("Where it differs from its parent", columns)
    for rung in report.ladder:
        numbers = (rung.agreement, ".4f"), (rung.sqnr_db, ".1f"), (rung.output_sensitivity, ".2g")
        table.add_row(
            text(rung.rung, _COLOURS["fail"] if rung.breaks else ""),
            text(rung.against),
            text(_number(rung.difference, ".2g")),
            text(_number(rung.explained, ".2g")),
            text(rung.worst_layer or _NONE),
            *(text(_number(*number)) for number in numbers),
            text(f"breaks: {rung.note}" if rung.breaks else rung.note),
        )
    return table


def _several(reports: Reports) -> Table:
    table = _table("Targets", ["target", "verdict", "precision", "speedup", "drop (bounds)", "what came of it"])
    for name, one in reports.targets.items():
        gate, speed = one.gate, one.speed.speedup
        bounds = dropped(gate.drop, gate.low, gate.high, gate.metric)
        table.add_row(
            text(name),
            text(one.verdict, _COLOURS[one.verdict]),
            text(one.precision.realised),
            text("not timed" if speed is None else f"{speed:.2f}x"),
            text(_NONE if gate.drop is None else bounds),
            text(one.headline),
        )
    for name, failure in reports.failures.items():
        table.add_row(text(name), text(failure.title.lower(), "red"), *[text(_NONE)] * 3, text(f"{failure.reason} {failure.remedy}"))
    return table


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(
        title=text(title) if title else None, title_justify="left", box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0)
    )
    for column in columns:
        table.add_column(text(column), overflow="fold")
    return table


def _number(value: float | None, form: str) -> str:
    return _NONE if value is None else format(value, form)


def _megabytes(count: int | None) -> float | None:
    return None if count is None else count / 1e6
