"""From kept outputs to numbers: one score a sample, or one over all with its jackknife."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import InputError
from optimizer.parity.metrics import Metric
from optimizer.parity.outputs import Outputs, decisions
from optimizer.parity.statistics import pseudo_values

Array = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """A model's metric: its value, the score of each sample (n,), and the jackknife's pseudo-values where it is one over all.

    `counted` is how many samples count: all, or those of the rarer class; `broken` how many outputs held NaN or infinity.
    """

    value: float
    each: Floats
    pseudo: Floats | None
    counted: int
    broken: int

    @property
    def binary(self) -> bool:
        """Whether each sample is simply right or wrong."""
        return self.pseudo is None and bool(((self.each == 0.0) | (self.each == 1.0)).all())

    @property
    def within_one(self) -> bool:
        return bool((self.each >= 0.0).all() and (self.each <= 1.0).all())


def in_blocks(scores: Scores, size: int) -> Scores:
    """The scores of blocks of `size` consecutive samples, each the mean of its samples': what depends on its neighbours counts once.

    Pseudo-values, which stand for stretches of samples, are brought to no more than there are blocks.
    """
    if size == 1:
        return scores
    count = max(len(scores.each) // size, 1)
    pseudo = None if scores.pseudo is None else _means(scores.pseudo, min(count, len(scores.pseudo)))
    return replace(scores, each=_means(scores.each, count), pseudo=pseudo, counted=max(scores.counted // size, 1))


def _means(values: Floats, count: int) -> Floats:
    return np.array([part.mean() for part in np.array_split(values, count)])


def scores_of(metric: Metric, outputs: Outputs, parent: Outputs, labels: Array | None) -> Scores:
    """The metric's numbers for one model's outputs; `parent` are the parent's, which set the truth where labels don't.

    Raises:
        InputError: labels don't fit the outputs, or a user's metric returns what is no score.
    """
    broken = int(outputs.broken.sum())
    if labels is not None and metric.needs_labels and len(labels) != len(outputs):
        raise InputError(f"There are {len(labels)} labels for {len(outputs)} outputs.", "Give one label a sample.")
    if metric.user is not None:
        return _user_scores(metric, outputs, labels, broken)
    assert metric.score is not None
    pairs = zip(_kept(metric, outputs, parent), _truth(metric, parent, labels), strict=True)
    each = np.array([metric.score(kept, truth) for kept, truth in pairs], dtype=np.float64)
    if broken and metric.keeps in ("decision", "best five") and metric.over_all is None:
        each[outputs.broken] = 0.0
    elif broken:
        return Scores(float("nan"), each, None, len(each), broken)
    if metric.over_all is None:
        return Scores(float(each.mean()), each, None, len(each), broken)
    known = labels.reshape(-1) if labels is not None else np.empty(0)
    if metric.of_rarer_class:
        _refuse_other_than_two(metric, each, known)
    compute = metric.over_all
    value = compute(each, known)
    if not np.isfinite(value):
        raise InputError(f"{metric.name} needs samples of both classes.", "Give evaluation data with positives and negatives.")

    def part(stay: NDArray[np.intp]) -> float:
        return compute(each[stay], known[stay] if len(known) == len(each) else known)

    pseudo = pseudo_values(part, len(each), in_sequence=outputs.in_sequence)
    return Scores(value, each, pseudo, _rarer(known) if metric.of_rarer_class else len(each), broken)


def _refuse_other_than_two(metric: Metric, each: Floats, labels: Array) -> None:
    if len(labels) != len(each):
        raise InputError(f"{metric.name} takes one label a sample.", "Give labels of shape (samples,).")
    if metric.keeps == "score" and len(np.unique(labels)) > 2:
        raise InputError(f"{metric.name} is for two classes; the labels name {len(np.unique(labels))}.", "Choose --metric top1 or f1.")


def _rarer(labels: Array) -> int:
    return int(np.unique(labels, return_counts=True)[1].min())


def _kept(metric: Metric, outputs: Outputs, parent: Outputs) -> Iterator[Array]:
    return decisions(outputs, parent.reading.threshold) if metric.keeps == "decision" else iter(outputs.only)


def _truth(metric: Metric, parent: Outputs, labels: Array | None) -> Iterator[Array]:
    """The label of each sample, or what was kept of the parent's output, flattened."""
    if metric.needs_labels and labels is not None:
        binary = parent.reading.threshold is not None
        return (np.asarray(label > 0 if binary else label).reshape(-1) for label in labels)
    return _kept(metric, parent, parent)


def _user_scores(metric: Metric, outputs: Outputs, labels: Array | None, broken: int) -> Scores:
    """What the user's function makes of all outputs; where it returns one float, it is called again for each jackknife block."""
    assert metric.user is not None
    arrays = {name: rows.stacked() for name, rows in outputs.rows.items()}
    count = len(outputs)
    with metric.user() as function:
        result = function(arrays, labels)
        if isinstance(result, float):

            def value(stay: NDArray[np.intp]) -> float:
                part = function({name: array[stay] for name, array in arrays.items()}, None if labels is None else labels[stay])
                return float(part) if np.ndim(part) == 0 else float("nan")

            if broken or not np.isfinite(result):
                return Scores(float("nan"), np.full(count, float("nan")), None, count, max(broken, 1))
            pseudo = pseudo_values(value, count, in_sequence=outputs.in_sequence)
            return Scores(result, np.full(count, result), pseudo, count, broken)
    each = np.asarray(result, dtype=np.float64)
    if each.shape != (count,):
        raise InputError(
            f"The metric {metric.name} returned an array of shape {list(each.shape)} for {count} samples.",
            "Return one score a sample, or one float over all.",
        )
    failing = max(broken, int((~np.isfinite(each)).sum()))
    return Scores(float("nan") if failing else float(each.mean()), each, None, count, failing)
