from __future__ import annotations

import pytest

from optimizer.errors import InputError
from optimizer.parity.budget import Budget, absolute, budget_from_words, threshold
from optimizer.parity.metrics import METRICS


def test_percent_is_of_the_parents_metric_and_pp_are_points() -> None:
    assert budget_from_words("1%") == Budget(0.01, relative=True)
    assert budget_from_words(" 0.5 PP ") == Budget(0.005, relative=False)
    assert (str(budget_from_words("1%")), str(budget_from_words("0.5pp"))) == ("1%", "0.5pp")
    top1, mae = METRICS["top1"], METRICS["mae"]
    assert threshold(Budget(0.01, True), 0.8195, top1) == pytest.approx(0.8195 * 0.99)
    assert threshold(Budget(0.01, False), 0.8195, top1) == pytest.approx(0.8095)
    assert threshold(Budget(0.01, True), 2.0, mae) == pytest.approx(2.02)


@pytest.mark.parametrize(("words", "readings"), [("1", ("1%", "1pp")), ("0.01", ("1%", "1pp")), ("0.5", ("0.5%", "0.5pp"))])
def test_a_bare_number_is_refused_with_both_readings(words: str, readings: tuple[str, str]) -> None:
    with pytest.raises(InputError) as error:
        budget_from_words(words)
    assert all(reading in error.value.remedy for reading in readings)


@pytest.mark.parametrize("words", ["0%", "-1%", "100%", "nan%", "a%", "", "%", "1 percent"])
def test_what_is_no_budget_is_refused(words: str) -> None:
    with pytest.raises(InputError):
        budget_from_words(words)


@pytest.mark.parametrize("parent", [0.0, -0.2, float("nan")])
def test_a_relative_budget_of_nothing_is_refused_and_one_in_points_is_not(parent: float) -> None:
    with pytest.raises(InputError, match="in points"):
        absolute(Budget(0.01, True), parent, METRICS["top1"])
    assert absolute(Budget(0.01, False), parent, METRICS["top1"]) == 0.01
