"""Which of several things is faster, and how surely: `race` ranks many and tells their times, `quick` and `glance` answer one question
about two: which is faster, and about how much."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kernels.rank import Centre, centre

Clock = Callable[[], float]
"""Seconds that have passed, from any start."""

SAME = math.log(1.01)
"""Two times that differ by less than 1 % count as the same."""

KNOWN = math.log(1.05)
"""The race also goes on until the ratio of each that is left to the baseline is known to 5 %: a gain is to be told. That is all that
ends a glance."""

LOOKS = (10, 15, 23, 34, 51, 77, 115, 173, 260, 390)
"""After how many rounds the race looks whether it is decided. Each look may be wrong, so each has its share of the error."""

LEAST = 7
"""Rounds that are run even where they take longer than the budget: fewer give no interval at the level of `AT_END`."""

AT_LOOK = 0.025 / len(LOOKS)
AT_END = 0.025
"""Error of an interval that ends the race at a look, and where the budget ends it: together 5 %, whenever it stops."""

QUICK_LOOKS = (8, 12, 18, 27, 41, 62, 93)
AT_QUICK_LOOK = 0.1 / (len(QUICK_LOOKS) + 1)
"""Looks of `quick`, and the error of each and of the end: 10 % together, of which half is on the side of a gain that is none."""

_BLOCK_SECONDS = 0.004
_BLOCK_RUNS = 100
_SWEEP_BYTES = 32 << 20


@dataclass(frozen=True)
class Timing:
    """Time of one contender in a paired race. `ratio` is time of `versus` over its own time: above 1 is faster.

    `milliseconds`, `p90` and `p99` are quantiles of single runs right behind another run of the same contender;
    `cold_milliseconds` is the median of runs whose data had been swept out of the caches. `low` and `high` are a 95 %
    interval of the ratio; `stopped` says why the race ended; `timed_on` names the machine.
    """

    milliseconds: float
    p90: float
    p99: float
    versus: str
    ratio: float
    low: float
    high: float
    runs: int
    stopped: str
    timed_on: str
    cold_milliseconds: float | None = None


@dataclass(frozen=True)
class Gain:
    """How much faster the new one of two is: `ratio` is the old one's time over its own, with an interval.

    `faster` says whether that is by more than 1 %: None where `rounds` of both did not decide it.
    """

    ratio: float
    low: float
    high: float
    faster: bool | None
    rounds: int


@dataclass
class _Record:
    """What was measured of one contender: seconds of cold runs, of single hot runs, and the hot centre by round.

    A run is `work` things at once, and the seconds are those of one of them.
    """

    work: int = 1
    block: int = 1
    cold: list[float] = field(default_factory=list)
    hot: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)


def race(
    contenders: Mapping[str, Callable[[], object]],
    baseline: str,
    *,
    seconds: float,
    timed_on: str,
    track: Callable[[str, int, int], object] = lambda _step, _done, _total: None,
    clock: Clock = time.perf_counter,
    sweep: Callable[[], object] | None = None,
    ready: Callable[[str], object] = lambda _name: None,
    work: Mapping[str, int] | None = None,
    seed: int = 0,
) -> dict[str, Timing]:
    """Time `contenders` until it is certain which is the fastest, and by how much, or `seconds` have passed.

    A round visits all in random order. At a visit the caches are swept, so that everyone has the same predecessor; then
    comes one cold run, then a block of hot ones (several where a run is short), whose median is the round's time. Times are
    compared within rounds, so a machine that slows down meanwhile slows down everyone. A contender that is certainly
    slower than another one by more than 1 % is not run any further, the baseline excepted. Each interval is right 95 times of 100 for
    its contender alone: of twenty that are as fast as the baseline, one may seem to be faster.

    What a contender returns is dropped, what it raises comes through. `ready` is called with a contender's name before each visit,
    for those that can't all be in memory at once. `work` says of how many things a contender's run consists (samples of a batch,
    requests of a burst): then all times are those of one thing. `clock` and `sweep` are parameters for tests.
    """
    if baseline not in contenders:
        raise ValueError(f"the baseline {baseline!r} is not among the contenders")
    sweep = sweep or _cache_sweep()
    start = clock()
    records = {name: _Record((work or {}).get(name, 1)) for name in contenders}
    for number, name in enumerate(contenders):
        track("warming up", number, len(contenders))
        ready(name)
        _prepare(records[name], contenders[name], clock, seconds / 10 / len(contenders))
    order, running, stopped, ranking, done = random.Random(seed), list(contenders), dict[str, str](), "", 0
    while True:
        with no_garbage_collection():
            for name in order.sample(running, len(running)):
                ready(name)
                _visit(contenders[name], records[name], clock, sweep)
        done += 1
        track("timing", min(1000, round(1000 * (clock() - start) / seconds)) if seconds > 0 else 1000, 1000)
        if done in LOOKS:
            ranking, slower = _look(records, running, baseline, done)
            stopped |= slower
            running = [name for name in running if name not in stopped]
            if done == LOOKS[-1] or (ranking and all(_known(records[name], records[baseline]) for name in running)):
                verdict, error = f"{ranking or 'ranking not certain'} after {done} rounds", AT_LOOK
                break
        if done >= LEAST and clock() - start >= seconds:
            known = f"{ranking}, " if ranking else ""
            verdict, error = f"{known}time budget of {seconds:g} s spent after {done} rounds", AT_END
            break
    return {
        name: _timing(record, records[baseline], baseline, stopped.get(name, verdict), AT_LOOK if name in stopped else error, timed_on)
        for name, record in records.items()
    }


def quick(
    old: Callable[[], object],
    new: Callable[[], object],
    *,
    seconds: float,
    clock: Clock = time.perf_counter,
    seed: int = 0,
) -> Gain:
    """Whether `new` is faster than `old` by more than 1 %: ends as soon as either is certain, after 93 rounds, or after `seconds`.

    Measured as in a race, hot runs only: the first run of a visit, which has the other one before it, does not count, so nothing is
    swept. Of two whose times are the same it takes the new one for faster in at most 5 of 100 cases.

    Where both run on one thread, `clock=time.process_time` leaves out what other processes took of the machine: on a crowded one that
    decides what the wall clock can't. `seconds` are then seconds of this process.
    """
    for done, (records, late) in enumerate(_paired(old, new, seconds, clock, seed), 1):
        late = late and done >= QUICK_LOOKS[0]
        if done in QUICK_LOOKS or late:
            gain = _gain(*records, AT_QUICK_LOOK)
            faster = True if gain.low > SAME else False if gain.high < SAME else None
            if faster is not None or late or done == QUICK_LOOKS[-1]:
                break
    return Gain(math.exp(gain.value), math.exp(gain.low), math.exp(gain.high), faster, done)


def glance(
    old: Callable[[], object],
    new: Callable[[], object],
    *,
    versus: str,
    seconds: float,
    timed_on: str,
    clock: Clock = time.perf_counter,
    seed: int = 0,
) -> Timing:
    """The time of `new`, and its ratio to that of `old`, which is called `versus`: ends once the ratio is known to 5 %, or after `seconds`.

    Measured as `quick` does, so that there are no cold times. A race of the two would go on until it is certain which is the faster one.
    """
    for done, (records, late) in enumerate(_paired(old, new, seconds, clock, seed), 1):
        if done in LOOKS and _known(records[1], records[0]):
            stopped, error = f"ratio known to 5 % after {done} rounds", AT_LOOK
            break
        if late and done >= LEAST:
            stopped, error = f"time budget of {seconds:g} s spent after {done} rounds", AT_END
            break
    return replace(_timing(records[1], records[0], versus, stopped, error, timed_on), cold_milliseconds=None)


def _paired(
    old: Callable[[], object], new: Callable[[], object], seconds: float, clock: Clock, seed: int
) -> Iterator[tuple[tuple[_Record, _Record], bool]]:
    """Rounds of hot runs of both in random order, without end: what was measured of the two, and whether `seconds` have passed."""
    start, records, order = clock(), (_Record(), _Record()), random.Random(seed)
    pairs = list(zip((old, new), records, strict=True))
    for run, record in pairs:
        _prepare(record, run, clock, seconds / 10)
    while True:
        with no_garbage_collection():
            for run, record in order.sample(pairs, 2):
                _visit(run, record, clock, sweep=lambda: None)
        yield records, clock() - start >= seconds


def _prepare(record: _Record, run: Callable[[], object], clock: Clock, seconds: float) -> None:
    """Warm up, and set how many hot runs a visit makes."""
    estimate = warm_up(run, seconds, clock)
    record.block = min(_BLOCK_RUNS, max(1, math.ceil(_BLOCK_SECONDS / max(estimate, 1e-9))))


def warm_up(run: Callable[[], object], seconds: float, clock: Clock = time.perf_counter) -> float:
    """Run until three runs are no more than 2 % better than all before or `seconds` have passed, twice at least; seconds of the best."""
    times: list[float] = []
    start = clock()
    while len(times) < 2 or clock() - start < seconds:
        before = clock()
        run()
        times.append(clock() - before)
        if len(times) > 3 and min(times[-3:]) >= 0.98 * min(times[:-3]):
            break
    return min(times)


def _visit(run: Callable[[], object], record: _Record, clock: Clock, sweep: Callable[[], object]) -> None:
    """One cold run and a block of hot ones."""
    sweep()
    marks = [clock()]
    for _ in range(1 + record.block):
        run()
        marks.append(clock())
    cold, *hot = ((end - begin) / record.work for begin, end in pairwise(marks))
    record.cold.append(cold)
    record.hot += hot
    record.rounds.append(float(np.median(hot)))


def _look(records: Mapping[str, _Record], running: list[str], baseline: str, rounds: int) -> tuple[str, dict[str, str]]:
    """What is certain about the fastest, or nothing; and the contenders that are certainly slower than it, with the reason."""
    fastest = min(running, key=lambda name: float(np.median(records[name].rounds)))
    open_question, same = False, False
    slower = {}
    for name in running:
        if name == fastest:
            continue
        lead = _gain(records[name], records[fastest], AT_LOOK)
        if lead.low > SAME and name != baseline:
            slower[name] = f"slower than {fastest}, certain after {rounds} rounds"
        elif lead.low > -SAME and lead.high < SAME:
            same = True
        elif lead.low <= 0:
            open_question = True
    if open_question:
        return "", slower
    return ("difference under 1 %" if same else "ranking certain"), slower


def _known(record: _Record, base: _Record) -> bool:
    """Whether the ratio to the baseline is known well enough to be told."""
    gain = _gain(base, record, AT_LOOK)
    return gain.high - gain.low <= 2 * KNOWN


def _gain(slow: _Record, fast: _Record, error: float) -> Centre:
    """The centre of log(time of `slow` / time of `fast`) over the rounds that both ran."""
    shared = min(len(slow.rounds), len(fast.rounds))
    return centre(_logs(slow)[:shared] - _logs(fast)[:shared], error)


def _logs(record: _Record) -> NDArray[np.float64]:
    return np.asarray(np.log(np.maximum(record.rounds, 1e-9)), dtype=np.float64)


def _timing(record: _Record, base: _Record, baseline: str, stopped: str, error: float, timed_on: str) -> Timing:
    gain = _gain(base, record, error) if record is not base else Centre(0.0, 0.0, 0.0)
    p50, p90, p99 = (1000 * float(value) for value in np.quantile(record.hot, [0.5, 0.9, 0.99]))
    return Timing(
        milliseconds=p50,
        p90=p90,
        p99=p99,
        versus=baseline,
        ratio=math.exp(gain.value),
        low=math.exp(gain.low),
        high=math.exp(gain.high),
        runs=len(record.hot) + len(record.cold),
        stopped=stopped,
        timed_on=timed_on,
        cold_milliseconds=1000 * float(np.median(record.cold)),
    )


def _cache_sweep() -> Callable[[], object]:
    """Something to run that leaves nothing of the contenders in the caches of this core."""
    data = np.zeros(_SWEEP_BYTES // 8)
    return lambda: np.add(data, 1.0, out=data)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """A collection inside a run would be counted as the contender's time; between rounds it is let in."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
