from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from optimizer.parity.quantiles import beta_quantile, incomplete_beta, root, student_quantile


@pytest.mark.parametrize("a", [0.5, 1.0, 3.0, 250.0, 9_000.0])
@pytest.mark.parametrize("b", [0.5, 1.0, 20.0, 10_000.0])
def test_the_incomplete_beta_function_is_scipys(a: float, b: float) -> None:
    for x in (1e-6, 0.01, a / (a + b), 0.5, 0.999):
        assert incomplete_beta(a, b, x) == pytest.approx(special.betainc(a, b, x), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("a", "b"), [(1, 299), (4, 497), (7_001, 3_000), (0.5, 0.5)])
def test_beta_quantiles_are_scipys(a: float, b: float) -> None:
    for probability in (0.05, 0.5, 0.95):
        assert beta_quantile(probability, a, b) == pytest.approx(stats.beta.ppf(probability, a, b), rel=1e-9)


@pytest.mark.parametrize("freedom", [1, 2, 29, 499, 9_999])
def test_students_quantiles_are_scipys(freedom: int) -> None:
    assert student_quantile(0.95, freedom) == pytest.approx(stats.t.ppf(0.95, freedom), rel=1e-9)


def test_a_root_is_found_to_the_last_bit_whichever_way_the_function_goes() -> None:
    assert root(lambda x: x * x - 2, 0.0, 2.0) == pytest.approx(np.sqrt(2), rel=1e-15)
    assert root(lambda x: 2 - x * x, 0.0, 2.0) == pytest.approx(np.sqrt(2), rel=1e-15)
