from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import integers
from scipy import optimize, stats

from optimizer.parity import statistics
from optimizer.parity.statistics import Contrast, clopper_pearson, difference, fewest_samples, mean, pseudo_values, ratio


@pytest.mark.parametrize(("count", "samples"), [(0, 299), (3, 500), (1, 1), (10, 10), (7_000, 10_000)])
def test_clopper_pearson_is_scipys_exact_interval(count: int, samples: int) -> None:
    exact = stats.binomtest(count, samples).proportion_ci(0.90, "exact")
    bounds = clopper_pearson(count, samples)
    assert (bounds.low, bounds.high) == pytest.approx((exact.low, exact.high), rel=1e-9)


def test_nothing_passes_one_percent_below_299_samples() -> None:
    assert fewest_samples(0.01) == 299
    assert difference(0, 0, 299).high < 0.01 <= difference(0, 0, 298).high
    assert ratio(0, 0, 299, 400).high < 0.01 <= ratio(0, 0, 298, 400).high
    assert min(difference(0, won, 298).high for won in range(298)) >= 0.01


@given(integers(0, 40), integers(0, 40), integers(0, 200), integers(1, 400))
@settings(max_examples=300, deadline=None)
def test_the_observed_drop_lies_between_its_bounds(lost: int, won: int, both: int, neither: int) -> None:
    samples = lost + won + both + neither
    bounds = difference(lost, won, samples)
    assert -1.0 <= bounds.low <= (lost - won) / samples <= bounds.high <= 1.0
    if lost + both:
        bounds = ratio(lost, won, lost + both, samples)
        assert bounds.low <= (lost - won) / (lost + both) <= bounds.high <= 1.0


def _likelihood_score(lost: int, won: int, right: int, samples: int, r: float) -> float:
    """The score statistic with the estimate under the hypothesis found numerically instead of in closed form."""
    counts = np.array([right - lost, lost, won, samples - right - won])
    values = np.array([-r, 1 - r, -1.0, 0.0])
    constraints = [{"type": "eq", "fun": lambda p: p.sum() - 1}, {"type": "eq", "fun": lambda p: p @ values}]
    start = np.clip(counts / samples, 0.02, 1)
    found = optimize.minimize(
        lambda p: -counts @ np.log(p), start / start.sum(), bounds=[(1e-9, 1)] * 4, constraints=constraints, options={"ftol": 1e-14}
    )
    return float(counts @ values / np.sqrt(samples * (found.x @ values**2)))


@pytest.mark.parametrize("r", [-0.1, 0.01, 0.05, 0.3])
@pytest.mark.parametrize("counts", [(12, 8, 160, 200), (30, 4, 150, 200), (3, 20, 100, 200)])
def test_the_closed_form_of_the_relative_score_is_the_constrained_maximum_likelihood(counts: tuple[int, int, int, int], r: float) -> None:
    assert statistics._ratio_score(*counts, r, 0.0) == pytest.approx(_likelihood_score(*counts, r), rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("drop", [-0.05, 0.01, 0.1, 0.3])
@pytest.mark.parametrize("counts", [(12, 8, 200), (30, 4, 200), (0, 5, 100), (7, 0, 100)])
def test_tangos_closed_form_is_the_constrained_maximum_likelihood(counts: tuple[int, int, int], drop: float) -> None:
    lost, won, samples = counts
    rest = samples - lost - won

    def unlikely(q: float) -> float:
        return -(lost * np.log(q + drop) + won * np.log(q) + rest * np.log(1 - 2 * q - drop))

    least = max(0.0, -drop) + 1e-12
    q = optimize.minimize_scalar(unlikely, bounds=(least, (1 - drop) / 2 - 1e-12), method="bounded", options={"xatol": 1e-12}).x
    score = (lost - won - samples * drop) / np.sqrt(samples * (2 * q + drop - drop**2))
    assert statistics._tango(*counts, drop, 0.0) == pytest.approx(score, rel=1e-4)


def test_a_parent_that_is_always_right_makes_relative_and_points_nearly_the_same() -> None:
    assert ratio(6, 0, 1_000, 1_000).high == pytest.approx(difference(6, 0, 1_000).high, rel=1e-6)


def test_the_relative_bound_of_means_solves_fiellers_equation() -> None:
    draw = np.random.default_rng(0)
    parent = draw.random(400) + 0.2
    contrast = Contrast(parent, parent - draw.normal(0.004, 0.05, 400), True, 1.0, 400)
    bounds = contrast.ratio()
    assert mean(contrast.loss - bounds.high * parent, 1.0, 400).high == pytest.approx(0.0, abs=1e-12)
    assert mean(contrast.loss - bounds.low * parent, 1.0, 400).low == pytest.approx(0.0, abs=1e-12)


def test_a_bound_of_a_mean_is_students_with_as_if_more_were_lost() -> None:
    values = np.random.default_rng(0).normal(size=50)
    plain = stats.t.interval(0.90, 49, values.mean(), values.std(ddof=1) / np.sqrt(50))
    bounds = mean(values, 0.0, 50)
    assert (bounds.low, bounds.high) == pytest.approx(plain, rel=1e-9)
    assert mean(np.zeros(50), 1.0, 50).high >= clopper_pearson(0, 50).high


def test_a_mean_of_one_value_or_of_broken_values_has_no_bounds() -> None:
    for values in (np.ones(1), np.array([1.0, np.nan])):
        assert (mean(values, 1.0, 1).low, mean(values, 1.0, 1).high) == (-np.inf, np.inf)


def test_the_jackknifes_spread_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(3, 1, 3_000)
    pseudo = pseudo_values(lambda stay: float(values[stay].mean()), 3_000)
    assert len(pseudo) == 30
    assert pseudo.mean() == pytest.approx(values.mean(), abs=1e-12)
    assert pseudo.std(ddof=1) / np.sqrt(30) == pytest.approx(1 / np.sqrt(3_000), rel=0.4)
