"""Finalists: the front of speed against distance, safest first; where nothing can be timed, leaner by static counts."""

from __future__ import annotations

from kernels.timing import Timing
from optimizer.engine import Built, Candidate, Launch
from optimizer.plan import Plan
from optimizer.planner.pareto import FINALISTS, finalists, leaner


def candidate(name: str, ratio: float = 1.0, distance: float = 0.0, low: float | None = None, int8: bool = True) -> Candidate:
    plan = Plan("any", "cpu", "fp32", {"a": "int8"} if int8 else {})
    timing = Timing(1 / ratio, 0, 0, "fp32", ratio, ratio - 0.01 if low is None else low, ratio + 0.01, 9, "", "here")
    return Candidate(name, plan, timing=timing, distance=distance)


def counted(name: str, launches: int, moved: int, base: str = "fp16", int8: bool = False, distance: float = 0.0) -> Candidate:
    plan = Plan("any", "l4", base, {"a": "int8"} if int8 else {})  # type: ignore[arg-type]
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


def test_at_most_five_are_asked_and_both_ends_of_the_front_stay() -> None:
    front = [candidate(f"p{index}", 1.5 + index / 10, 0.01 * (index + 1)) for index in range(9)]
    found = names(finalists([BASE, *front], "fp32"))
    assert len(found) == FINALISTS
    assert found[:2] == ["fp32", "p0"]
    assert found[-1] == "p8"


def test_a_candidate_whose_outputs_are_not_finite_comes_last() -> None:
    assert names(finalists([BASE, candidate("broken", 9.0, float("inf")), candidate("safe", 2.0, 0.1)], "fp32")) == [
        "fp32",
        "safe",
        "broken",
    ]


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
    low = Candidate("int8", Plan("any", "h100", "fp16", {"a": "int8"}))
    assert names(leaner([half, low], "fp16")) == ["fp16"]
