"""Plots as inline SVG: they need no script and no other file, and take their colours from the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from optimizer.engine import Rung
from optimizer.report.escape import markup, printable
from optimizer.report.headline import NUMERIC, dropped, is_rate, points
from optimizer.report.report import CandidateReport, LayerReport, Report, TensorReport

_WIDTH = 900
_LABEL = 300
_RIGHT = 130
_ROW = 26
_POINTS = 600
"""Points of a sequence that are drawn."""

_SMALLEST = 1e-9
"""Errors below this are drawn as this."""

_PRECISIONS = ("int8", "int8_dynamic", "fp16", "bf16", "fp32", "folded")


def bounds(report: Report) -> str:
    """Each gated candidate's drop with its bounds, against the budget; what lies right of the line may not ship."""
    judged = [one for one in report.candidates if one.budget is not None and one.metric not in (None, NUMERIC)]
    if not judged:
        return ""
    # One with no lossy step is judged numerically, in another unit: it has no place on this axis.
    metric, allowed = judged[0].metric or "", judged[0].budget or 0.0
    rows = [
        (one, one.drop, one.low, one.high)
        for one in judged
        if one.metric == metric and one.drop is not None and one.low is not None and one.high is not None
    ]
    if not rows:
        return ""
    scale = _Scale.over([0.0, allowed, *(number for _, *numbers in rows for number in numbers)])
    bottom = len(rows) * _ROW + 10
    zero, budget = scale(0), scale(allowed)
    parts = [
        _draw("rect", "forbidden", x=budget, y=0, width=max(_WIDTH - _RIGHT - budget, 0), height=bottom),
        _draw("line", "axis", x1=zero, x2=zero, y1=0, y2=bottom),
        _draw("line", "budget", x1=budget, x2=budget, y1=0, y2=bottom),
        _text(zero, bottom + 14, "no drop", "soft middle"),
        _text(budget, bottom + (28 if abs(budget - zero) < 130 else 14), f"budget {points(allowed, metric)}", "middle"),
    ]
    for row, (one, drop, low, high) in enumerate(rows):
        y = row * _ROW + 16
        told = f"{one.name}: {dropped(drop, low, high, metric)}"
        line = _draw("line", "interval", x1=scale(low), x2=scale(high), y1=y, y2=y)
        parts += [
            _text(_LABEL - 10, y + 4, _short(one.name), "end"),
            f'<g class="{one.verdict}">{line}{_draw("circle", "point", told, cx=scale(drop), cy=y, r=5)}</g>',
            _text(_WIDTH - _RIGHT + 10, y + 4, one.verdict or ""),
        ]
    return _svg(parts, _WIDTH, bottom + 34, "Drop of each candidate with its bounds, against the budget")


def speed(report: Report) -> str:
    """Latency of each candidate; where nothing could be timed, its launches and the bytes it moves."""
    if any(one.latency_ms is not None for one in report.candidates):
        return _bars(report.candidates, [one.latency_ms for one in report.candidates], [_timed(one) for one in report.candidates])
    charts = []
    for what, numbers in (
        ("launches", [one.launches for one in report.candidates]),
        ("MB moved", [None if one.moved_bytes is None else one.moved_bytes / 1e6 for one in report.candidates]),
    ):
        labels = ["" if number is None else f"{number:,.4g} {what}" for number in numbers]
        charts.append(_bars(report.candidates, numbers, labels))
    return "".join(charts)


def _timed(one: CandidateReport) -> str:
    if one.latency_ms is None:
        return ""
    return f"{one.latency_ms:.3g} ms" + (f", {one.speedup:.2f}x" if one.speedup is not None else "")


def _bars(rows: Sequence[CandidateReport], numbers: Sequence[float | None], labels: Sequence[str]) -> str:
    known = [(one, number, label) for one, number, label in zip(rows, numbers, labels, strict=True) if number is not None]
    if not known:
        return ""
    most = max(number for _, number, _ in known) or 1
    parts = []
    for row, (one, number, label) in enumerate(known):
        y, width = row * _ROW, number / most * (_WIDTH - _LABEL - _RIGHT)
        parts.append(_text(_LABEL - 10, y + 18, _short(one.name), "end"))
        parts.append(_draw("rect", f"bar {one.outcome}", x=_LABEL, y=y + 5, width=width, height=18, rx=2))
        parts.append(_text(_LABEL + width + 8, y + 18, label))
    return _svg(parts, _WIDTH, len(known) * _ROW + 6, "Speed of each candidate")


