"""What is demanded beside the drop has the last word: the worst of all verdicts counts, and the closest plan is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernels.load import Load, Quantile
from kernels.timing import Timing
from optimizer.demands import after_demands
from optimizer.engine import Candidate, Parity
from optimizer.plan import Plan
from optimizer.request import Request, request_from_words

PASS = Parity("pass", "top1", 0.8, 0.8, 0.008, 0.0, -0.001, 0.001, 2000, None, "this CPU", "it is under the budget")


def asked(**words: Any) -> Request:
    return request_from_words("m.onnx", "out", folder=Path(), **words)


def candidate(name: str, milliseconds: float, **words: Any) -> Candidate:
    ratio = 10 / milliseconds
    timing = Timing(milliseconds, milliseconds, milliseconds, "fp32", ratio, ratio, ratio, 100, "ranking certain", "this CPU")
    return Candidate(name, Plan("onnxruntime", "cpu", "fp32"), timing=timing, **words)


def load(low: float, high: float) -> Load:
    one = Quantile((low + high) / 2, low, high)
    return Load(1000, 1, None, 1, 500.0, one, one, one, "this CPU")


SHIPS = candidate("int8 without 2 layers", 4.0)
TEMPTING = candidate("int8", 2.0, outcome="refused", reason="it loses 60 pp")


@pytest.mark.parametrize(("low", "high", "verdict", "code"), [(1, 2, "pass", 0), (4, 6, "inconclusive", 4), (6, 7, "fail", 3)])
def test_a_latency_is_held_missed_or_undecided(low: float, high: float, verdict: str, code: int) -> None:
    parity, found = after_demands(asked(max_latency="5ms@p99"), SHIPS, PASS, (), load(low, high))
    assert (parity.verdict, found) == (verdict, code)
    assert verdict == "pass" or "5 ms at p99" in parity.reason


def test_a_missed_latency_names_the_closest_plan_and_the_faster_one_that_may_not_ship() -> None:
    parity, _ = after_demands(asked(max_latency="3ms@p99"), SHIPS, PASS, (), load(4, 5), [candidate("fp32", 10), SHIPS, TEMPTING])
    assert parity.reason.endswith("closest is int8 without 2 layers, 4 ms a run; int8 takes 2 ms and was refused (it loses 60 pp)")
    parity, _ = after_demands(asked(max_latency="3ms@p99"), SHIPS, PASS, (), load(4, 5), [candidate("fp32", 10), SHIPS])
    assert parity.reason.endswith("closest is int8 without 2 layers, 4 ms a run, the fastest of all that were tried")


def test_without_the_target_a_latency_is_not_decided() -> None:
    parity, code = after_demands(asked(max_latency="3ms@p99"), replace(SHIPS, timing=None), PASS, ())
    assert (parity.verdict, code) == ("inconclusive", 4)
    assert "the target is not here" in parity.reason


def test_the_worst_of_several_verdicts_counts() -> None:
    both = asked(max_latency="5ms@p99", min_speedup=3.0)
    assert after_demands(both, SHIPS, PASS, (), load(4, 6))[0].verdict == "fail"
    failed = replace(PASS, verdict="fail", reason="it loses too much")
    parity, code = after_demands(both, SHIPS, failed, (), load(1, 2))
    assert (parity.reason, code) == ("it loses too much", 3)
    undecided = replace(PASS, verdict="inconclusive", reason="too few samples")
    assert after_demands(asked(max_latency="5ms@p99"), SHIPS, undecided, (), load(1, 2))[1] == 4
    assert after_demands(asked(max_latency="5ms@p99"), SHIPS, undecided, (), load(6, 7))[1] == 3


def test_an_undecided_latency_can_be_taken_for_a_pass_or_a_fail() -> None:
    for word, code in (("pass", 0), ("fail", 3)):
        assert after_demands(asked(max_latency="5ms@p99", on_inconclusive=word), SHIPS, PASS, (), load(4, 6))[1] == code


def test_without_a_demand_nothing_changes() -> None:
    assert after_demands(asked(), SHIPS, PASS, ()) == (PASS, 0)
