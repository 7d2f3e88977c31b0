"""How often the gate is wrong at the budget's edge, and how often it is right inside: the tables of docs/gate.md.

python benchmarks/gate.py              a few minutes on one core
python benchmarks/gate.py --quick      a tenth of the draws
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from optimizer.engine import Parity
from optimizer.parity.gate import gate
from optimizer.parity.statistics import Contrast, clopper_pearson, difference, fewest_samples, pseudo_values, ratio

SIZES = (20, 50, 100, 300, 500, 2_000, 10_000)
POWER_SIZES = (500, 2_000, 10_000)
BUDGET = 0.01


@cache
def most_lost(won: int, samples: int, budget: float) -> int:
    """The largest number of lost answers that passes beside `won` ones, -1 where none does."""
    low, high = -1, min(samples - won, won + int(samples * budget) + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if difference(middle, won, samples).high < budget else (low, middle - 1)
    return low


def passes(draw: np.random.Generator, lost: float, won: float, samples: int, budget: float, draws: int) -> NDArray[np.bool_]:
    """Whether each of `draws` evaluations ends in PASS, for a budget in points."""
    cells = draw.multinomial(samples, [lost, won, max(1 - lost - won, 0.0)], size=draws)
    most = {int(w): most_lost(int(w), samples, budget) for w in np.unique(cells[:, 1])}
    return cells[:, 0] <= np.array([most[int(w)] for w in cells[:, 1]])


def passes_relative(draw: np.random.Generator, parent: float, drop: float, won: float, samples: int, budget: float, draws: int) -> float:
    """Share of PASS for a budget relative to a parent's rate; `drop` is in points."""
    lost = won + drop
    cells = draw.multinomial(samples, [lost, won, parent - lost, 1 - parent - won], size=draws)
    rows, times = np.unique(np.column_stack([cells[:, 0], cells[:, 1], cells[:, 0] + cells[:, 2]]), axis=0, return_counts=True)
    good = [n for (a, b, c), n in zip(rows.tolist(), times, strict=True) if c and ratio(a, b, c, samples).high < budget]
    return float(sum(good) / draws)


def exact(won: float, samples: int, budget: float) -> float:
    """The exact chance of a false PASS at the budget's edge, summed over all outcomes."""
    low, high = (int(stats.binom.ppf(p, samples, won)) for p in (1e-9, 1 - 1e-9))
    count = np.arange(low, high + 1)
    most = np.array([most_lost(int(c), samples, budget) for c in count])
    chance = stats.binom.cdf(most, samples - count, min(1.0, (won + budget) / (1 - won)))
    return float((stats.binom.pmf(count, samples, won) * np.where(most >= 0, chance, 0.0)).sum())


