"""A load test tells what is served and how long each request waits, and how surely that is known."""

from __future__ import annotations

import gc
import itertools
import math
import threading
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.load import Load, Quantile, clients, fewest, load_in_words, load_test, quantile_of


class Clock:
    """Time that passes only where somebody runs or sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def server(self, seconds: Callable[[int], float]) -> Callable[[], None]:
        """Serves the n-th request in `seconds(n)`."""
        numbers = itertools.count()
        return lambda: self.sleep(seconds(next(numbers)))


def measured(clock: Clock, run: Callable[[], object], **words: float) -> Load:
    return load_test(run, clock=clock, sleep=clock.sleep, **words)  # type: ignore[arg-type]


def test_quantiles_are_those_of_the_requests_and_throughput_counts_their_samples() -> None:
    clock = Clock()
    load = measured(clock, clock.server(lambda number: 0.010 if number % 50 == 49 else 0.001), requests=1000, samples=8)
    assert load.requests == 1000
    assert [round(load.quantile(name).milliseconds, 6) for name in ("p50", "p90", "p99")] == [1.0, 1.0, 10.0]
    assert load.throughput == pytest.approx(8 * 1000 / (980 * 0.001 + 20 * 0.010), rel=1e-6)


def test_the_warm_up_does_not_count() -> None:
    clock = Clock()
    load = measured(clock, clock.server(lambda number: 1.0 if number < 40 else 0.001), requests=400)
    assert load.p99.milliseconds == pytest.approx(1.0)


def test_it_goes_on_for_as_long_as_there_is_time_and_never_ends_before_the_requests() -> None:
    clock = Clock()
    assert measured(clock, clock.server(lambda _: 0.001), requests=10, seconds=1.0).requests == pytest.approx(1000, abs=1)
    assert measured(clock, clock.server(lambda _: 0.001), requests=400, seconds=0.1).requests == 400


def test_at_a_rate_those_who_wait_behind_a_stall_count_as_slow() -> None:
    clock = Clock()
    stalls = lambda number: 1.0 if number == 300 else 0.001  # noqa: E731
    asking = measured(clock, clock.server(stalls), requests=1000)
    arriving = measured(clock, clock.server(stalls), requests=1000, rate=100.0)
    assert asking.p99.milliseconds == pytest.approx(1.0)
    assert arriving.p90.milliseconds > 50
    assert arriving.p99.milliseconds > 500
    assert arriving.rate == 100.0
    assert arriving.throughput == pytest.approx(100, rel=0.15)


def test_more_requests_than_can_be_served_end_with_the_time_and_show_as_latency() -> None:
    clock = Clock()
    load = measured(clock, clock.server(lambda _: 0.010), requests=10, seconds=2.0, rate=1000.0)
    assert load.requests == pytest.approx(200, abs=2)
    assert load.p99.milliseconds > 1000


def test_a_client_that_sleeps_too_long_does_not_count_against_the_server() -> None:
    clock = Clock()
    load = load_test(
        clock.server(lambda _: 0.001), requests=400, rate=10.0, clock=clock, sleep=lambda seconds: clock.sleep(seconds + 0.005)
    )
    assert load.p50.milliseconds == pytest.approx(1.0)


def test_as_many_clients_as_asked_for_are_served_at_once() -> None:
    together = threading.Barrier(4)
    load = load_test(lambda: together.wait(timeout=30), requests=40, concurrency=4)
    assert load.requests == 40
    assert load.concurrency == 4


@pytest.mark.parametrize("error", [RuntimeError("broken engine"), StopIteration("broken engine")])
def test_an_error_ends_all_clients_and_comes_through(error: Exception) -> None:
    calls = itertools.count()

    def fails_late() -> None:
        if next(calls) == 20:
            raise error

    before = threading.active_count()
    with pytest.raises(type(error), match="broken engine"):
        load_test(fails_late, requests=10**6, concurrency=3)
    assert next(calls) < 10**4
    assert threading.active_count() == before
    assert gc.isenabled()


def test_each_ticket_is_served_once_whoever_draws_it() -> None:
    served: list[int] = []
    with clients(5) as serve:
        serve(served.append, range(1000))
        serve(served.append, range(1000, 1500))
    assert sorted(served) == list(range(1500))


@pytest.mark.parametrize(("count", "low", "high"), [(6, 1, 6), (10, 2, 9), (15, 4, 12), (20, 6, 15), (50, 18, 33), (100, 40, 61)])
def test_the_interval_of_the_median_is_that_of_the_published_tables(count: int, low: int, high: int) -> None:
    by_turns = np.arange(1.0, count + 1).reshape(2, -1).T.reshape(-1) if count % 2 == 0 else np.arange(1.0, count + 1)
    found = quantile_of(by_turns, 0.5)
    assert (found.low, found.high) == (low, high)


@pytest.mark.parametrize(("name", "share"), [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)])
def test_too_few_requests_leave_a_quantile_unbounded(name: str, share: float) -> None:
    assert quantile_of(np.ones(fewest(name) - 1), share).high is None
    assert quantile_of(np.ones(fewest(name)), share).high == 1.0


def steady(draw: np.random.Generator, count: int) -> NDArray[np.float64]:
    return draw.exponential(1.0, count)


def stalling(draw: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Now and then a stall strikes about twenty requests in a row."""
    found = 1 + draw.exponential(0.1, count)
    for start in np.flatnonzero(draw.random(count) < 0.002):
        found[start : start + draw.geometric(0.05)] += draw.exponential(5.0)
    return found


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
@pytest.mark.parametrize(("requests", "missed_at_most"), [(steady, 0.05), (stalling, 0.15)])
def test_the_interval_covers_the_true_quantile_nearly_as_often_as_it_says_even_where_stalls_strike_many_in_a_row(
    share: float, requests: Callable[[np.random.Generator, int], NDArray[np.float64]], missed_at_most: float
) -> None:
    draw, tests = np.random.default_rng(0), 150
    truth = float(np.quantile(requests(draw, 1_000_000), share))
    found = [quantile_of(requests(draw, 8000), share) for _ in range(tests)]
    missed = sum(not (one.low <= truth <= (one.high or math.inf)) for one in found)
    assert missed <= missed_at_most * tests + 2 * math.sqrt(0.05 * 0.95 * tests)


def test_a_load_is_told_with_its_clients_its_requests_and_how_sure_the_p99_is() -> None:
    load = Load(4000, 2, None, 8, 1950.4, Quantile(1.0, 0.9, 1.1), Quantile(2.0, 1.9, 2.1), Quantile(3.0, 2.5, None), "here")
    assert load_in_words(load) == "p50 1, p90 2, p99 3 ms [2.5, ?]; 2 clients, 4,000 requests of 8 samples, 1,950 samples/s"
    assert "100 requests/s" in load_in_words(Load(400, 1, 100.0, 1, 99.0, load.p50, load.p90, load.p99, ""))