def front(report: Report) -> str:
    """Latency of each candidate against the square root of what it may lose; those of the front are joined and named.

    The root leaves room between plans that lose little.  Where the budget is a share of answers, a line shows it.
    """
    known = [
        (one.name, one.latency_ms, one.loss)
        for one in report.candidates
        if one.latency_ms is not None and one.loss is not None and math.isfinite(one.loss)
    ]
    allowed = report.gate.budget if is_rate(report.gate.metric) and any(point.decides for point in report.front) else None
    most = max([*(loss for *_, loss in known), allowed or 0.0]) or 1.0
    slowest = max(milliseconds for _, milliseconds, _ in known)
    left, height, width = 70, 240, _WIDTH - 70 - _RIGHT

    def place(milliseconds: float, loss: float) -> tuple[float, float]:
        return left + milliseconds / slowest * width, height - (loss / most) ** 0.5 * (height - 20)

    on = {point.name: place(point.milliseconds, point.loss) for point in report.front}
    parts = [
        _draw("line", "axis", x1=left, x2=left + width, y1=height, y2=height),
        _draw("line", "axis", x1=left, x2=left, y1=0, y2=height),
    ]
    if allowed is not None:
        _, y = place(0.0, allowed)
        parts += [
            _draw("line", "budget", x1=left, x2=left + width, y1=y, y2=y),
            _text(left + width + 8, y + 4, f"budget {points(allowed, report.gate.metric)}"),
        ]
    parts += [_draw("line", "front", x1=x1, y1=y1, x2=x2, y2=y2) for (x1, y1), (x2, y2) in pairwise(on.values())]
    for name, milliseconds, loss in known:
        x, y = place(milliseconds, loss)
        told = f"{name}: {milliseconds:.3g} ms, may lose {100 * loss:.2g} %"
        parts.append(_draw("circle", "point" if name in on else "beaten", told, cx=x, cy=y, r=5 if name in on else 3))
    parts += [_text(x + 8, y - 6, _short(name, 28)) for name, (x, y) in on.items()]
    parts += [
        _text(left, height + 16, "0 ms", "soft"),
        _text(left + width, height + 16, f"{slowest:.3g} ms", "soft end"),
        _text(left - 8, 24, f"{100 * most:.2g} %", "soft end"),
        _text(left - 8, height + 4, "no loss", "soft end"),
    ]
    return _svg(parts, _WIDTH, height + 24, "Latency against predicted loss")


def layers(found: Sequence[LayerReport]) -> str:
    """A strip with a cell a layer, in the model's order, coloured by realised precision; outlined where it was planned otherwise."""
    if not found:
        return ""
    a_row = min(len(found), 75)
    cell = _WIDTH / a_row
    rows = (len(found) - 1) // a_row + 1
    parts = []
    for index, layer in enumerate(found):
        x, y = index % a_row * cell, index // a_row * 26
        kind = precision_class(layer.realised) + (" differs" if layer.differs else "")
        told = f"{layer.name} ({layer.op}): planned {layer.planned}, realised {layer.realised}"
        parts.append(_draw("rect", kind, told, x=x + 1, y=y + 2, width=max(cell - 2, 1), height=22, rx=2))
    return _svg(parts, _WIDTH, rows * 26, "Realised precision of each layer") + _key(found)


