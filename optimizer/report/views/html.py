"""The report as one HTML page that needs nothing else: no script, no font, no picture from anywhere."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from importlib.resources import files

from kernels.load import load_in_words
from optimizer.engine import Parity
from optimizer.report.coverage import Coverage
from optimizer.report.escape import markup
from optimizer.report.headline import NUMERIC, dropped, points, required, score
from optimizer.report.report import CandidateReport, Data, LayerReport, Report, TensorReport
from optimizer.report.views import plots

_MOST_PLOTS = 60


def render(report: Report) -> str:
    """The whole page."""
    title = f"{report.provenance.source.file} for {report.target.name}"
    sections = [
        _head(report, title),
        _section("Accuracy", _accuracy(report)),
        _section("Speed", _speed(report)),
        _section("Why this plan", _why(report)),
        _section("What was tried", _candidates(report)),
        _section("Precision by layer", _precision(report)),
        _section("Where it differs from its parent", _ladder(report)),
        _section("Calibration", _calibration(report.calibration)),
        _section("Fusions", _fusions(report)),
        _section("Memory", _memory(report)),
        _section("Where it comes from", _provenance(report)),
    ]
    style = files("optimizer.report.views").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{markup(title)}: {report.verdict}</title>\n<style>\n{style}</style></head>\n<body>\n"
        + "\n".join(filter(None, sections))
        + "\n</body></html>\n"
    )


def _head(report: Report, title: str) -> str:
    target = report.target
    notes = "".join(f"<li>{markup(note)}</li>" for note in report.notes)
    return (
        f'<h1>{markup(title)} <span class="badge {report.verdict}">{report.verdict.upper()}</span></h1>\n'
        f"<p>{markup(report.headline)}</p>\n"
        f'<p class="soft">{markup(target.device)}, {markup(target.compute)}'
        f"{markup(', ' + ' '.join(target.features) if target.features else '')}</p>\n" + (f"<ul>{notes}</ul>" if notes else "")
    )


def _accuracy(report: Report) -> str:
    gate, metric = report.gate, report.gate.metric
    if metric == NUMERIC:
        rows = [
            ["parent's own rounding error", f"{gate.parent:.2g}" if gate.parent is not None else "unknown"],
            ["engine's largest difference", f"{gate.engine:.2g}" if gate.engine is not None else "unknown"],
            ["allowed", f"{gate.budget:.2g}" if gate.budget is not None else "unknown"],
            ["samples", f"{gate.samples:,}"],
            ["gated on", gate.gated_on],
            ["verdict", f"{gate.verdict}: {gate.reason}"],
        ]
        return _table(["", ""], rows) + _bounds(report)
    rows = [
        ["metric", metric],
        ["parent", score(gate.parent, metric)],
        ["engine", score(gate.engine, metric)],
        ["drop allowed", _allowed(gate)],
        ["drop, with its bounds", dropped(gate.drop, gate.low, gate.high, metric)],
        ["samples", f"{gate.samples:,}" + (f" (about {gate.samples_needed:,} needed)" if gate.samples_needed is not None else "")],
        ["gated on", gate.gated_on],
        ["verdict", f"{gate.verdict}: {gate.reason}"],
    ]
    return _table(["", ""], rows) + _bounds(report)


def _allowed(gate: Parity) -> str:
    """The budget, and the absolute number that it leaves."""
    if gate.budget is None or gate.threshold is None or gate.parent is None:
        return "no budget"
    return f"{points(gate.budget, gate.metric)}: {required(gate.metric, gate.threshold, gate.parent)}"


def _bounds(report: Report) -> str:
    why = "Each bound holds with 95 %. An engine passes where its upper bound is left of the budget."
    plot = plots.bounds(report)
    return f'<p class="soft">{why}</p><div class="wide">{plot}</div>' if plot else ""


def _speed(report: Report) -> str:
    speed = report.speed
    if speed.timed_on is None:
        words = "Not timed: no such hardware was there. Launches and bytes are static counts of the built engines."
    else:
        words = f"Timed on {speed.timed_on} in interleaved pairs, {speed.runs} runs ({speed.stopped})."
        if speed.speedup is not None and speed.low is not None and speed.high is not None:
            words += f" {speed.speedup:.2f} times {speed.baseline} [{speed.low:.2f}, {speed.high:.2f}]."
        if speed.p90_ms is not None and speed.p99_ms is not None:
            words += f" p90 {speed.p90_ms:.3g} ms, p99 {speed.p99_ms:.3g} ms."
        if speed.cold_ms is not None:
            words += f" With cold caches {speed.cold_ms:.3g} ms."
    words += "".join(f" Under load: {load_in_words(load)}." for load in speed.loads)
    return f'<p>{markup(words)}</p><div class="wide">{plots.speed(report)}</div>'


def _why(report: Report) -> str:
    """The reasons, the front of latency against loss, and what another budget would give."""
    reasons = "".join(f"<p>{markup(said)}</p>" for said in report.why)
    front = plots.front(report) if len(report.front) > 1 else ""
    words = (
        "Latency of all candidates against what they may lose, as calibration samples predict it: nothing is both faster and safer than "
        "those on the line."
    )
    drawn = f'<p class="soft">{words}</p><div class="wide">{front}</div>' if front else ""
    other = "".join(f"<li>{markup(said)}</li>" for said in report.outlook)
    return reasons + drawn + (f"<ul>{other}</ul>" if other else "")


def _candidates(report: Report) -> str:
    numbers = ["#ms", "#speedup", "#gave", "#seconds spent", "#INT8 layers", "#launches", "#MB moved"]
    columns = ["candidate", "backend", "knobs", *numbers, "predicted loss", "drop [bounds]", "outcome", "why", "plan"]
    knobs = dict.fromkeys(_knobs(one) for one in report.candidates if one.outcome != "not built")
    rows = [_candidate(one, "" if len(knobs) == 1 else _knobs(one)) for one in report.candidates]
    told = f"<p>All with {markup(next(iter(knobs)))}.</p>" if len(knobs) == 1 and any(knobs) else ""
    return told + _table(columns, rows, [one.outcome for one in report.candidates])


def _knobs(one: CandidateReport) -> str:
    return ", ".join(f"{name}={value}" for name, value in one.knobs.items())


def _candidate(one: CandidateReport, knobs: str) -> list[str]:
    drop = dropped(one.drop, one.low, one.high, one.metric or "") if one.drop is not None else "not gated"
    return [
        one.name,
        one.backend,
        knobs,
        "" if one.latency_ms is None else f"{one.latency_ms:.3g}",
        "" if one.speedup is None else f"{one.speedup:.2f}x" + _bounded(one.speedup_low, one.speedup_high),
        "" if one.gain is None else f"{one.gain:.2f}x",
        _number(one.seconds, ".3g"),
        str(one.int8_layers),
        "" if one.launches is None else str(one.launches),
        "" if one.moved_bytes is None else f"{one.moved_bytes / 1e6:.2f}",
        one.predicted,
        drop,
        one.outcome,
        one.reason,
        one.plan if one.plan != one.reason else "",
    ]


def _bounded(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"


def _precision(report: Report) -> str:
    precision = report.precision
    counts = ", ".join(f"{count} {name}" for name, count in precision.counts.items()) or "not read back"
    words = f"Asked: {precision.requested}. Realised: {precision.realised} ({counts}), read back from the built engine."
    return f'<p>{markup(words)}</p><div class="wide">{plots.layers(precision.layers)}</div>{_coverage(precision.int8)}' + _layers(
        precision.layers
    )


def _coverage(found: Coverage | None) -> str:
    """How far INT8 went, and each layer that it did not reach, with what that costs."""
    if found is None or not found.asked:
        return ""
    columns = ["layer", "asked", "#part of all", "#ms", "why not"]
    rows = [
        [one.layer, "int8" if one.asked else "", f"{one.share:.1%}" if one.share else "", _number(one.ms, ".3f"), one.reason]
        for one in found.missing
    ]
    kinds = ["differs" if one.asked else "" for one in found.missing]
    missing = f"<details><summary>Not in INT8: {len(rows)}</summary>{_table(columns, rows, kinds)}</details>" if rows else ""
    return f"<p>{markup(found.sentence)}.</p>{missing}"


def _layers(layers: Sequence[LayerReport]) -> str:
    rows = [
        [
            layer.name,
            layer.op,
            layer.planned,
            layer.realised,
            _number(layer.ms, ".3f"),
            _number(layer.parent_ms, ".3f"),
            _kilobytes(layer.weights),
            _kilobytes(layer.parent_weights),
            _kilobytes(layer.activations),
            _kilobytes(layer.parent_activations),
            layer.kernel,
            layer.reason,
        ]
        for layer in layers
    ]
    kinds = ["differs" if layer.differs else "" for layer in layers]
    sizes = ["#weights kB", "#before", "#output kB", "#before"]
    columns = ["layer", "op", "planned", "realised", "#ms", "#before", *sizes, "kernel", "why"]
    words = "Before is the unquantized engine; a layer without numbers runs inside another one's kernel."
    table = f'<p class="soft">{words}</p>{_table(columns, rows, kinds)}'
    return f"<details open><summary>{len(rows)} layers</summary>{table}</details>" if rows else ""


def _kilobytes(count: int | None) -> str:
    return f"{count / 1e3:,.1f}" if count else ""


def _memory(report: Report) -> str:
    """Bytes by kind, beside the unquantized engine's."""
    kinds = sorted({*report.memory, *report.parent_memory})
    rows = [[kind, *(f"{one[kind] / 1e6:,.1f}" if kind in one else "" for one in (report.memory, report.parent_memory))] for kind in kinds]
    return _table(["what", "#MB", "#unquantized MB"], rows)


