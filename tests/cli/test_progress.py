"""Progress: lines now and then, or bars with the time left on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from optimizer.cli._progress import Bars, Lines


def test_lines_tell_begin_and_end_and_every_five_seconds_how_long_it_will_take(capfd: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    track = Lines(clock=lambda: now[0])
    for done in range(101):
        track("calibrating", done, 100)
        now[0] += 0.3
    track("timing", 0, 0)
    assert capfd.readouterr().err.splitlines() == [
        "calibrating ...",
        "calibrating: 17 of 100 (17 %), about 25 s left",
        "calibrating: 34 of 100 (34 %), about 20 s left",
        "calibrating: 51 of 100 (51 %), about 15 s left",
        "calibrating: 68 of 100 (68 %), about 10 s left",
        "calibrating: 85 of 100 (85 %), about 5 s left",
        "calibrating: 100 of 100, 30.0 s",
        "timing ...",
    ]


def test_steps_that_take_turns_do_not_flood_a_log(capfd: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    track = Lines(clock=lambda: now[0])
    for _ in range(12):
        for step in ("building \x1b[1m", "timing"):
            track(step, 0, 1)
            now[0] += 0.5
            track(step, 1, 1)
    assert capfd.readouterr().err.splitlines() == [
        "building \\x1b[1m ...",
        "building \\x1b[1m: 1 of 1, 0.5 s",
        "timing ...",
        "timing: 1 of 1, 0.5 s",
        "building \\x1b[1m: 0 of 1 (0 %)",
        "building \\x1b[1m: 0 of 1 (0 %)",
    ]


BARS = """
import time
from optimizer.cli._progress import shown
with shown(plain=False) as track:
    for done in range(11):
        track("calibrating [red]x", done, 10)
        time.sleep(0.05)
    track("timing", 0, 0)
print("over")
"""


def test_a_terminal_gets_bars_with_the_time_left() -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", BARS], stderr=theirs, stdout=subprocess.PIPE, env={**os.environ, "TERM": "xterm"}
    ) as child:
        os.close(theirs)
        assert child.stdout is not None
        shown = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:
                break
            if not piece:
                break
            shown += piece
        assert child.stdout.read() == b"over\n"
        assert child.wait(20) == 0
    os.close(ours)
    assert b"calibrating [red]x" in shown
    assert b"0:00:0" in shown


def test_on_a_terminal_there_is_one_bar_at_a_time_and_a_step_that_comes_again_starts_anew() -> None:
    stream = StringIO()
    with Progress(TextColumn("{task.description}", markup=False), console=Console(file=stream, force_terminal=True)) as progress:
        bars = Bars(progress)
        for step, done in (("writing", 0), ("writing", 2), ("timing", 1), ("writing", 0), ("[red]x\x1b[2J", 0)):
            bars(step, done, 2)
            (task,) = progress.tasks
            assert (task.completed, task.total) == (done, 2)
    assert task.description == "[red]x\\x1b[2J"
