"""The report as a few lines of Markdown, for the summary of a CI job."""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.report.escape import markup
from optimizer.report.headline import broken, dropped
from optimizer.report.report import Report, Reports


def render(report: Report | Reports) -> str:
    """A heading with the verdict, the headline, and a table of what was tried (of targets, where there are several)."""
    if isinstance(report, Reports):
        rows: list[tuple[str, str, str]] = [(name, one.verdict, one.headline) for name, one in report.targets.items()]
        rows += [(name, one.title.lower(), one.reason) for name, one in report.failures.items()]
        return f"### optimize: {_cell(report.headline)}\n\n{_table(('target', 'ended in', 'what came of it'), rows)}"
    tried = [
        (
            one.name,
            "-" if one.latency_ms is None else f"{one.latency_ms:.3g}",
            "-" if one.speedup is None else f"{one.speedup:.2f}x",
            "-" if one.drop is None else dropped(one.drop, one.low, one.high, one.metric or ""),
            one.outcome,
        )
        for one in report.candidates
    ]
    title = f"### optimize {_cell(report.provenance.source.file)} for {_cell(report.target.name)}: {report.verdict.upper()}"
    table = _table(("candidate", "ms", "speedup", "drop [bounds]", "outcome"), tried)
    breaks = "".join(f"\n\nThe parity ladder breaks: {_cell(broken(rung))}" for rung in report.ladder if rung.breaks)
    return f"{title}\n\n{_cell(report.headline)}{breaks}\n\n{table}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    """Text that neither Markdown nor HTML reads as anything but text."""
    safe = markup(text)
    for character in "\\`*_[]|~$":
        safe = safe.replace(character, f"&#{ord(character)};")
    return safe
