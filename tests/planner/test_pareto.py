"""Finalists: the front of speed against predicted loss, safest first; where nothing can be timed, leaner by static counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernels.timing import Timing
from optimizer.engine import Built, Candidate, Launch
from optimizer.plan import Plan
from optimizer.planner.pareto import FINALISTS, finalists, front, leaner, predicted


def candidate(name: str, ratio: float = 1.0, distance: float = 0.0, low: float | None = None, int8: bool = True) -> Candidate:
    plan = Plan("any", "cpu", "fp32", precisions={"a": "int8"} if int8 else {})
    timing = Timing(1 / ratio, 0, 0, "fp32", ratio, ratio - 0.01 if low is None else low, ratio + 0.01, 9, "", "here")
    return Candidate(name, plan, timing=timing, distance=distance)


def counted(name: str, launches: int, moved: int, base: str = "fp16", int8: bool = False, distance: float = 0.0) -> Candidate:
    plan = Plan("any", "l4", base, precisions={"a": "int8"} if int8 else {})  # type: ignore[arg-type]
    each = tuple(Launch(str(index), "conv", (), "fp16", moved // launches) for index in range(launches))
    return Candidate(name, plan, built=Built((), launches=each), distance=distance)


BASE = candidate("fp32", int8=False)


def names(found: list[Candidate]) -> list[str]:
    return [one.name for one in found]


def test_the_baseline_comes_first_and_then_the_front_from_the_safest_to_the_fastest() -> None:
    others = [candidate("fast", 3.0, 0.3), candidate("safe", 1.5, 0.01), candidate("middle", 2.0, 0.1), candidate("beaten", 1.4, 0.2)]
    assert names(finalists([BASE, *others], "fp32")) == ["fp32", "safe", "middle", "fast"]


def test_what_is_not_faster_for_sure_is_no_finalist() -> None:
    assert names(finalists([BASE, candidate("perhaps", 1.05, 0.0, low=0.99), candidate("slower", 0.7)], "fp32")) == ["fp32"]


def test_with_a_precision_asked_for_by_name_slower_plans_are_finalists_too() -> None:
    assert names(finalists([candidate("slow", 0.7, 0.1), candidate("slower", 0.5, 0.01)], "fp32")) == ["slower", "slow"]


def deciding(name: str, ratio: float, rate: float, low: float | None = None, distance: float = 0.1) -> Candidate:
    """A candidate whose decisions are predicted to change at `rate`, surely at `low` at least."""
    return replace(candidate(name, ratio, distance), flip_rate=rate, flip_low=rate / 2 if low is None else low, flip_high=2 * rate)


def test_at_most_five_are_asked_spread_over_the_front_where_nothing_tells_what_the_gate_will_pass() -> None:
    several = [candidate(f"p{index}", 1.5 + index / 10, 0.01 * (index + 1)) for index in range(9)]
    found = names(finalists([BASE, *several], "fp32"))
    assert len(found) == FINALISTS
    assert found[:2] == ["fp32", "p0"]
    assert found[-1] >= "p6"


def test_decisions_are_ordered_by_what_is_predicted_to_flip_and_not_by_the_distance() -> None:
    far = deciding("far but sure", 1.5, 0.001, distance=0.5)
    near = deciding("near but at the edge", 2.0, 0.02, distance=0.01)
    assert names(finalists([BASE, near, far], "fp32")) == ["fp32", "far but sure", "near but at the edge"]


def test_of_a_crowded_front_those_stay_that_the_budget_may_decide_between() -> None:
    safe = [deciding(f"safe {index}", 1.5 + index / 100, 1e-5 * (index + 1)) for index in range(4)]
    near = [deciding("half the budget", 2.0, 0.005), deciding("the budget", 2.2, 0.01)]
    beyond = [deciding("three budgets", 2.4, 0.03), deciding("four budgets", 2.41, 0.04)]
    found = names(finalists([BASE, *safe, *near, *beyond], "fp32", allowed=0.01))
    assert len(found) == FINALISTS
    assert found[:2] == ["fp32", "safe 0"]
    assert {"half the budget", "the budget"} < set(found)
    assert "four budgets" not in found


def test_what_is_hopeless_is_not_asked_even_where_there_is_room_and_doubt_speaks_for_a_candidate() -> None:
    hopeless, doubtful = deciding("hopeless", 3.0, 0.1, low=0.08), deciding("doubtful", 2.5, 0.09, low=0.01)
    assert names(finalists([BASE, hopeless, doubtful], "fp32", allowed=0.01)) == ["fp32", "doubtful"]
    assert names(finalists([BASE, hopeless, doubtful], "fp32")) == ["fp32", "doubtful", "hopeless"]


def test_where_no_baseline_may_ship_the_safest_is_asked_be_it_hopeless() -> None:
    bad, worse = deciding("bad", 2.0, 0.2), deciding("worse", 3.0, 0.4)
    assert names(finalists([worse, bad], "fp32", allowed=0.01)) == ["bad"]


def test_a_plan_without_a_lossy_step_is_not_beaten_by_a_lossy_one_that_nothing_was_seen_to_change() -> None:
    rewritten = replace(candidate("rewritten", 1.3, 1e-6, int8=False), flip_rate=1e-7, flip_low=0.0, flip_high=1e-4)
    half = deciding("bf16", 1.8, 0.0)
    assert names(finalists([BASE, rewritten, half], "fp32", allowed=0.01)) == ["fp32", "rewritten", "bf16"]
    assert predicted(rewritten) == 0.0 < predicted(half)
    broken = replace(rewritten, distance=float("inf"), flip_rate=1.0, flip_low=0.9)
    assert names(finalists([BASE, broken, half], "fp32", allowed=0.01)) == ["fp32", "bf16"]


def test_speed_can_be_another_measure_than_time() -> None:
    small, fast = deciding("small", 1.1, 0.001), deciding("fast", 2.0, 0.002)
    by_size = {"fp32": 1.0, "small": 4.0, "fast": 3.0}
    assert names(finalists([BASE, small, fast], "fp32", speed=lambda one: by_size[one.name])) == ["fp32", "small"]


def test_embeddings_are_predicted_to_lose_half_their_squared_error_of_the_cosine() -> None:
    assert predicted(candidate("int8", 2.0, 0.1)) == pytest.approx(0.005)
    assert names(finalists([BASE, candidate("int8", 2.0, 0.1), candidate("int4", 3.0, 0.5)], "fp32", allowed=0.01)) == ["fp32", "int8"]


def test_the_front_for_the_report_goes_from_the_fastest_to_the_safest_over_all_that_was_timed() -> None:
    slower, untimed = deciding("slower", 0.9, 0.5), replace(deciding("untimed", 9.0, 0.0), timing=None)
    broken = candidate("broken", 9.0, float("inf"))
    found = front([BASE, deciding("int8", 2.0, 0.01), deciding("bf16", 1.5, 0.001), slower, untimed, broken])
    assert [(point.name, point.loss, point.decides) for point in found] == [
        ("int8", 0.01, True),
        ("bf16", 0.001, True),
        ("fp32", 0.0, False),
    ]
    assert [point.speedup for point in found] == [2.0, 1.5, 1.0]
    assert front([untimed]) == ()


def test_a_candidate_whose_outputs_are_not_finite_comes_last() -> None:
    assert names(finalists([BASE, candidate("broken", 9.0, float("inf")), candidate("safe", 2.0, 0.1)], "fp32")) == [
        "fp32",
        "safe",
        "broken",
    ]


def test_what_is_hopeless_is_not_asked_where_nothing_can_be_timed() -> None:
    half = counted("fp16", 50, 5000)
    low = replace(counted("int8", 50, 4000, int8=True), flip_rate=0.2, flip_low=0.15)
    assert names(leaner([half, low], "fp32", allowed=0.01)) == ["fp16"]
    assert names(leaner([low], "fp32", allowed=0.01)) == ["int8"]


def test_int8_is_leaner_only_with_no_more_launches_and_fewer_bytes() -> None:
    half = counted("fp16", 50, 5000)
    assert names(leaner([half, counted("int8", 50, 4000, int8=True)], "fp32")) == ["fp16", "int8"]
    assert names(leaner([half, counted("int8", 51, 4000, int8=True)], "fp32")) == ["fp16"]
    assert names(leaner([half, counted("int8", 50, 5000, int8=True)], "fp32")) == ["fp16"]


def test_the_unquantized_plan_precedes_half_precision_and_int8_asked_by_name_needs_no_float_plan() -> None:
    full, half, low = counted("fp32", 60, 9000, "fp32"), counted("fp16", 50, 5000), counted("int8", 99, 9999, int8=True)
    assert names(leaner([half, full], "fp32")) == ["fp32", "fp16"]
    assert names(leaner([low], "fp32")) == ["int8"]


def test_where_no_launches_are_known_float_ships() -> None:
    half = Candidate("fp16", Plan("any", "h100", "fp16"))
    low = Candidate("int8", Plan("any", "h100", "fp16", precisions={"a": "int8"}))
    assert names(leaner([half, low], "fp16")) == ["fp16"]
