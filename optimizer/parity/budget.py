"""What a metric may lose: `1%` of the parent's own, or `0.5pp` in points."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.errors import InputError
from optimizer.parity.metrics import Metric


@dataclass(frozen=True)
class Budget:
    """`value` is a part of the parent's metric where `relative`, else an amount in the metric's own unit; 0.01 for both 1% and 1pp."""

    value: float
    relative: bool

    def __str__(self) -> str:
        return f"{self.value * 100:g}{'%' if self.relative else 'pp'}"


def budget_from_words(words: str) -> Budget:
    """The budget of `1%` (relative to the parent's metric) or `0.5pp` (points).

    Raises:
        InputError: a number without either, for which both readings are shown, or one not between 0 and 100.
    """
    text = words.strip().lower().replace(" ", "")
    unit = "pp" if text.endswith("pp") else "%" if text.endswith("%") else ""
    try:
        number = float(text.removesuffix(unit))
    except ValueError:
        raise InputError(
            f"--max-drop {words!r} is no budget.", "Write for instance 1% (of the parent's metric) or 0.5pp (points)."
        ) from None
    if not unit:
        part = number if number >= 0.1 else number * 100
        raise InputError(
            f"--max-drop {words} can be read in two ways.",
            f"Write {part:g}% for that part of the parent's own metric, or {part:g}pp for points (0.80 to {0.8 - part / 100:.4g}).",
        )
    if not 0.0 < number < 100.0:
        raise InputError(f"--max-drop {words} leaves nothing to test.", "Give a budget over 0 and under 100.")
    return Budget(number / 100.0, unit == "%")


def absolute(budget: Budget, parent: float, metric: Metric) -> float:
    """The budget in the metric's own unit.

    Raises:
        InputError: a relative budget of a parent at or below 0.
    """
    if not budget.relative:
        return budget.value
    if not parent > 0.0:
        raise InputError(
            f"The parent's {metric.name} is {parent:.6g}: a budget of {budget} of it says nothing.",
            "Give the budget in points, for instance --max-drop 0.5pp.",
        )
    return budget.value * parent


def threshold(budget: Budget, parent: float, metric: Metric) -> float:
    """What the engine must reach (for error metrics: stay under), in the metric's own unit."""
    allowed = absolute(budget, parent, metric)
    return parent - allowed if metric.higher_is_better else parent + allowed
