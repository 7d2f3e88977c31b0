from __future__ import annotations

import gc
import math
from collections.abc import Callable

import numpy as np
import pytest

from kernels.rank import averages_outside, centre
from kernels.timing import LEAST, LOOKS, QUICK_LOOKS, Gain, Timing, glance, quick, race


class Clock:
    """Time that passes only where a contender lets it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def contender(
    clock: Clock, seconds: float, seed: int, *, noise: float = 0.02, outliers: float = 0.05, drift: float = 0.0
) -> Callable[[], None]:
    """Takes `seconds`, with noise, runs that take four times as long, and a machine that slows down by `drift` a second."""
    rng = np.random.default_rng(seed)

    def run() -> None:
        hit = 4.0 if rng.random() < outliers else 1.0
        clock.now += seconds * hit * (1 + drift * clock.now) * math.exp(noise * rng.standard_normal())

    return run


def raced(seed: int, seconds: dict[str, float], budget: float = 20.0, **noise: float) -> dict[str, Timing]:
    """A race on a clock of its own; the first contender is the baseline."""
    clock = Clock()
    runs = {name: contender(clock, time, 1000 * seed + number, **noise) for number, (name, time) in enumerate(seconds.items())}
    baseline = next(iter(seconds))
    return race(runs, baseline, seconds=budget, timed_on="a fake clock", clock=clock, sweep=lambda: None, seed=seed)


def test_the_faster_one_wins_through_outliers_and_drift() -> None:
    for seed in range(20):
        timings = raced(seed, {"fp32": 0.0100, "int8": 0.0070, "dynamic": 0.0075}, drift=0.05, noise=0.05, outliers=0.1)
        assert max(timings, key=lambda name: timings[name].ratio) == "int8"
        assert timings["int8"].low > 1.2


def test_the_interval_covers_the_true_ratio_in_95_of_100_races_whenever_they_stop() -> None:
    races = 200
    for other in (0.0100, 0.0097, 0.0080):
        timings = [raced(seed, {"fp32": 0.0100, "other": other}, budget=4.0, noise=0.04)["other"] for seed in range(races)]
        missed = sum(not timing.low <= 0.0100 / other <= timing.high for timing in timings)
        assert missed <= 0.05 * races + 2 * math.sqrt(0.05 * 0.95 * races)


def test_identical_contenders_end_as_a_difference_under_one_percent() -> None:
    ends = [raced(seed, {"fp32": 0.01, "twin": 0.01}, budget=60.0, noise=0.01) for seed in range(10)]
    tied = [timings for timings in ends if timings["twin"].stopped.startswith("difference under 1 %")]
    assert len(tied) >= 9
    assert all(0.99 < timings["twin"].low <= timings["twin"].high < 1.0101 for timings in tied)


def test_a_contender_that_is_certainly_slower_is_not_run_to_the_end() -> None:
    timings = raced(3, {"fp32": 0.0100, "int8": 0.0099, "slow": 0.0200}, budget=30.0)
    assert timings["slow"].stopped == f"slower than int8, certain after {LOOKS[0]} rounds"
    assert timings["slow"].runs < timings["int8"].runs
    assert timings["slow"].high < 0.55


def test_a_clear_race_ends_at_the_first_look_and_says_so() -> None:
    timings = raced(0, {"fp32": 0.02, "int8": 0.01}, budget=1000.0, noise=0.005)
    assert timings["fp32"].stopped == timings["int8"].stopped == f"ranking certain after {LOOKS[0]} rounds"


def test_a_race_that_is_decided_goes_on_until_the_gain_is_known_to_five_percent() -> None:
    timings = raced(0, {"fp32": 0.02, "int8": 0.01}, budget=1000.0, noise=0.1)
    assert timings["int8"].stopped.startswith("ranking certain after")
    assert timings["int8"].runs > 2 * LOOKS[0]
    assert timings["int8"].high / timings["int8"].low <= 1.05**2


def test_a_decided_race_that_the_budget_ends_says_both() -> None:
    timings = raced(0, {"fp32": 0.02, "int8": 0.01}, budget=1.0, noise=0.1)
    assert timings["int8"].stopped.startswith("ranking certain, time budget of 1 s spent after")


def test_a_spent_budget_ends_the_race_but_never_before_an_interval_can_be_given() -> None:
    timings = raced(0, {"fp32": 0.010, "int8": 0.009}, budget=0.001)
    assert timings["int8"].stopped == f"time budget of 0.001 s spent after {LEAST} rounds"
    assert 0 < timings["int8"].low < timings["int8"].high < math.inf


def test_what_noise_hides_to_the_end_is_called_unsure() -> None:
    timings = raced(0, {"fp32": 0.010, "int8": 0.010}, budget=1e6, noise=0.5)
    assert timings["int8"].stopped == f"ranking not certain after {LOOKS[-1]} rounds"
    assert timings["int8"].low < 1 < timings["int8"].high


def test_the_baseline_is_compared_with_itself() -> None:
    timings = raced(0, {"fp32": 0.02, "int8": 0.01})
    assert (timings["fp32"].ratio, timings["fp32"].low, timings["fp32"].high) == (1.0, 1.0, 1.0)
    assert {timing.versus for timing in timings.values()} == {"fp32"}
    assert {timing.timed_on for timing in timings.values()} == {"a fake clock"}


def test_a_fast_contender_is_run_in_blocks_and_a_slow_one_run_by_run() -> None:
    timings = raced(0, {"fp32": 0.0001, "slow": 0.1})
    assert timings["fp32"].runs > 10 * timings["slow"].runs


def test_quantiles_are_of_single_runs() -> None:
    timings = raced(0, {"fp32": 0.0001, "int8": 0.00005}, noise=0.0, outliers=0.05)
    assert timings["fp32"].milliseconds == pytest.approx(0.1)
    assert timings["fp32"].p90 == pytest.approx(0.1)
    assert timings["fp32"].p99 == pytest.approx(0.4)


def test_everyone_has_the_swept_cache_as_predecessor_and_the_cold_run_is_told_apart() -> None:
    clock, cold = Clock(), [True]

    def sweep() -> None:
        cold[0] = True
        clock.now += 0.5

    def run(seconds: float) -> Callable[[], None]:
        def once() -> None:
            clock.now += seconds * (3.0 if cold[0] else 1.0)
            cold[0] = False

        return once

    timings = race({"one": run(0.01), "two": run(0.01)}, "one", seconds=100, timed_on="", clock=clock, sweep=sweep)
    for timing in timings.values():
        assert timing.milliseconds == pytest.approx(10)
        assert timing.cold_milliseconds == pytest.approx(30)
        assert timing.p99 == pytest.approx(10)
    assert timings["two"].stopped.startswith("difference under 1 %")


def test_no_collection_happens_while_a_contender_runs_and_it_is_let_in_again_after_an_error() -> None:
    states: list[bool] = []

    def fails_late() -> None:
        states.append(gc.isenabled())
        if len(states) > 20:
            raise RuntimeError("broken engine")

    with pytest.raises(RuntimeError, match="broken engine"):
        race({"only": fails_late}, "only", seconds=1000, timed_on="", clock=Clock(), sweep=lambda: None)
    assert states[-1] is False
    assert gc.isenabled()


def test_the_same_seed_gives_the_same_race() -> None:
    seconds = {"fp32": 0.010, "int8": 0.0095, "dynamic": 0.0096}
    assert raced(5, seconds) == raced(5, seconds)


def test_an_unknown_baseline_is_refused() -> None:
    with pytest.raises(ValueError, match="'int4'"):
        race({"fp32": lambda: None}, "int4", seconds=1, timed_on="")


def test_a_race_on_the_real_clock_returns_every_contender() -> None:
    timings = race({"one": lambda: sum(range(1000)), "two": lambda: sum(range(4000))}, "one", seconds=0.05, timed_on="here")
    assert set(timings) == {"one", "two"}
    assert all(timing.milliseconds > 0 and timing.runs >= 2 * LEAST for timing in timings.values())


@pytest.mark.parametrize(
    ("count", "error", "left_out"), [(5, 0.05, 0), (6, 0.05, 1), (7, 0.05, 3), (8, 0.05, 4), (10, 0.05, 9), (20, 0.05, 53)]
)
def test_the_interval_leaves_out_as_much_as_the_published_signed_rank_tables_allow(count: int, error: float, left_out: int) -> None:
    assert averages_outside(count, error) == left_out


def test_exact_and_asymptotic_interval_agree_where_they_meet() -> None:
    assert abs(averages_outside(60, 0.05) - averages_outside(61, 0.05)) <= 25
    assert averages_outside(61, 0.05) == 673


def test_too_few_values_for_the_level_give_an_open_interval() -> None:
    found = centre(np.array([0.1, 0.2, 0.3]), 0.05)
    assert (found.value, found.low, found.high) == (pytest.approx(0.2), -math.inf, math.inf)


def test_one_outlier_does_not_move_the_centre() -> None:
    values = np.array([1.0, 1.1, 0.9, 1.05, 0.95, 1.02, 0.98, 1e6])
    assert centre(values, 0.05).value == pytest.approx(1.0, abs=0.05)


def test_a_contender_is_made_ready_before_each_of_its_visits() -> None:
    open_now: list[str] = []

    def ready(name: str) -> None:
        open_now[:] = [name]

    def run(name: str) -> Callable[[], None]:
        def once() -> None:
            assert open_now == [name]
            clock.now += 0.01

        return once

    clock = Clock()
    timings = race({"a": run("a"), "b": run("b")}, "a", seconds=1, timed_on="", clock=clock, sweep=lambda: None, ready=ready)
    assert set(timings) == {"a", "b"}


def test_a_run_that_does_many_things_is_timed_by_the_thing() -> None:
    clock = Clock()
    runs = {"one by one": contender(clock, 0.010, 0, outliers=0), "in tens": contender(clock, 0.050, 1, outliers=0)}
    timings = race(runs, "one by one", seconds=20, timed_on="", clock=clock, sweep=lambda: None, work={"in tens": 10})
    assert timings["in tens"].milliseconds == pytest.approx(5, rel=0.05)
    assert timings["in tens"].ratio == pytest.approx(2, rel=0.05)


def asked(seed: int, old: float, new: float, budget: float = 20.0, **noise: float) -> Gain:
    clock = Clock()
    first, second = contender(clock, old, 2 * seed, **noise), contender(clock, new, 2 * seed + 1, **noise)
    return quick(first, second, seconds=budget, clock=clock, seed=seed)


def test_a_clear_gain_and_a_clear_loss_are_seen_at_the_first_look() -> None:
    for seed in range(20):
        gain, loss = asked(seed, 0.0010, 0.0008, drift=0.05), asked(seed, 0.0010, 0.0012, drift=0.05)
        assert (gain.faster, gain.rounds) == (True, QUICK_LOOKS[0])
        assert (loss.faster, loss.rounds) == (False, QUICK_LOOKS[0])
        assert gain.low <= 1.25 <= gain.high


def test_of_twins_the_new_one_is_seldom_called_faster() -> None:
    found = [asked(seed, 0.010, 0.0100 / 1.01, noise=0.03).faster for seed in range(150)]
    assert found.count(True) <= 0.05 * 150 + 2 * math.sqrt(0.05 * 0.95 * 150)


def test_a_gain_under_one_percent_is_none() -> None:
    assert [asked(seed, 0.0100, 0.00998, noise=0.01).faster for seed in range(10)] == [False] * 10


def test_what_noise_hides_stays_open_until_the_time_or_the_looks_end() -> None:
    late = asked(0, 0.010, 0.0099, budget=1e6, noise=0.5)
    assert (late.faster, late.rounds) == (None, QUICK_LOOKS[-1])
    soon = asked(0, 0.010, 0.0099, budget=0.01, noise=0.5)
    assert (soon.faster, soon.rounds) == (None, QUICK_LOOKS[0])
    assert 0 < soon.low < soon.high < math.inf


def glanced(seed: int, old: float, new: float, budget: float = 20.0, **noise: float) -> Timing:
    clock = Clock()
    first, second = contender(clock, old, 2 * seed, **noise), contender(clock, new, 2 * seed + 1, **noise)
    return glance(first, second, versus="old", seconds=budget, timed_on="a fake clock", clock=clock, seed=seed)


def test_a_glance_ends_once_the_ratio_is_known_also_where_a_race_would_go_on() -> None:
    for ratio in (1.0, 0.5, 2.0):
        for seed in range(20):
            found = glanced(seed, 0.001 * ratio, 0.001)
            assert found.ratio == pytest.approx(ratio, rel=0.05)
            assert found.high / found.low <= 1.05**2 + 1e-9
            assert (found.versus, found.cold_milliseconds) == ("old", None)
            assert int(found.stopped.removeprefix("ratio known to 5 % after ").split()[0]) in LOOKS[:3]


def test_a_glance_tells_the_time_of_the_new_one() -> None:
    assert glanced(0, 0.004, 0.002).milliseconds == pytest.approx(2, rel=0.05)


def test_the_time_of_a_glance_ends_it_but_never_before_an_interval_can_be_given() -> None:
    found = glanced(0, 0.010, 0.010, budget=0.01, noise=0.5)
    assert found.stopped == f"time budget of 0.01 s spent after {LEAST} rounds"
    assert 0 < found.low < found.high < math.inf


def test_the_interval_of_a_glance_covers_the_true_ratio_in_95_of_100() -> None:
    found = [glanced(seed, 0.00104, 0.001, noise=0.06) for seed in range(100)]
    assert sum(not one.low <= 1.04 <= one.high for one in found) <= 5 + 2 * math.sqrt(5)