def _ladder(report: Report) -> str:
    if not report.ladder:
        return ""
    columns = [
        "rung",
        "#differs by",
        "#rounding explains",
        "against",
        "layer",
        "#agreement",
        "#SQNR dB",
        "#largest",
        "#sensitivity",
        "sizes",
        "note",
    ]
    rows = [
        [
            rung.rung,
            _number(rung.difference, ".2g"),
            _number(rung.explained, ".2g"),
            rung.against,
            rung.worst_layer or "",
            _number(rung.agreement, ".4f"),
            _number(rung.sqnr_db, ".1f"),
            _number(rung.max_abs, ".3g"),
            _number(rung.output_sensitivity, ".3g"),
            "; ".join(rung.sizes),
            rung.note,
        ]
        for rung in report.ladder
    ]
    words = (
        "Each form of the model against the one before it, as a part of its output, beside what rounding at its precision explains: a rung "
        "breaks where it differs by several times as much, and names the first layer that does. Agreement, SQNR and the largest difference "
        "are against the parent; sensitivity is what a millionth of the input does to the outputs."
    )
    table = _table(columns, rows, ["fail" if rung.breaks else "" for rung in report.ladder])
    over_time = "".join(
        f'<p>{markup(rung.rung)}, step by step</p><div class="wide">{plots.over_time(rung)}</div>'
        for rung in report.ladder
        if rung.over_time
    )
    return f'<p class="soft">{markup(words)}</p>{table}{over_time}'


