"""A latency that is demanded: its words, and what a load test shows of it."""

from __future__ import annotations

import pytest

from kernels.load import Load, Quantile
from optimizer.errors import InputError
from optimizer.latency import MaxLatency, held, latency_from_words


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("2ms@p99", MaxLatency(2.0, "p99")),
        ("500us@p50", MaxLatency(0.5, "p50")),
        ("1.5s@p90", MaxLatency(1500.0, "p90")),
        ("2ms@p99x4", MaxLatency(2.0, "p99", concurrency=4)),
        (" 2ms@p99@200/s ", MaxLatency(2.0, "p99", rate=200.0)),
        ("2ms@p99@0.5/s", MaxLatency(2.0, "p99", rate=0.5)),
    ],
)
def test_words_say_time_quantile_and_load(words: str, wanted: MaxLatency) -> None:
    assert latency_from_words(words) == wanted


@pytest.mark.parametrize(
    "words",
    ["", "2", "2ms", "2@p99", "ms@p99", "2 ms@p99", "2ms@p95", "2ms@99", "-2ms@p99", "2msp99", "2ms@p99x", "2ms@p99x-1", "2ms@p99@200",
     "2ms@p99x4@200/s", "2min@p99", "1e3ms@p99", "nanms@p99", "infms@p99", "٣ms@p99", "2ms@p99\nx4"],
)  # fmt: skip
def test_other_words_are_refused_with_the_form(words: str) -> None:
    with pytest.raises(InputError, match="2ms@p99"):
        latency_from_words(words)


@pytest.mark.parametrize("words", ["0ms@p99", "2ms@p99x0", "2ms@p99@0/s", "2ms@p99x99999999999", "0.0s@p50"])
def test_what_nothing_can_hold_is_refused(words: str) -> None:
    with pytest.raises(InputError, match="can't be held"):
        latency_from_words(words)


def loaded(low: float, high: float | None) -> Load:
    one = Quantile(0.1, 0.1, 0.1)
    return Load(500, 1, None, 1, 1000.0, one, one, Quantile(2.0, low, high), "here")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.0, 1.9, "pass"),
        (1.9, 2.0, "pass"),
        (1.9, 2.1, "inconclusive"),
        (2.0, 2.1, "inconclusive"),
        (2.1, 2.2, "fail"),
        (2.1, None, "fail"),
    ],
)
def test_the_whole_interval_must_be_on_one_side(low: float, high: float | None, verdict: str) -> None:
    assert held(MaxLatency(2.0, "p99"), loaded(low, high))[0] == verdict


def test_too_few_requests_do_not_hold_a_latency_and_the_reason_says_how_many_would() -> None:
    verdict, why = held(MaxLatency(2.0, "p99"), loaded(0.1, None))
    assert verdict == "inconclusive"
    assert "it takes at least 368" in why


def test_what_was_seen_and_what_was_demanded_are_told_with_the_load() -> None:
    _, why = held(MaxLatency(2.0, "p99", concurrency=4), loaded(2.5, 3.0))
    assert "p99 is 2 ms, surely between 2.5 and 3 ms" in why
    assert "500 requests" in why
    assert "2 ms at p99 with 4 clients that was demanded" in why
    assert "2 ms at p50 at 20 requests/s" in held(MaxLatency(2.0, "p50", rate=20.0), loaded(2.5, 3.0))[1]
