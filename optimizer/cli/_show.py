"""What every command shows in one way: the last line, reports, JSON on standard output alone.

rich is imported where something is drawn, so that `--help` does not wait for it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, BinaryIO

import click

if TYPE_CHECKING:
    from optimizer.report.report import Report, Reports

TITLES = {
    0: "PASS",
    1: "INTERNAL ERROR",
    2: "WRONG INPUT",
    3: "FAIL",
    4: "INCONCLUSIVE",
    5: "NOT AVAILABLE",
    6: "VERIFICATION FAILED",
    130: "INTERRUPTED",
}
_INCONCLUSIVE = 4
_COLOURS = {0: "green", _INCONCLUSIVE: "yellow", 130: "yellow"}


def ending(code: int, words: str, title: str | None = None, *, ci: bool = False) -> int:
    """The last line of every command, on standard error: `PASS (exit 0): ...`; returns the code.

    With `ci` it has no colour, and where the CI takes annotations, what is no PASS becomes one before it.
    """
    from optimizer.report.escape import printable

    told = printable(" ".join(words.split()))
    name = f"{title or TITLES[code]} (exit {code})"
    sys.stdout.flush()
    if ci and code and os.environ.get("GITHUB_ACTIONS") == "true":
        kind = "warning" if code == _INCONCLUSIVE else "error"
        click.echo(f"::{kind} title={name}::{told.replace('%', '%25')}", err=True, color=False)
    name = click.style(name, fg=_COLOURS.get(code, "red"), bold=True)
    click.echo(f"{name}: {told}", err=True, color=False if ci else None)
    return code


@contextmanager
def standard_output() -> Iterator[BinaryIO]:
    """Yields a binary stream to standard output, and sends whatever else is written there meanwhile to standard error.

    Also what libraries in C write: with --json, standard output must carry the JSON and nothing else.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with os.fdopen(os.dup(kept), "wb") as stream, redirect_stdout(sys.stderr):
            yield stream
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def json(value: object) -> None:
    """A value as JSON on standard output."""
    from optimizer.provenance import to_json

    click.echo(to_json(value), nl=False)


def report(found: Report | Reports, *, err: bool, plain: bool) -> None:
    """A report for people, on standard output or on standard error."""
    from optimizer.report.views import console

    stream = sys.stderr if err else sys.stdout
    click.echo(console.render(found, colour=stream.isatty() and not plain, width=_width()), nl=False, err=err)


def job_summary(found: Report | Reports) -> None:
    """The report in the summary of the CI job, where the CI gives a file for it."""
    from optimizer.report.views import markdown

    file = os.environ.get("GITHUB_STEP_SUMMARY")
    if file:
        with open(file, "a", encoding="utf-8") as stream:  # noqa: PTH123 -- appended to, as the CI wants it
            stream.write(markdown.render(found) + "\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """A table on standard output; cells may hold names out of models."""
    from optimizer.report.views.console import tabulated

    click.echo(tabulated(columns, rows, title, colour=sys.stdout.isatty(), width=_width()), nl=False)


def line(words: object = "", *, err: bool = False) -> None:
    """A line that may hold names out of models."""
    from optimizer.report.escape import printable

    click.echo(printable(str(words)), err=err)


def _width() -> int:
    return shutil.get_terminal_size((120, 24)).columns
