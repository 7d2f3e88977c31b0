"""How often the gate is wrong, at the budget's edge, where it is wrong most: 5 % and no more, within simulation error."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from optimizer.engine import Parity
from optimizer.parity.gate import gate
from optimizer.parity.power import needed_from_flips
from optimizer.parity.statistics import Bounds, Contrast, clopper_pearson, difference, pseudo_values, ratio

SIZES = (20, 50, 100, 300, 500, 2_000, 10_000)
DRAWS = 2_000
CELLS = 60
LIMIT = 0.05 + stats.norm.ppf(1 - 0.001 / CELLS) * np.sqrt(0.05 * 0.95 / DRAWS)
"""5 % and the simulation's own error, such that all cells of one test together cross it once in a thousand runs."""


def wrong(counts: NDArray[np.int64], bounds: Callable[..., Bounds], budget: float) -> float:
    """The larger share of false PASS and false FAIL at the budget's edge; equal rows are computed once."""
    rows, times = np.unique(counts, axis=0, return_counts=True)
    made = [bounds(*map(int, row)) for row in rows]
    passed = sum(n for one, n in zip(made, times, strict=True) if one.high < budget)
    failed = sum(n for one, n in zip(made, times, strict=True) if one.low > budget)
    return float(max(passed, failed) / len(counts))


def share(counts: NDArray[np.int64], bounds: Callable[..., Bounds], holds: Callable[[Bounds], bool]) -> float:
    """Share of rows for which the bounds hold; equal rows are computed once."""
    rows, times = np.unique(counts, axis=0, return_counts=True)
    return float(sum(n for row, n in zip(rows, times, strict=True) if holds(bounds(*map(int, row)))) / len(counts))


@pytest.mark.parametrize("samples", SIZES)
@pytest.mark.parametrize("won", [0.0, 0.005, 0.05, 0.3])
def test_a_drop_of_just_the_budget_in_points_passes_and_fails_in_at_most_five_percent(samples: int, won: float) -> None:
    draw = np.random.default_rng(samples)
    for budget in (0.005, 0.01, 0.05, 0.2):
        cells = draw.multinomial(samples, [won + budget, won, 1 - 2 * won - budget], size=DRAWS)
        counts = np.column_stack([cells[:, :2], np.full(DRAWS, samples)])
        assert wrong(counts, difference, budget) <= LIMIT


@pytest.mark.parametrize("samples", SIZES)
@pytest.mark.parametrize("parent", [0.4, 0.82, 0.99])
def test_a_drop_of_just_the_relative_budget_passes_and_fails_in_at_most_five_percent(samples: int, parent: float) -> None:
    draw = np.random.default_rng(samples)
    for budget in (0.01, 0.1):
        for won in (0.0, 0.3 * (1 - parent)):
            lost = budget * parent + won
            if lost > parent:
                continue
            cells = draw.multinomial(samples, [lost, won, parent - lost, 1 - parent - won], size=DRAWS)
            counts = np.column_stack([cells[:, 0], cells[:, 1], cells[:, 0] + cells[:, 2], np.full(DRAWS, samples)])
            counts = counts[counts[:, 2] > 0]
            assert wrong(counts, ratio, budget) <= LIMIT


@pytest.mark.parametrize("samples", SIZES)
def test_disagreement_of_just_the_budget_passes_in_at_most_five_percent(samples: int) -> None:
    for budget in (0.005, 0.01, 0.1):
        passing = sum(
            stats.binom.pmf(k, samples, budget) for k in range(int(samples * budget) + 1) if clopper_pearson(k, samples).high < budget
        )
        assert passing <= 0.05 + 1e-12


