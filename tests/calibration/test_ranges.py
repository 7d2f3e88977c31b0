"""Each method's range costs at most 1 % more, by the method's own measure, than the best range found by brute force.

The references are written from the definitions, over all numbers sorted, and share no code with `calibration`: squared error
from prefix sums of the numbers themselves, divergence bin by bin from `numpy.histogram` of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.grid import INT8, UINT8, Grid
from calibration.observers import Statistics
from calibration.ranges import METHODS, Range, error, sqnr_db

Float = NDArray[np.float64]
Loss = Callable[[float, float], float]

COUNT = 200_000


def silu(x: Float) -> Float:
    return x / (1 + np.exp(-x))


def distribution(name: str) -> NDArray[np.float32]:
    """COUNT float32 numbers of a known distribution."""
    draw = np.random.default_rng(7)
    normal = draw.standard_normal(COUNT)
    if name == "bimodal with outliers":
        normal = np.concatenate([normal[: COUNT // 2] * 0.1 - 1, normal[COUNT // 2 : -20] * 0.3 + 3, draw.uniform(-20, 20, 20)])
    if name == "sparse with an outlier":
        normal = np.where(draw.random(COUNT) < 0.95, 0.0, normal / 2)
        normal[11] = 100.0
    numbers = {
        "laplace": draw.laplace(size=COUNT),
        "uniform": draw.uniform(-1, 2, COUNT),
        "relu of normal": np.maximum(normal, 0),
        "silu of normal": silu(2 * normal),
        "lognormal": np.exp(normal),
        "relu6 of normal": np.clip(4 * normal, 0, 6),
        "pixels": (draw.integers(0, 256, COUNT) / 255 - 0.456) / 0.224,
        "negative": -np.exp(normal / 2),
    }
    return numbers.get(name, normal).astype(np.float32)


DISTRIBUTIONS = [
    "normal",
    "laplace",
    "uniform",
    "relu of normal",
    "silu of normal",
    "lognormal",
    "bimodal with outliers",
    "sparse with an outlier",
    "relu6 of normal",
    "pixels",
    "negative",
]
both_grids = pytest.mark.parametrize("grid", [UINT8, INT8], ids=["uint8", "int8"])
all_distributions = pytest.mark.parametrize("name", DISTRIBUTIONS)


def levels(grid: Grid, low: float, high: float) -> Float:
    """Every number that a grid represents over [low, high], by the rule of QuantizeLinear."""
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        high = 255.0
    if grid.symmetric:
        return np.arange(-128, 128) * float(np.float32(max(-low, high) / 127))
    scale = float(np.float32((high - low) / 255))
    return (np.arange(256) - np.clip(np.rint(-low / scale), 0, 255)) * scale


def squared_error_of_all(numbers: NDArray[np.float32], grid: Grid) -> Loss:
    """Mean squared error of rounding each of the numbers to its nearest level, from prefix sums of the sorted numbers."""
    ordered = np.sort(numbers.astype(np.float64))
    sums, squares = (np.concatenate([[0.0], np.cumsum(ordered**power)]) for power in (1, 2))

    def loss(low: float, high: float) -> float:
        values = levels(grid, low, high)
        at = np.concatenate([[0], np.searchsorted(ordered, (values[1:] + values[:-1]) / 2), [len(ordered)]])
        parts = np.diff(squares[at]) - 2 * values * np.diff(sums[at]) + values**2 * np.diff(at)
        return float(parts.sum() / len(ordered))

    return loss


def divergence_of_all(numbers: NDArray[np.float32], grid: Grid) -> Loss:
    """KL(P || Q), P the histogram of all numbers but zeros over bins of 1/128 octave, at least 1/2048 to 1/4096 of the bulk."""
    ordered = np.sort(numbers[numbers != 0].astype(np.float64))
    finest = 2.0 ** np.floor(np.log2(np.quantile(np.abs(ordered), 0.999) / 2048))
    octaves = finest * 128 * 2.0 ** np.arange(40)
    positive = np.concatenate([finest * np.arange(128), *(np.linspace(o, 2 * o, 128, endpoint=False) for o in octaves)])
    bins = np.concatenate([-positive[:0:-1], positive])
    if (ordered < 0).any():  # a bin below zero holds its lower end, as one above zero does not hold its upper
        bins = np.where(bins < 0, np.nextafter(bins, 0), bins)
    counts = np.histogram(ordered, bins)[0].astype(np.float64)
    full = np.flatnonzero(counts)
    mass, start, end = counts[full], bins[full], bins[full + 1]
    width = end - start
    start, end = np.maximum(start, ordered[0]), np.minimum(end, ordered[-1])
    total = mass.sum()

    def loss(low: float, high: float) -> float:
        values = levels(grid, low, high)
        half = (values[1] - values[0]) / 2
        cuts = np.append(values - half, values[-1] + half)
        pieces = np.unique(np.concatenate([start, end, cuts]))
        middle = (pieces[1:] + pieces[:-1]) / 2
        source = np.clip(np.searchsorted(start, middle, side="right") - 1, 0, None)
        inside_bin = (middle > start[source]) & (middle < end[source])
        share = np.where(inside_bin, np.diff(pieces) / np.maximum(end - start, 1e-300)[source], 0.0)
        p, w = mass[source] * share, width[source] * share
        for at in np.flatnonzero(start == end):  # a bin that holds one number only
            p, w, middle = (
                np.append(p, mass[at]),
                np.append(w, width[at]),
                np.append(middle, np.clip(start[at], cuts[0] - half, cuts[-1] + half)),
            )
        level = np.searchsorted(cuts, middle, side="right") - 1
        inside = (level >= 0) & (level < 256) & (p > 0)
        q_level = np.bincount(level[inside], p[inside], 256)
        w_level = np.bincount(level[inside], w[inside], 256)
        below, above = p[level < 0].sum(), p[level > 255].sum()
        kept = q_level.sum()
        if kept < total / 2:
            return np.inf
        # The rounding of each level, then the clipping, with one number more in each of the outermost levels of P and of Q.
        p_in, w_in, l_in = p[inside], w[inside], level[inside]
        found = float((p_in * np.log(p_in / w_in / (q_level / np.where(w_level > 0, w_level, 1.0))[l_in])).sum())
        for outside, place in ((below, 0), (above, 255)):
            found += (q_level[place] + outside + 1) * np.log((q_level[place] + outside + 1) / (q_level[place] + 1))
        return float(found / (total + 2) + np.log((kept + 2) / (total + 2)))

    return loss


def brute_force(loss: Loss, numbers: NDArray[np.float32], grid: Grid) -> float:
    """The least loss of any interval: a dense look at all ends, then denser ones around the best."""
    below, above = max(-float(numbers.min()), 0.0), max(float(numbers.max()), 0.0)
    if grid.symmetric:
        below = above = max(below, above)
        pairs = [(end, end) for end in np.geomspace(above / 1000, above, 400)]
        return min(loss(-low, high) for low, high in pairs)

    def ends(reach: float, dense: int) -> Float:
        return np.concatenate([[0.0], np.geomspace(reach / 1000, reach, dense)]) if reach else np.zeros(1)

    lone = not (below and above)
    lows, highs = ends(below, 400 if lone else 24), ends(above, 400 if lone else 24)
    step = 1000 ** (1 / 23)
    best = min((loss(-low, high), low, high) for low in lows for high in highs)
    while not lone and step > 1.01:
        around = step ** np.linspace(-1, 1, 9)
        near = [
            (loss(-low, high), low, high) for low in np.minimum(best[1] * around, below) for high in np.minimum(best[2] * around, above)
        ]
        best, step = min(best, *near), step**0.3
    return best[0]


@both_grids
@pytest.mark.parametrize("name", [name for name in DISTRIBUTIONS if name != "pixels"])
def test_mse_costs_at_most_a_hundredth_more_than_the_best_range(name: str, grid: Grid) -> None:
    numbers = distribution(name)
    loss = squared_error_of_all(numbers, grid)
    found = METHODS["mse"](Statistics.of(numbers), grid)
    assert loss(found.low, found.high) <= 1.01 * brute_force(loss, numbers, grid)


@both_grids
def test_mse_costs_at_most_a_fifth_more_on_pixels_whose_256_values_are_finer_than_a_bucket(grid: Grid) -> None:
    numbers = distribution("pixels")
    loss = squared_error_of_all(numbers, grid)
    found = METHODS["mse"](Statistics.of(numbers), grid)
    assert loss(found.low, found.high) <= 1.2 * brute_force(loss, numbers, grid)


@both_grids
@all_distributions
def test_entropy_costs_at_most_a_hundredth_more_than_the_best_range(name: str, grid: Grid) -> None:
    numbers = distribution(name)
    loss = divergence_of_all(numbers, grid)
    found = METHODS["entropy"](Statistics.of(numbers), grid)
    assert loss(found.low, found.high) <= 1.01 * brute_force(loss, numbers, grid) + 1e-9


@both_grids
@all_distributions
def test_minmax_is_exact(name: str, grid: Grid) -> None:
    numbers = distribution(name)
    found = METHODS["minmax"](Statistics.of(numbers), grid)
    largest = float(np.abs(numbers).max())
    assert (found.low, found.high) == ((-largest, largest) if grid.symmetric else (float(numbers.min()), float(numbers.max())))


@both_grids
@all_distributions
def test_percentile_clips_the_share_that_it_says(name: str, grid: Grid) -> None:
    numbers = distribution(name)
    found = METHODS["percentile"](Statistics.of(numbers), grid)
    tails = [(np.abs(numbers), found.high, 20)] if grid.symmetric else [(numbers, found.high, 10), (-numbers, -found.low, 10)]
    for ordered, end, wanted in tails:
        a_bucket = abs(end) / 128
        assert np.count_nonzero(ordered > end + a_bucket) <= wanted
        assert np.count_nonzero(ordered >= end - a_bucket) >= wanted


@both_grids
@pytest.mark.parametrize("method", METHODS)
def test_nothing_and_zeros_and_one_number_have_ranges_too(method: str, grid: Grid) -> None:
    assert METHODS[method](Statistics.nothing(), grid) == Range(method, 0.0, 0.0)
    zeros = METHODS[method](Statistics.of(np.array([0.0, -0.0], np.float32)), grid)
    assert (zeros.low, zeros.high) == (0.0, 0.0)
    assert grid.quantization(zeros) == (1.0, 0)
    one = METHODS[method](Statistics.of(np.full(5, -2.5, np.float32)), grid)
    np.testing.assert_allclose(one.low, -2.5, rtol=1 / 64)


def test_one_huge_outlier_does_not_decide_the_entropy_range() -> None:
    numbers = distribution("normal")
    numbers[5] = -1e4
    found = METHODS["entropy"](Statistics.of(numbers), INT8)
    assert 3.5 < found.high < 6


@both_grids
@all_distributions
@pytest.mark.parametrize("method", METHODS)
def test_the_error_told_is_that_of_quantizing_every_number(name: str, method: str, grid: Grid) -> None:
    numbers = distribution(name)
    seen = Statistics.of(numbers)
    chosen = METHODS[method](seen, grid)
    scale, zero_point = grid.quantization(chosen)
    lost = grid.dequantize(grid.quantize(numbers, scale, zero_point), scale, zero_point).astype(np.float64) - numbers
    tolerance = 0.2 if name == "pixels" else 0.02
    np.testing.assert_allclose(error(seen, grid, chosen), np.mean(lost**2), rtol=tolerance)
    exact = 10 * np.log10(np.mean(numbers.astype(np.float64) ** 2) / np.mean(lost**2))
    np.testing.assert_allclose(sqnr_db(seen, grid, chosen), exact, atol=4.4 * tolerance)
