"""Progress for people: bars with the time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from optimizer.progress import Track

_SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def shown(plain: bool) -> Iterator[Track]:
    """A track that shows each step on standard error; as plain lines if asked, or where that is no terminal."""
    if plain or not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bars(progress)


class Bars:
    """One bar: that of the step that goes on now, its clock started anew where a step comes again."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._step: str | None = None
        self._task: TaskID | None = None

    def __call__(self, step: str, done: int, total: int) -> None:
        from optimizer.report.escape import printable

        if step != self._step or self._task is None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._step, self._task = step, self._progress.add_task(printable(step), total=total or None)
        self._progress.update(self._task, completed=done, total=total or None)


class Lines:
    """A line where a step begins and ends, and every few seconds between; a step that comes again counts as between."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: set[str] = set()
        self._step = ""
        self._began = self._told = 0.0
        self._from = self._last = 0
        self._first = self._ended = False

    def __call__(self, step: str, done: int, total: int) -> None:
        now = self._clock()
        if step != self._step or done < self._last:
            self._first = step not in self._known
            self._known.add(step)
            self._step, self._began, self._from, self._ended = step, now, done, False
            if self._first:
                self._tell(f"{step} ...", now)
        self._last = done
        if total and done >= total and not self._ended:
            self._ended = True
            if self._first:
                self._tell(f"{step}: {done} of {total}, {now - self._began:.1f} s", now)
        elif now - self._told >= _SECONDS_BETWEEN_LINES and not self._ended:
            self._tell(f"{step}: {self._so_far(done, total, now)}", now)

    def _so_far(self, done: int, total: int, now: float) -> str:
        if not total:
            return f"{done}, {now - self._began:.0f} s"
        left = ""
        if done > self._from:
            left = f", about {(now - self._began) / (done - self._from) * (total - done):.0f} s left"
        return f"{done} of {total} ({100 * done // total} %){left}"

    def _tell(self, words: str, now: float) -> None:
        from optimizer.report.escape import printable

        self._told = now
        click.echo(printable(words), err=True)