def table(title: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    head = list(head)
    print(f"\n**{title}**\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def false_passes(draws: int) -> None:
    draw = np.random.default_rng(1)
    patterns = {"harmful only": 0.0, "0.5 % won too": 0.005, "5 % won too": 0.05, "30 % won too": 0.3}
    for budget in (BUDGET, 0.05):
        rows = [[f"{n:,}", *(percent(passes(draw, w + budget, w, n, budget, draws).mean()) for w in patterns.values())] for n in SIZES]
        table(f"False PASS, %, budget and true drop {100 * budget:g} pp", ["samples", *patterns], rows)
    rows = [
        [
            f"{n:,}",
            *(
                percent(passes_relative(draw, p, BUDGET * p, w * (1 - p), n, BUDGET, draws // 4))
                for p in (0.5, 0.82, 0.97)
                for w in (0.0, 0.2)
            ),
        ]
        for n in SIZES
    ]
    heads = [f"parent {100 * p:g} %{', also won' if w else ''}" for p in (0.5, 0.82, 0.97) for w in (0, 1)]
    table("False PASS, %, budget 1 % of the parent's rate, true drop just that", ["samples", *heads], rows)
    rows = [
        [
            f"{n:,}",
            *(percent(stats.binom.cdf(_most_disagreeing(n, b), n, b)) if _most_disagreeing(n, b) >= 0 else "0.0" for b in (BUDGET, 0.05)),
        ]
        for n in SIZES
    ]
    table("False PASS of `agreement`, %, exact", ["samples", "budget 1 %", "budget 5 %"], rows)


def _most_disagreeing(samples: int, budget: float) -> int:
    return max((k for k in range(int(samples * budget) + 1) if clopper_pearson(k, samples).high < budget), default=-1)


def worst_case() -> None:
    cells = []
    for budget in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
        for n in (20, 22, 30, 45, 59, 77, 89, 100, 153, 299, 300, 350, 521, 630, 783, 1_000, 2_000, 2_323):
            if n >= fewest_samples(budget):
                cells += [(exact(w, n, budget), n, budget, w) for w in (0.0, *np.geomspace(2e-4, 0.499 * (1 - budget), 9))]
    cells.sort(reverse=True)
    rows = [[f"{100 * chance:.2f}", f"{n:,}", f"{100 * b:g}", f"{100 * w:.3g}"] for chance, n, b, w in cells[:5]]
    table(f"The five worst of {len(cells)} cells, exact", ["false PASS, %", "samples", "budget, points", "answers won, %"], rows)


SCORES: dict[str, Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]] = {
    "1 % ruined": lambda draw, shape: np.where(draw.random(shape) < BUDGET, 1.0, 0.0),
    "2 % half ruined, noise": lambda draw, shape: np.where(draw.random(shape) < 2 * BUDGET, 0.5, 0.0) + draw.uniform(-0.1, 0.1, shape),
    "noise": lambda draw, shape: BUDGET + draw.uniform(-0.3, 0.3, shape),
    "skewed (beta)": lambda draw, shape: draw.beta(0.1, 0.1 / BUDGET - 0.1, shape),
}


def other_scores(draws: int) -> None:
    draw, rows = np.random.default_rng(2), []
    for n in SIZES:
        size = max(min(draws, 4_000_000 // n), 400)
        cells = []
        for losses in SCORES.values():
            good = [Contrast(np.ones(n), 1.0 - one, True, 1.0, n).difference().high < BUDGET for one in losses(draw, (size, n))]
            cells.append(percent(float(np.mean(good)) if n >= fewest_samples(BUDGET) else 0.0))
        for won in (0.0, 0.05):
            good = [_jackknifed(draw, n, won) for _ in range(min(size, 1_000))]
            cells.append(percent(float(np.mean(good)) if n >= fewest_samples(BUDGET) else 0.0))
        rows.append([f"{n:,}", *cells])
    heads = [*(f"mean, {name}" for name in SCORES), "jackknife, harmful only", "jackknife, 5 % won too"]
    table("False PASS of other scores, %, budget 1 point, mean loss just that", ["samples", *heads], rows)


def _jackknifed(draw: np.random.Generator, samples: int, won: float) -> bool:
    u = draw.random(samples)
    right = 1.0 - np.where(u < won + BUDGET, 1.0, np.where(u > 1 - won, -1.0, 0.0))
    engine = pseudo_values(lambda stay: float(right[stay].mean()), samples)
    return Contrast(np.ones(len(engine)), engine, True, 1.0, samples).difference().high < BUDGET


def candidates(draws: int) -> None:
    """Five candidates, drops in points from the safest to the fastest; the answers of each drawn by itself."""
    draw, rows = np.random.default_rng(3), []
    worlds = {
        "one, at the edge": [0.01],
        "five, all at the edge": [0.01] * 5,
        "two good, three at the edge": [0.0, 0.002, 0.01, 0.01, 0.01],
        "four good, one at the edge": [0.0, 0.001, 0.002, 0.003, 0.01],
    }
    for n in (300, 500, 2_000, 10_000):
        cells = []
        for drops in worlds.values():
            good = np.stack([passes(draw, drop + 0.002, 0.002, n, BUDGET, draws) for drop in drops])
            cells.append(percent(float(np.mean([_ships_too_bad(row, drops) for row in good.T]))))
        rows.append([f"{n:,}", *cells])
    table("A candidate with the full drop ships, %, budget 1 point", ["samples", *worlds], rows)


def _ships_too_bad(passing: NDArray[np.bool_], drops: list[float]) -> bool:
    made = gate([(str(i), lambda ok=ok: _parity(bool(ok))) for i, ok in enumerate(passing)])
    return made.shipped is not None and drops[int(made.shipped)] >= BUDGET


def _parity(passed: bool) -> Parity:
    return Parity("pass" if passed else "inconclusive", "top1", 1.0, 1.0, BUDGET, 0.0, 0.0, 0.0, 1, None, "here", "")


def power(draws: int) -> None:
    draw, rows = np.random.default_rng(4), []
    for changed in (0.005, 0.01, 0.02, 0.05, 0.1):
        for drop in (0.0, 0.0025, 0.005):
            if drop > changed:
                continue
            lost, won = (changed + drop) / 2, (changed - drop) / 2
            cells = [percent(passes(draw, lost, won, n, BUDGET, draws).mean()) for n in POWER_SIZES]
            relative = [percent(passes_relative(draw, 0.82, drop, won, n, BUDGET, draws // 4)) for n in POWER_SIZES]
            rows.append([f"{100 * changed:g}", f"{100 * drop:g}", *cells, *relative])
    heads = [f"1 pp, {n:,}" for n in POWER_SIZES] + [f"1 % of 82 %, {n:,}" for n in POWER_SIZES]
    table("Power: PASS, %, by budget and samples", ["answers changed, %", "true drop, points", *heads], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    draws = 2_000 if parser.parse_args().quick else 20_000
    print(f"{draws:,} draws a cell: one standard error of 5 % is {100 * np.sqrt(0.05 * 0.95 / draws):.2f} %")
    false_passes(draws)
    worst_case()
    other_scores(draws // 4)
    candidates(draws)
    power(draws)


if __name__ == "__main__":
    main()