def _losses(draw: np.random.Generator, kind: str, budget: float, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Losses of bounded scores with mean `budget`: rare disasters, with and without noise, and mild skew."""
    if kind == "disasters":
        return np.where(draw.random(shape) < budget, 1.0, 0.0)
    if kind == "half disasters in noise":
        return np.where(draw.random(shape) < 2 * budget, 0.5, 0.0) + draw.uniform(-0.05, 0.05, shape)
    return budget + draw.uniform(-0.5, 0.5, shape) if kind == "noise" else draw.beta(0.1, 0.1 / budget - 0.1, shape)


@pytest.mark.parametrize("kind", ["disasters", "half disasters in noise", "noise", "skew"])
@pytest.mark.parametrize("samples", [50, 300, 500, 2_000])
def test_bounded_scores_that_lose_just_the_budget_pass_in_at_most_five_percent(samples: int, kind: str) -> None:
    draw, passed, budget = np.random.default_rng(samples), 0, 0.01 if samples >= 300 else 0.1
    for loss in _losses(draw, kind, budget, (1_500, samples)):
        passed += Contrast(np.ones(samples), 1.0 - loss, True, 1.0, samples).difference().high < budget
    assert passed / 1_500 <= 0.05 + 3.5 * np.sqrt(0.05 * 0.95 / 1_500)


@pytest.mark.parametrize("samples", [300, 2_000])
@pytest.mark.parametrize("won", [0.0, 0.05])
def test_one_number_over_all_that_loses_just_the_budget_passes_in_at_most_five_percent(samples: int, won: float) -> None:
    draw, passed, budget = np.random.default_rng(samples), 0, 0.02
    for _ in range(800):
        u = draw.random(samples)
        loss = np.where(u < won + budget, 1.0, np.where(u > 1 - won, -1.0, 0.0))
        parent = pseudo_values(lambda _: 1.0, samples)
        engine = pseudo_values(lambda stay, loss=loss: 1.0 - float(loss[stay].mean()), samples)
        passed += Contrast(parent, engine, True, 1.0, samples).difference().high < budget
    assert passed / 800 <= 0.05 + 3.5 * np.sqrt(0.05 * 0.95 / 800)


def _shipped_too_bad(rates: list[float], budget: float, samples: int, draws: int) -> float:
    """How often `gate` ships a candidate whose rate of lost answers is at or over the budget."""
    draw = np.random.default_rng(len(rates))
    tries = 0
    for _ in range(draws):
        lost = [int(draw.binomial(samples, rate)) for rate in rates]
        made = gate([(str(i), lambda k=k: _parity(k, samples, budget)) for i, k in enumerate(lost)])
        tries += made.shipped is not None and rates[int(made.shipped)] >= budget
    return tries / draws


def _parity(lost: int, samples: int, budget: float) -> Parity:
    bounds = difference(lost, 0, samples)
    verdict = "pass" if bounds.high < budget else "fail" if bounds.low > budget else "inconclusive"
    return Parity(verdict, "top1", 1.0, 1.0, budget, 0.0, bounds.low, bounds.high, samples, None, "here", "")


@pytest.mark.parametrize("samples", [300, 500, 2_000, 10_000])
@pytest.mark.parametrize("good", [0, 2, 4])
def test_five_candidates_ship_a_bad_one_no_oftener_than_one(samples: int, good: int) -> None:
    five = [0.002] * good + [0.01] * (5 - good)
    limit = 0.05 + 3.5 * np.sqrt(0.05 * 0.95 / 3_000)
    assert _shipped_too_bad(five, 0.01, samples, 3_000) <= limit
    assert _shipped_too_bad([0.01], 0.01, samples, 3_000) <= limit


def test_the_sequence_ends_at_the_first_that_does_not_pass_and_the_last_that_passed_ships() -> None:
    asked: list[str] = []

    def judged(name: str, lost: int) -> tuple[str, Callable[[], Parity]]:
        return name, lambda: (asked.append(name), _parity(lost, 2_000, 0.01))[1]

    made = gate([judged("a", 0), judged("b", 5), judged("c", 40), judged("d", 0)])
    assert made.shipped == "b"
    assert asked == ["a", "b", "c"]
    assert [parity and parity.verdict for _, parity in made.tries] == ["pass", "pass", "fail", None]
    assert gate([judged("c", 40), judged("a", 0)]).shipped is None


def test_four_of_five_evaluations_pass_at_the_samples_that_are_said_to_be_needed() -> None:
    draw = np.random.default_rng(0)
    for lost, won, samples, budget in ((30, 20, 5_000, 0.01), (100, 80, 5_000, 0.01), (5, 5, 1_000, 0.02)):
        needed = needed_from_flips(lost, won, samples, budget)
        assert needed is not None
        assert needed.low <= needed.median <= (needed.high or np.inf)
        n = needed.median
        cells = draw.multinomial(n, [lost / samples, won / samples, 1 - (lost + won) / samples], size=2_000)
        power = share(np.column_stack([cells[:, :2], np.full(2_000, n)]), difference, lambda b, budget=budget: b.high < budget)
        assert 0.74 <= power <= 0.9


def test_no_number_of_samples_is_named_where_the_drop_is_over_the_budget() -> None:
    assert needed_from_flips(20, 0, 1_000, 0.02) is None
    assert needed_from_flips(19, 0, 1_000, 0.02) is not None
