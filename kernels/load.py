"""What something that runs does under load: how much it serves a second, and how long each request waits for its answer.

Two kinds of load. Of *clients*, each of which asks again as soon as it has its answer: latency counts from when it asks. Or at a
*rate*: requests arrive on their own, at random, so often on average, and latency counts from the arrival, so that those which
queue up behind a slow one count as slow, too (else a stall is one late request, however many it kept waiting).
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from kernels.timing import Clock, no_garbage_collection

T = TypeVar("T")

QUANTILES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

_ERROR = 0.05
_BLOCKS = 32


@dataclass(frozen=True)
class Quantile:
    """A quantile of latency in milliseconds, with a 95 % interval; `high` is None where the requests were too few to bound it."""

    milliseconds: float
    low: float
    high: float | None


@dataclass(frozen=True)
class Load:
    """What was measured over `requests` requests, each of `samples` samples.

    `concurrency` clients asked at once; `rate` is how many requests arrived a second, None where each client asked as soon as it was
    answered. `throughput` is samples a second. `timed_on` names the machine.
    """

    requests: int
    concurrency: int
    rate: float | None
    samples: int
    throughput: float
    p50: Quantile
    p90: Quantile
    p99: Quantile
    timed_on: str

    def quantile(self, name: str) -> Quantile:
        """The quantile called "p50", "p90" or "p99"."""
        return {"p50": self.p50, "p90": self.p90, "p99": self.p99}[name]


def load_test(
    run: Callable[[], object],
    *,
    requests: int,
    concurrency: int = 1,
    rate: float | None = None,
    seconds: float = 0.0,
    samples: int = 1,
    timed_on: str = "",
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
    seed: int = 0,
) -> Load:
    """Call `run` from `concurrency` threads: after a warm-up at least `requests` times, and as often as `seconds` allow.

    What `run` returns is dropped; what it raises ends the test and comes through. `clock` and `sleep` are parameters for tests.
    """
    spans: list[tuple[float, float]] = []

    def timed(due: float) -> None:
        if (early := due - clock()) > 0:
            sleep(early)
            due = clock()  # a client that wakes up late was late itself: nobody was kept waiting by the engine
        run()
        spans.append((due, clock()))

    with clients(concurrency) as serve, no_garbage_collection():
        serve(lambda _: run(), range(max(2 * concurrency, requests // 10)))
        serve(timed, _arrivals(requests, seconds, rate, clock, random.Random(seed)))
    begins, ends = np.array(spans).T
    p50, p90, p99 = (quantile_of(1000 * (ends - begins), share) for share in QUANTILES.values())
    served = samples * len(spans) / max(float(ends.max() - begins.min()), 1e-9)
    return Load(len(spans), concurrency, rate, samples, served, p50, p90, p99, timed_on)


def fewest(name: str) -> int:
    """How many requests it takes at least to bound the quantile called `name` from above; where they wait in rows it takes more."""
    return math.ceil(math.log(_ERROR / 2) / math.log(QUANTILES[name]))


def load_in_words(load: Load) -> str:
    """A Load in words: `p50 1.02, p90 1.10, p99 1.31 ms [1.25, 1.40]; 2 clients, 4,000 requests, 1,950 samples/s`."""
    p99 = load.p99
    high = "?" if p99.high is None else f"{p99.high:.3g}"
    asked = f"{load.concurrency} client{'s' if load.concurrency > 1 else ''}" if load.rate is None else f"{load.rate:g} requests/s"
    of = f" of {load.samples} samples" if load.samples > 1 else ""
    return (
        f"p50 {load.p50.milliseconds:.3g}, p90 {load.p90.milliseconds:.3g}, p99 {p99.milliseconds:.3g} ms [{p99.low:.3g}, {high}];"
        f" {asked}, {load.requests:,} requests{of}, {load.throughput:,.4g} samples/s"
    )


@contextmanager
def clients(count: int) -> Iterator[Callable[[Callable[[T], object], Iterable[T]], None]]:
    """`count` threads, as a function that has them `call` with each of `tickets`; an error of one ends all and comes through."""
    with ThreadPoolExecutor(count) as pool:

        def serve(call: Callable[[T], object], tickets: Iterable[T]) -> None:
            shared = _Shared(tickets)

            def client() -> None:
                with closing(shared):  # whoever fails ends all; whoever finds no ticket left is the first of all
                    for ticket in shared:
                        call(ticket)

            asked = [pool.submit(client) for _ in range(count)]
            with closing(shared):
                for one in asked:
                    one.result()

        yield serve


class _Shared(Iterator[T]):
    """An iterator that several threads draw from, until it ends or one of them closes it."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items, self._lock, self._open = iter(items), Lock(), True

    def __next__(self) -> T:
        with self._lock:
            if not self._open:
                raise StopIteration
            return next(self._items)

    def close(self) -> None:
        self._open = False


def quantile_of(milliseconds: NDArray[np.float64], share: float) -> Quantile:
    """The quantile at `share` of latencies, shape (n,), in the order in which they were served.

    Its interval lies between two of them and assumes no distribution (David and Nagaraja, Order Statistics, 2003, 7.1).  As stalls
    strike several requests in a row, only so many count as `_independent` says.
    """
    values, count = np.sort(milliseconds), len(milliseconds)
    value = values[math.ceil(share * count) - 1]
    alone = _independent(milliseconds > value)
    below, beyond = _left_out(alone, share)
    return Quantile(
        float(value),
        float(values[(below - 1) * count // alone]) if below else 0.0,
        float(values[-((beyond - 1) * count // alone) - 1]) if beyond else None,
    )


def _left_out(count: int, share: float) -> tuple[int, int]:
    """How many of `count` sorted values, from the lowest up and from the highest down, lead to the ends of the interval; 0: none does."""
    logs = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, count + 1)))))
    below = np.arange(count + 1)
    chances = np.exp(logs[-1] - logs - logs[::-1] + below * math.log(share) + (count - below) * math.log1p(-share))
    low, high = (int(np.searchsorted(np.cumsum(tail), _ERROR / 2, side="right")) for tail in (chances, chances[::-1]))
    return low, high


def _independent(slow: NDArray[np.bool_]) -> int:
    """How many independent requests tell as much as these, of which some are `slow`: their number over the design effect.

    That is how many times as much the count of slow ones varies between blocks of consecutive requests as it would by chance (Kish,
    Survey Sampling, 1965).
    """
    count, share = len(slow), float(slow.mean())
    length = max(1, count // _BLOCKS)
    blocks = slow[: count // length * length].reshape(-1, length).sum(axis=1)
    if share == 0.0:
        return count
    return max(1, round(count / max(1.0, float(blocks.var()) / (length * share * (1 - share)))))


def _arrivals(requests: int, seconds: float, rate: float | None, clock: Clock, draw: random.Random) -> Iterator[float]:
    """When each request is due: with a `rate` at random (Poisson), else now."""
    start = at = clock()
    for number in itertools.count():
        if number >= requests and clock() - start >= seconds:
            return
        at = clock() if rate is None else at + draw.expovariate(rate)
        yield at
