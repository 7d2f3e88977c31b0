"""An engine under load: streams, threads and batch chosen by samples a second, and load tests of what was chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import accumulate
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.load import Load, clients, fewest, load_test
from kernels.timing import Timing, race, warm_up
from optimizer.backends import open_engine
from optimizer.engine import Arrays, Candidate, Engine
from optimizer.errors import InputError
from optimizer.graph import HEAVY, weights_bytes
from optimizer.latency import MaxLatency
from optimizer.plan import Knobs, Plan
from optimizer.planner.problem import Problem
from optimizer.progress import Track, silent

TUNING_SECONDS = 5.0
LOAD_SECONDS = 5.0

_TESTED = 2
"""Requests of a load test, in the least number that can bound its quantile: some of them come in rows."""

ROOM = 1 << 30
"""Bytes of weights that the copies of an engine may hold together while it is found out how many of them serve the most."""

BATCHES = (2, 4, 8, 16, 32)

_LONGEST = 0.1
"""Seconds that a request may take for a larger batch to be tried: beyond that the engine, not the call, is what takes the time."""

_BURST = 0.01
"""Seconds that each client is kept busy for at a visit of the race: handing the requests out takes about a hundredth of that."""

_SAME = 0.01
"""What a sample may differ by, relative to its size, in a batch and alone: rounding, not another result."""


def streamed(problem: Problem, candidate: Candidate, feed: Arrays, track: Track = silent) -> tuple[Knobs, Load | None, str]:
    """The knobs `streams`, `threads` (of each stream) and `batch` with which the candidate's engine serves the most samples a second.

    With them a load test at that load, as many clients as streams (None where the target is not here), and what was measured, in
    words.  The batch is chosen first, then the streams, with as many threads together as there are to be had; what comes first, the
    batch of `feed` and one stream, stays unless another serves more for sure.
    """
    knobs: Knobs = {**candidate.plan.knobs, "streams": 1, "batch": 1}
    if candidate.folder is None or not problem.capability.runs_here:
        return knobs, None, ""
    (first, *layouts), few = _layouts(problem)
    device = problem.target.device
    with ExitStack() as stack:
        engine = _opened(problem, candidate.folder, {**knobs, **first}, stack)
        batches, alone = _batches(problem, candidate.plan, engine, feed)
        _, knobs, larger = _best([(engine, {**knobs, **first, "batch": batch}) for batch in batches], feed, device, track)
        others = [{**knobs, **layout} for layout in layouts]
        engines = [(engine, knobs), *((_opened(problem, candidate.folder, one, stack), one) for one in others)]
        engine, knobs, faster = _best(engines, feed, device, track)
        track("load test", 0, 0)
        streams, batch = int(knobs["streams"]), int(knobs["batch"])
        run = partial(engine.run, _stacked(feed, batch))
        load = load_test(run, requests=_TESTED * fewest("p99"), seconds=LOAD_SECONDS, concurrency=streams, samples=batch, timed_on=device)
    return knobs, load, "; ".join(filter(None, (larger, alone, faster, few)))


def under_load(problem: Problem, candidate: Candidate, feed: Arrays, demand: MaxLatency, track: Track = silent) -> Load | None:
    """A load test of the candidate's engine, as it would ship, at the load of a demand; None where the target is not here."""
    if candidate.folder is None or not problem.capability.runs_here:
        return None
    track("load test", 0, 0)
    with closing(open_engine(problem.backend, candidate.folder, candidate.plan.knobs)) as engine:
        return load_test(
            partial(engine.run, feed),
            requests=_TESTED * fewest(demand.quantile),
            seconds=LOAD_SECONDS,
            concurrency=demand.concurrency if demand.rate is None else int(candidate.plan.knobs.get("streams", 1)),
            rate=demand.rate,
            timed_on=problem.target.device,
        )


def raced(
    contenders: Mapping[str, tuple[Engine, Knobs]], baseline: str, feed: Arrays, *, seconds: float, timed_on: str, track: Track = silent
) -> dict[str, Timing]:
    """Engines against each other with all their streams busy: the times are those of one sample, so that their ratio is that of throughput.

    Each comes with its knobs, of which `streams` and `batch` count: in a visit as many clients as it has streams each ask for a few
    batches.
    """
    with ExitStack() as stack:
        runs, work = {}, {}
        for name, (engine, knobs) in contenders.items():
            streams, batch = int(knobs.get("streams", 1)), int(knobs.get("batch", 1))
            runs[name], requests = _busy(partial(engine.run, _stacked(feed, batch)), streams, stack)
            work[name] = requests * batch
        return race(runs, baseline, seconds=seconds, timed_on=timed_on, work=work, track=track)


def _opened(problem: Problem, folder: Path, knobs: Knobs, stack: ExitStack) -> Engine:
    """The engine in as many streams as its knobs say, closed when `stack` is left."""
    return stack.enter_context(closing(open_engine(problem.backend, folder, knobs)))


