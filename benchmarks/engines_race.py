"""Each engine in a process of its own, all of them timed in turns: nobody's threads, allocator or crash touches another's time.

A round visits every engine once, in random order.  At a visit the engine's process sweeps its core's caches, so that all have the
same predecessor, runs once cold and then a block of hot runs, whose median is the round's time.
"""

from __future__ import annotations

import math
import os
import random
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np

from benchmarks.engines_neighbours import ENGINES, Job
from benchmarks.engines_prepare import answered, stored
from kernels.rank import centre

LEAST, MOST = 7, 60
"""Rounds of a race."""

ERROR = 0.05
_BLOCK_SECONDS = 0.04
_BURST_SECONDS = 0.4
_SETTLE_SECONDS = 0.02
_SWEEP_BYTES = 32 << 20


class EngineError(Exception):
    """What an engine's process said, in one line, before it ended."""


@dataclass(frozen=True)
class Time:
    """Milliseconds a sample: the median of the rounds, the middle half of them, and how many times as fast as the baseline."""

    ms: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int


class Process:
    """An engine's process; what it is asked to do and what it answers goes through a pipe."""

    def __init__(self, name: str, job: Job, environment: Mapping[str, str]) -> None:
        here, there = get_context("spawn").Pipe()
        with _environment(environment):
            self._process: SpawnProcess = get_context("spawn").Process(target=_serve, args=(there, name, job), daemon=False)
            self._process.start()
        there.close()
        self._pipe: Connection = here

    def ask(self, what: str, *words: Any, seconds: float = 600.0) -> Any:
        """The answer to one question.

        Raises:
            EngineError: the process failed, died, or took more than `seconds`.
        """
        try:
            self._pipe.send((what, *words))
            if not self._pipe.poll(seconds):
                raise EngineError(f"not done after {seconds:g} s")
            fine, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            raise EngineError(f"its process ended with {self._process.exitcode}") from None
        if not fine:
            raise EngineError(answer)
        return answer

    def close(self) -> None:
        with suppress(OSError):
            self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextmanager
def _environment(words: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(words)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(pipe: Connection, name: str, job: Job) -> None:
    """Answer until the pipe is closed.  What libraries print goes to a file beside the engine."""
    job.folder.mkdir(parents=True, exist_ok=True)
    log = os.open(job.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    served = _Served(name, job)
    with suppress(EOFError, OSError):
        while True:
            what, *words = pipe.recv()
            try:
                answer = True, getattr(served, what)(*words)
            except Exception as error:
                traceback.print_exc()
                answer = False, _one_line(error)
            pipe.send(answer)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


class _Served:
    """What an engine's process can be asked."""

    def __init__(self, name: str, job: Job) -> None:
        self._engine, self._job = ENGINES[name], job

    def build(self) -> tuple[float, str | None]:
        """Seconds, with the import of what builds it, and what it said."""
        start = time.perf_counter()
        note = self._engine.build(self._job)
        return time.perf_counter() - start, note

    def load(self) -> float:
        """Megabytes by which the process grew, its libraries included, when the engine was loaded and run once."""
        self._feeds = {name: array.copy() for name, array in next(stored(self._job.data, "test")).items()}
        before = _resident()
        self._loaded = self._engine.load(self._job)
        self._loaded.run(self._feeds)
        self._sweep = np.zeros(_SWEEP_BYTES // 8)
        return (_resident() - before) / 1e6

    def answers(self) -> Any:
        return answered(self._job.subject, self._loaded.run, self._job.data, "test")

    def warm(self) -> None:
        """Run for a second, and see how many runs make a block."""
        self._count = self._job.threads if self._job.mode == "throughput" else 1
        seconds, start = list[float](), time.perf_counter()
        while len(seconds) < 3 or time.perf_counter() - start < 1.0:
            seconds.append(self._once())
        wanted = _BURST_SECONDS if self._job.mode == "throughput" else _BLOCK_SECONDS
        blocks = min(400, max(1, math.ceil(wanted / min(seconds))))
        self._count, self._block = (self._count * blocks, 1) if self._job.mode == "throughput" else (1, max(3, blocks))

    def visit(self) -> float:
        """Milliseconds a sample: the median of a block's hot runs, or the whole of a burst over its samples."""
        np.add(self._sweep, 1.0, out=self._sweep)
        time.sleep(_SETTLE_SECONDS)
        if self._job.mode == "latency":
            self._once()
        return 1000.0 * float(np.median([self._once() for _ in range(self._block)])) / self._count

    def _once(self) -> float:
        start = time.perf_counter()
        if self._job.mode == "latency":
            self._loaded.run(self._feeds)
        else:
            self._loaded.burst(self._feeds, self._count)
        return time.perf_counter() - start


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - a line of the kernel's
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def built(name: str, job: Job, seconds: float) -> tuple[float, str | None]:
    """Build one engine in a process of its own; seconds that it took, and what it said.

    Raises:
        EngineError: it can't be built.
    """
    process = Process(name, job, {})
    try:
        took, note = process.ask("build", seconds=seconds)
        return float(took), note
    finally:
        process.close()


def race(processes: Mapping[str, Process], baseline: str, seconds: float) -> tuple[dict[str, Time], dict[str, str]]:
    """Times of all, and why some have none.  `seconds` is for the rounds; LEAST are run even where they take longer."""
    milliseconds, failed = {name: list[float]() for name in processes}, dict[str, str]()
    for name, process in processes.items():
        try:
            process.ask("warm")
        except EngineError as error:
            failed[name] = str(error)
    start, order = time.perf_counter(), random.Random(0)
    for done in range(MOST):
        if done >= LEAST and time.perf_counter() - start > seconds:
            break
        running = [name for name in processes if name not in failed]
        for name in order.sample(running, len(running)):
            try:
                milliseconds[name].append(processes[name].ask("visit"))
            except EngineError as error:
                failed[name] = str(error)
    return {name: _time(times, milliseconds[baseline]) for name, times in milliseconds.items() if name not in failed}, failed


def _time(times: list[float], baseline: list[float]) -> Time:
    gain = centre(np.log(baseline) - np.log(times), ERROR)
    low, middle, high = (float(one) for one in np.quantile(times, [0.25, 0.5, 0.75]))
    return Time(middle, low, high, math.exp(gain.value), math.exp(gain.low), math.exp(gain.high), len(times))


@contextmanager
def running(jobs: Mapping[str, Job]) -> Iterator[Mapping[str, Process]]:
    """A process for each engine, closed at the end whatever happens."""
    with ExitStack() as stack:
        processes = {}
        for name, job in jobs.items():
            processes[name] = Process(name, job, {"OMP_NUM_THREADS": str(job.threads if job.mode == "latency" else 1)})
            stack.callback(processes[name].close)
        yield processes
