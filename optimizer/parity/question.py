"""The question that every finalist is asked: which metric, what it may lose, and what the parent answers to the same samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.target import this_cpu
from optimizer.data import Samples
from optimizer.engine import Arrays
from optimizer.errors import InputError
from optimizer.model import Model
from optimizer.parity.budget import Budget, absolute, budget_from_words, threshold
from optimizer.parity.metrics import Metric, default_metric, metric_from_name
from optimizer.parity.outputs import Outputs, collect, per_sample
from optimizer.parity.scores import Scores, scores_of
from optimizer.progress import Track, silent
from optimizer.reference import Reference
from optimizer.request import Request


@dataclass(frozen=True)
class Question:
    """What every finalist is asked: the metric, what it may lose, and the parent's answers to the same samples."""

    metric: Metric
    budget: Budget
    parent: Outputs
    scores: Scores
    labels: NDArray[Any] | None
    min_metric: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def threshold(self) -> float:
        """What the engine must reach, in the metric's own unit: to be shown before anything is judged."""
        return threshold(self.budget, self.scores.value, self.metric)


def ask(
    parent: Callable[[Arrays], Arrays],
    samples: Samples,
    metric: Metric,
    budget: Budget,
    *,
    min_metric: float | None = None,
    notes: Sequence[str] = (),
    track: Track = silent,
) -> Question:
    """The question, with the parent's own answers collected.

    Raises:
        InputError: labels are missing or don't fit the outputs, a relative budget has no meaning, or the parent gives NaN.
    """
    labels = samples.labels
    if metric.needs_labels and labels is None:
        raise InputError(
            f"{metric.name} needs labels, and the evaluation data has none.",
            "Add an array y or label to it, or choose --metric agreement or cosine, which compare with the parent.",
        )
    labels = None if labels is None else _classes(metric, labels)
    answers = collect(parent, samples, metric, labels, track=track, step="gate: the parent")
    labels = None if labels is None else per_sample(labels, len(answers) // max(len(samples), 1))
    scores = scores_of(metric, answers, answers, labels)
    if scores.broken and not (metric.needs_labels and np.isfinite(scores.value)):
        raise InputError(
            f"The parent itself gives NaN or infinity on {scores.broken} of {len(answers)} samples.", "Leave these samples out."
        )
    absolute(budget, scores.value, metric)
    told = [*notes, answers.reading.note, *_warnings(metric, scores)]
    if scores.broken:
        told.append(f"the parent gives NaN or infinity on {scores.broken} samples, which count as wrong")
    return Question(metric, budget, answers, scores, labels, min_metric, tuple(note for note in told if note))


def _classes(metric: Metric, labels: NDArray[Any]) -> NDArray[Any]:
    """Labels without an empty axis; one-hot rows as their class, where the metric asks for classes."""
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if metric.keeps in ("decision", "best five") and flat.dtype.kind == "f" and np.array_equal(flat, np.round(flat)):
        flat = flat.astype(np.int64)
    if metric.keeps in ("decision", "best five", "score") and np.array_equal(np.unique(flat), [-1, 1]):
        return (flat > 0).astype(np.int64)
    one_hot = flat.ndim == 2 and flat.shape[1] > 1 and bool(((flat == 0) | (flat == 1)).all() and (flat.sum(axis=1) == 1).all())
    return flat.argmax(axis=1) if one_hot and metric.keeps in ("decision", "best five", "score") else flat


def _warnings(metric: Metric, scores: Scores) -> list[str]:
    if scores.pseudo is None and not metric.bounded and not scores.binary:
        return ["the scores have no known bound: samples worse than any seen here can't be ruled out"]
    return []


@dataclass(frozen=True)
class NoQuestion:
    """There is evaluation data, but nothing that it could decide; `reason` says why."""

    reason: str


def metric_from_words(request: Request, model: Model, samples: Samples) -> tuple[Metric | None, str]:
    """The metric that a Request asks for, or that fits the model and its labels; None where none does, with a note on it.

    Raises:
        InputError: as `metric_from_name`.
    """
    if request.metric is not None:
        return metric_from_name(request.metric, request.folder), ""
    return default_metric(request.task, model.outputs, samples.labels)


def question_from_words(request: Request, model: Model, samples: Samples, track: Track = silent) -> Question | NoQuestion:
    """The question that a Request asks, answered by `model` on ONNX Runtime's CPU; a guessed metric is told in its notes.

    Raises:
        InputError: as `metric_from_name`, `budget_from_words` and `ask`.
    """
    metric, note = metric_from_words(request, model, samples)
    budget = budget_from_words(request.max_drop)
    if metric is None and request.min_metric is not None:
        raise InputError(f"--min-metric has nothing to measure: {note}.", "Add labels to the evaluation data, or choose a --metric.")
    if metric is None:
        return NoQuestion(note)
    reference = Reference(model.graph, threads=request.threads or this_cpu().cores, optimized=True)
    try:
        return ask(reference.run, samples, metric, budget, min_metric=request.min_metric, notes=(note,), track=track)
    finally:
        reference.close()