def _calibration(tensors: Sequence[TensorReport]) -> str:
    if not tensors:
        return ""
    drawn = sorted(tensors, key=lambda tensor: -tensor.clipped)[:_MOST_PLOTS]
    left = f" The {_MOST_PLOTS} with most outside their range of {len(tensors)}; report.json has all." if len(tensors) > len(drawn) else ""
    words = f"Values that calibration saw, and between the red lines the range that INT8 covers.{left}"
    cells = [
        f'<div class="tensor"><p><code>{markup(tensor.layer or tensor.name)}</code></p>{plots.histogram(tensor)}'
        f'<p class="soft">{_which(tensor)}: {markup(tensor.method)} [{tensor.low:.3g}, {tensor.high:.3g}], '
        f"{100 * tensor.clipped:.2g} % outside</p></div>"
        for tensor in drawn
    ]
    return f'<p class="soft">{markup(words)}</p><div class="grid">{"".join(cells)}</div>'


def _which(tensor: TensorReport) -> str:
    return f"its output {markup(tensor.name)}" if tensor.layer else "an input of the model"


def _fusions(report: Report) -> str:
    if not report.fusions:
        return ""
    rows = [[fusion.rule, ", ".join(fusion.layers), fusion.result] for fusion in report.fusions]
    return f"<details><summary>{len(rows)} fusions</summary>{_table(['rule', 'layers', 'became'], rows)}</details>"


def _provenance(report: Report) -> str:
    found = report.provenance
    source = found.source
    rows = [
        ["model", f"{source.file} ({source.framework})"],
        ["model's SHA-256", source.sha256],
        ["factory", f"{source.factory} {dict(source.factory_args) or ''}" if source.factory else ""],
        ["code of the user's ran", "yes" if source.code_ran else "no"],
        ["calibration", "random numbers, as asked" if found.random_calibration else _data(found.calibration)],
        ["evaluation", _data(found.evaluation)],
        *([f"preprocessing of {name}", str(how)] for name, how in found.preprocessing.inputs.items()),
        ["plan's SHA-256", found.plan or ""],
        ["seed", str(found.seed)],
        ["versions", ", ".join(f"{name} {version}" for name, version in {**source.versions, **found.versions}.items())],
        *(["note", note] for note in source.notes),
    ]
    return _table(["", ""], [row for row in rows if row[1]])


def _data(data: Data | None) -> str:
    if data is None:
        return "none"
    out = f", {data.left_out} left out" if data.left_out else ""
    judged = f", judged this model in {data.judged} build{'s' if data.judged > 1 else ''} into this folder" if data.judged else ""
    return f"{data.source}, {data.samples:,} samples{out}{judged}, SHA-256 {data.sha256}"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{markup(title)}</h2>\n{content}</section>" if content else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], kinds: Sequence[str] = ()) -> str:
    """A table without its empty columns; one whose title begins with # holds numbers, `kinds` are the rows' CSS classes."""
    if not rows:
        return ""
    shown = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    body = []
    for row, kind in itertools.zip_longest(rows, kinds, fillvalue=""):
        cells = "".join(f"<td{_align(columns[index])}>{markup(row[index])}</td>" for index in shown)
        body.append(f'<tr class="{markup(kind)}">{cells}</tr>')
    titles = "".join(f"<th{_align(columns[index])}>{markup(columns[index].removeprefix('#'))}</th>" for index in shown)
    head = f"<tr>{titles}</tr>" if any(columns) else ""
    return f'<div class="wide"><table>{head}{"".join(body)}</table></div>'


def _align(column: str) -> str:
    return ' class="number"' if column.startswith("#") else ""


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
