"""What an engine takes of memory, seen from outside: loaded in a process of its own, and run."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from optimizer.backends import loader
from optimizer.child import Channel, run
from optimizer.engine import Arrays, Candidate
from optimizer.plan import Knobs
from optimizer.process import Child

_RUNS = 3
_STATUS = Path("/proc/self/status")
_FORGET_THE_PEAK = "5"


def measured(name: str, folder: Path, knobs: Knobs, feed: Arrays) -> Mapping[str, int]:
    """Bytes that the engine in `folder` takes in this machine's memory, not counting what its files back.

    `loaded` is what loading it took; `run` the most that was taken beside that while it ran on `feed`: activations and the kernels'
    own buffers. Nothing where an input holds text, which no child is sent.

    Raises:
        OptimizeError: the engine can't be loaded or run, or ended the process.
    """
    if any(array.dtype.hasobject for array in feed.values()):
        return {}
    command = [sys.executable, "-P", "-m", "optimizer.memory"]
    with Child(command, folder=folder, what="The engine, run to measure its memory,") as child:
        child.send({"event": "request", "backend": name, "folder": str(folder.resolve()), "knobs": dict(knobs)}, feed)
        event = child.receive().event
    return {"loaded": event["loaded"], "run": event["run"]}


def weighed(candidate: Candidate, feed: Arrays) -> Candidate:
    """The candidate with what `measured` finds of its engine in `Built.memory`; as it is where it has none that runs here."""
    if candidate.built is None or candidate.folder is None:
        return candidate
    found = measured(candidate.plan.backend, candidate.folder, candidate.plan.knobs, feed)
    return replace(candidate, built=replace(candidate.built, memory={**candidate.built.memory, **found}))


def main(channel: Channel) -> None:
    """The child's part: load the engine that the request names, and run it on the arrays that came with it."""
    request, feed = (message := channel.receive()).event, message.arrays
    load = loader(request["backend"], Path(request["folder"]))  # its packages are imported before anything is measured
    start = _now()
    engine = load(request["knobs"])
    loaded = _now()
    for _ in range(_RUNS):
        engine.run(feed)
    channel.send("measured", loaded=max(loaded - start, 0), run=max(_peak() - loaded, 0))


def _now() -> int:
    """Bytes of this process's memory that no file backs; `_peak` counts from here on."""
    ctypes.CDLL(None).malloc_trim(0)  # what a compiler left behind would be taken for a run's
    Path("/proc/self/clear_refs").write_text(_FORGET_THE_PEAK)
    return _sizes()["RssAnon"]


def _peak() -> int:
    """Bytes of this process's memory that no file backs, at their peak."""
    sizes = _sizes()
    return sizes["VmHWM"] - sizes["RssFile"] - sizes["RssShmem"]


def _sizes() -> dict[str, int]:
    lines = (line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return {name: int(words.split()[0]) << 10 for name, words in lines if name.startswith(("VmHWM", "Rss"))}


if __name__ == "__main__":
    run(main)