def over_time(rung: Rung) -> str:
    """The error of each step of a sequence, on a scale of powers of ten; of many steps each point is the worst of its stretch."""
    stretch = -(-len(rung.over_time) // _POINTS)
    worst = [max(rung.over_time[start : start + stretch]) for start in range(0, len(rung.over_time), stretch)]
    powers = [math.log10(max(error, _SMALLEST)) if math.isfinite(error) else None for error in worst]
    known = [power for power in powers if power is not None]
    low = math.floor(min(known, default=0.0))
    high = max(math.ceil(max(known, default=0.0)), low + 1)
    left, height = 70, 160
    across, down = (_WIDTH - left - 10) / max(len(worst) - 1, 1), height / (high - low)
    points = [(left + place * across, (high - power) * down) for place, power in enumerate(powers) if power is not None]
    parts = [
        *(_draw("line", "axis", x1=left, x2=_WIDTH, y1=(high - power) * down, y2=(high - power) * down) for power in range(low, high + 1)),
        *(_text(left - 8, (high - power) * down + 4, f"1e{power}", "soft end") for power in (low, high)),
        *(_draw("circle", "point", f"step {place * stretch}", cx=x, cy=y, r=1.5) for place, (x, y) in enumerate(points)),
        *(
            _draw("line", "budget", x1=left + place * across, x2=left + place * across, y1=0, y2=height)
            for place, power in enumerate(powers)
            if power is None
        ),
        _text(left, height + 18, "first step", "soft"),
        _text(_WIDTH, height + 18, f"step {len(rung.over_time):,}", "soft end"),
    ]
    return _svg(parts, _WIDTH, height + 24, f"Error of {rung.rung} at each step of the sequence")


def precision_class(precision: str) -> str:
    """The CSS class of a precision; one of another kind (an integer index, say) is "other"."""
    return precision if precision in _PRECISIONS else "other"


def _key(found: Sequence[LayerReport]) -> str:
    present = [(name, name) for name in dict.fromkeys(precision_class(layer.realised) for layer in found)]
    if any(layer.differs for layer in found):
        present.append(("folded differs", "not as planned"))
    items = [
        f'<span><svg width="12" height="12" aria-hidden="true">{_draw("rect", kind, width=12, height=12, rx=2)}</svg>{markup(words)}</span>'
        for kind, words in present
    ]
    return f'<div class="key">{"".join(items)}</div>'


def histogram(tensor: TensorReport) -> str:
    """What calibration saw of a tensor (height: square root of the share), with the range that was chosen."""
    width, height = 240, 70
    span = tensor.maximum - tensor.minimum or 1.0
    low = min(max((tensor.low - tensor.minimum) / span, 0.0), 1.0) * width
    high = min(max((tensor.high - tensor.minimum) / span, 0.0), 1.0) * width
    step = width / max(len(tensor.bins), 1)
    most = max(tensor.bins, default=0.0) or 1.0
    parts = []
    for index, share in enumerate(tensor.bins):
        # The square root shows the thin tails, which is where clipping happens.
        tall = (share / most) ** 0.5 * (height - 4)
        if share > 0:
            parts.append(_draw("rect", "mass", x=index * step, y=height - tall, width=max(step - 0.5, 0.5), height=tall))
    parts += [
        _draw("rect", "clipped", x=0, y=0, width=low, height=height),
        _draw("rect", "clipped", x=high, y=0, width=width - high, height=height),
        *(_draw("line", "clip", x1=x, x2=x, y1=0, y2=height) for x in (low, high)),
        _draw("line", "axis", x1=0, x2=width, y1=height, y2=height),
        _text(0, height + 13, f"{tensor.minimum:.3g}", "soft"),
        _text(width, height + 13, f"{tensor.maximum:.3g}", "soft end"),
    ]
    return _svg(parts, width, height + 16, "Histogram with the chosen range")


class _Scale:
    """From numbers to x positions of the plot's field."""

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = low, high

    @classmethod
    def over(cls, numbers: Sequence[float]) -> _Scale:
        low, high = min(numbers), max(numbers)
        margin = (high - low or 1.0) * 0.05
        return cls(low - margin, high + margin)

    def __call__(self, number: float) -> float:
        return _LABEL + (number - self._low) / (self._high - self._low) * (_WIDTH - _LABEL - _RIGHT)


def _draw(tag: str, kind: str, told: str = "", **numbers: float) -> str:
    """An SVG element of CSS class `kind`; `told` shows where the mouse rests on it."""
    attributes = "".join(f' {name}="{number:.1f}"' for name, number in numbers.items())
    title = f"<title>{markup(told)}</title>" if told else ""
    return f'<{tag} class="{markup(kind)}"{attributes}>{title}</{tag}>'


def _short(name: str, most: int = 44) -> str:
    shown = printable(name)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{markup(words)}</text>'


def _svg(parts: Sequence[str], width: int, height: int, title: str) -> str:
    inside = "".join(parts)
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{markup(title)}">{inside}</svg>'
