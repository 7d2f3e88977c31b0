"""Screening: how far outputs go from the parent's, and which layers are to blame."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from optimizer.engine import Candidate
from optimizer.parity.outputs import Reading
from optimizer.plan import Plan
from optimizer.planner.distance import distance, screened
from optimizer.planner.sensitivity import sensitivities

FEEDS = [{"x": np.full((1, 1), float(index), np.float32)} for index in range(4)]
PARENT = [{"scores": np.array([[1.0, 2.0, 3.0]], np.float32)} for _ in FEEDS]


def test_the_distance_is_the_relative_error_over_all_samples() -> None:
    found = distance(PARENT, lambda _feed: {"scores": np.array([[1.0, 2.0, 3.3]], np.float32)}, FEEDS)
    assert found.error == pytest.approx(0.3 / math.sqrt(14), rel=1e-6)
    assert found.flips is None
    assert found.agreement is None


def test_a_candidate_holds_what_its_screening_found_of_distance_and_decisions() -> None:
    def run(feed: dict) -> dict:
        return {"scores": np.array([[9.0, 2.0, 3.0]] if feed["x"][0, 0] < 1 else [[1.0, 2.0, 3.0]], np.float32)}

    found = distance(PARENT, run, FEEDS, Reading("scores", 0))
    assert found.agreement == 0.75
    candidate = screened(Candidate("int8", Plan("any", "cpu", "fp32")), found)
    assert (candidate.distance, candidate.agreement) == (found.error, 0.75)
    assert found.flips is not None
    assert (candidate.flip_rate, candidate.flip_low, candidate.flip_high) == (found.flips.rate, found.flips.low, found.flips.high)
    assert screened(candidate, distance(PARENT, run, FEEDS)).distance == found.error


def test_each_row_of_a_batch_is_a_sample() -> None:
    feeds = [{"x": np.zeros((8, 1), np.float32)}]
    parent = [{"scores": np.eye(8, dtype=np.float32)}]
    half = np.vstack([np.eye(8, dtype=np.float32)[:4], np.eye(8, dtype=np.float32)[:4]])
    found = distance(parent, lambda _feed: {"scores": half}, feeds, Reading("scores", 0))
    assert found.flips is not None
    assert (found.flips.samples, found.flips.observed) == (8, 0.5)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_an_output_that_is_not_finite_is_infinitely_far(value: float) -> None:
    assert distance(PARENT, lambda _feed: {"scores": np.array([[1.0, value, 3.0]], np.float32)}, FEEDS).error == math.inf


def test_an_output_of_another_size_is_infinitely_far_and_one_that_is_empty_decides_nothing() -> None:
    parent = [{"boxes": np.ones((1, 3, 4), np.float32)}, {"boxes": np.empty((1, 0, 4), np.float32)}]
    reading = Reading("boxes", 1)
    assert distance(parent, lambda _feed: {"boxes": np.ones((1, 2, 4), np.float32)}, FEEDS[:2], reading).error == math.inf
    same = distance(parent[1:], lambda _feed: parent[1], FEEDS[:1], reading)
    assert (same.error, same.flips) == (0.0, None)


def test_an_output_that_should_be_zero_and_is_not_is_infinitely_far() -> None:
    zeros = [{"y": np.zeros((1, 1), np.float32)}]
    assert distance(zeros, lambda _feed: {"y": np.ones((1, 1), np.float32)}, FEEDS[:1]).error == math.inf
    assert distance(zeros, lambda _feed: zeros[0], FEEDS[:1]).error == 0.0


def test_integer_outputs_are_not_compared() -> None:
    parent = [{"index": np.array([3])}]
    assert distance(parent, lambda _feed: {"index": np.array([4])}, FEEDS[:1]).error == 0.0


class Measured:
    """Errors add up like independent noise; counts how often it was asked."""

    def __init__(self, errors: dict[str, float]) -> None:
        self.errors, self.asked = errors, 0

    def __call__(self, layers: Sequence[str]) -> float:
        self.asked += 1
        return math.sqrt(sum(self.errors[layer] ** 2 for layer in layers))


def test_few_layers_are_measured_one_by_one() -> None:
    errors = {f"l{index}": 0.01 * index for index in range(20)}
    measure = Measured(errors)
    found = sensitivities(list(errors), measure)
    assert measure.asked == 20
    assert found == pytest.approx(errors)


def test_of_many_layers_the_broken_one_is_found_with_few_measurements() -> None:
    errors = {f"l{index}": 0.001 for index in range(300)} | {"l137": 2.0}
    measure = Measured(errors)
    found = sensitivities(list(errors), measure)
    assert max(found, key=lambda layer: found[layer]) == "l137"
    assert measure.asked < 80