def _busy(run: Callable[[], object], streams: int, stack: ExitStack) -> tuple[Callable[[], object], int]:
    """`run`, called by as many clients as there are streams, and how many times; the clients go when `stack` is left."""
    requests = streams * max(1, ceil(_BURST / warm_up(run, _BURST)))
    serve = stack.enter_context(clients(streams))
    return lambda: serve(lambda _: run(), range(requests)), requests


def _best(engines: Sequence[tuple[Engine, Knobs]], feed: Arrays, device: str, track: Track) -> tuple[Engine, Knobs, str]:
    """The engine that serves the most, the first unless another does for sure; and by how much, in words ("" where there is one)."""
    named = {_words(knobs): (engine, knobs) for engine, knobs in engines}
    first = next(iter(named))
    if len(named) == 1:
        return *named[first], ""
    timings = raced(named, first, feed, seconds=TUNING_SECONDS, timed_on=device, track=track)
    best = max(named, key=lambda name: timings[name].ratio)
    if timings[best].low <= 1.0:
        return *named[first], f"{first}: none of {_counted(len(named) - 1, 'other')} serves more for sure"
    return *named[best], f"{best}: {timings[best].ratio:.2f}x the samples a second of {first}"


def _words(knobs: Knobs) -> str:
    streams, threads, batch = (int(knobs.get(name, 1)) for name in ("streams", "threads", "batch"))
    return f"{_counted(streams, 'stream')} of {_counted(threads, 'thread')}" + f", batch {batch}" * (batch > 1)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


def _layouts(problem: Problem) -> tuple[list[Knobs], str]:
    """Streams and the threads of each, one stream with all threads first; and why there are fewer than could be, or ""."""
    if "threads" not in problem.knobs:
        return [{"streams": 1}], ""
    total = int(max(problem.choices.get("threads", (problem.knobs["threads"],))))
    counts = [1, *(2**power for power in range(1, total.bit_length()) if 2**power <= total)]
    layouts = [{"streams": count, "threads": total // count} for count in counts] + [{"streams": 1, "threads": 1}] * (total > 1)
    weights = weights_bytes(problem.model.graph)
    room = [one for one, copies in zip(layouts, accumulate(one["streams"] for one in layouts), strict=True) if copies * weights <= ROOM]
    kept = layouts[:1] if weights > HEAVY else room
    few = f"{weights / 1e6:,.0f} MB of weights a copy leave no room for more streams" if len(kept) < len(layouts) else ""
    return list[Knobs](kept), few


def _batches(problem: Problem, plan: Plan, engine: Engine, feed: Arrays) -> tuple[list[int], str]:
    """The batches worth trying, that of `feed` first; and why there is no other, or "".

    Other batches are only taken where the engine was seen to give for each of two samples what it gives for it alone.
    """
    if "int8_dynamic" in plan.precisions.values():
        return [1], "batch 1: dynamic INT8 takes its range over the whole batch, and the gate judges samples one by one"
    sizes = {spec.shape[0] if spec.shape else None for spec in problem.model.inputs}
    if len(sizes) > 1 or not isinstance(next(iter(sizes), None), str):
        return [1], "batch 1: the inputs have no free first dimension in common"
    if (why := _mixes(engine, feed)) is not None:
        return [1], f"batch 1: {why}"
    usual = len(next(iter(feed.values())))
    most = min((problem.shapes[name].largest[0] for name in problem.shapes if name in feed), default=BATCHES[-1])
    batches = [usual]
    for batch in BATCHES:
        if batch > most or warm_up(partial(engine.run, _stacked(feed, batch)), _LONGEST) > _LONGEST:
            break
        batches += [batch] * (batch > usual)
    return batches, ""


def _mixes(engine: Engine, feed: Arrays) -> str | None:
    """Why two samples can't go into one call, None where each gives what it gives alone; the second is the first, shifted."""
    other = {name: np.roll(array, 1) for name, array in feed.items()}
    try:
        alone, shifted = engine.run(feed), engine.run(other)
        together = engine.run({name: np.concatenate([array, other[name]]) for name, array in feed.items()})
    except InputError as error:
        return error.reason
    for name, found in together.items():
        wanted = np.concatenate([np.atleast_1d(alone[name]), np.atleast_1d(shifted[name])])
        if wanted.shape != found.shape or not _alike(wanted, found):
            return f"samples in one call do not give what each gives alone ({name})"
    return None


def _alike(wanted: NDArray[Any], found: NDArray[Any]) -> bool:
    if wanted.dtype.kind not in "biuf":
        return bool(np.array_equal(wanted, found))
    return bool(np.linalg.norm(wanted.astype(np.float64) - found) <= _SAME * np.linalg.norm(wanted.astype(np.float64)))


def _stacked(feed: Arrays, batch: int) -> Arrays:
    """So many samples: those of `feed`, repeated along the first axis; a batch of 1 is `feed` as it is."""
    return feed if batch == 1 else {name: np.concatenate([array] * ceil(batch / len(array)))[:batch] for name, array in feed.items()}
