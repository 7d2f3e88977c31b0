"""Metrics by name: what each keeps of a sample's outputs, how it scores it, and which way is better."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import InputError
from optimizer.model import TensorSpec
from optimizer.process import Scorer, user_scores
from optimizer.provenance import told

Array = NDArray[Any]
Floats = NDArray[np.float64]

Keeps = Literal["decision", "best five", "score", "numbers", "outputs"]
"""What stays of a sample: the class of every position, its five likeliest classes, one score for the positive class, the numbers
of one output, or all outputs as they are."""


@dataclass(frozen=True)
class Metric:
    """How well outputs answer. `score` gives one float a sample from what was kept and the truth (the label, or what was kept of
    the parent's); where `over_all` is there, the metric is its one float over all scores and labels, else the scores' mean.

    `bounded` scores lie in 0..1; `of_rarer_class` says that the metric lives on the rarer of two classes, which then counts as
    the number of samples; `user` opens a function of the user's.
    """

    name: str
    keeps: Keeps
    score: Callable[[Array, Array], float] | None = None
    over_all: Callable[[Floats, Array], float] | None = None
    higher_is_better: bool = True
    needs_labels: bool = True
    bounded: bool = True
    of_rarer_class: bool = False
    user: Callable[[], AbstractContextManager[Scorer]] | None = None


def equal_share(kept: Array, truth: Array) -> float:
    """Share of positions at which two decisions are the same; 0 where their number differs."""
    return float(np.mean(kept == truth)) if kept.shape == truth.shape else 0.0


def among_five(kept: Array, truth: Array) -> float:
    """Share of positions whose true class is one of the kept ones; `kept` is (positions, 5)."""
    return float(np.mean((kept == truth.reshape(-1, 1)).any(axis=1)))


def closeness(kept: Array, truth: Array) -> float:
    """Cosine of the angle between two outputs; opposite directions count as 0, two zero vectors as 1."""
    if kept.shape != truth.shape:
        return 0.0
    one, other = kept.astype(np.float64), truth.astype(np.float64)
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    if size == 0.0:
        return 1.0 if np.array_equal(one, other) else 0.0
    return min(max(float(one @ other) / size, 0.0), 1.0)


def absolute_error(kept: Array, truth: Array) -> float:
    return float(np.mean(np.abs(_fitting(kept, truth))))


def squared_error(kept: Array, truth: Array) -> float:
    return float(np.mean(np.square(_fitting(kept, truth))))


def _fitting(kept: Array, truth: Array) -> Floats:
    if kept.size != truth.size:
        raise InputError(f"The output has {kept.size} numbers where the label has {truth.size}.", "Give labels of the output's shape.")
    return kept.astype(np.float64) - truth.reshape(kept.shape).astype(np.float64)


def as_is(kept: Array, truth: Array) -> float:  # noqa: ARG001 - the truth comes in with all samples
    return float(kept.reshape(-1)[0])


def root_mean(scores: Floats, labels: Array) -> float:  # noqa: ARG001 - already in the scores
    return float(np.sqrt(scores.mean()))


def auc(scores: Floats, labels: Array) -> float:
    """Area under the ROC curve: the chance that a positive scores over a negative, ties counting half. NaN with one class only."""
    positive = labels > 0
    count = int(positive.sum())
    if count in (0, len(scores)):
        return float("nan")
    _, place, ties = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - (ties - 1) / 2.0)[place]
    return float((ranks[positive].sum() - count * (count + 1) / 2.0) / (count * (len(scores) - count)))


def average_precision(scores: Floats, labels: Array) -> float:
    """Sum over thresholds of (recall gained) x precision. NaN without positives."""
    caught, wrong = _by_threshold(scores, labels)
    if caught[-1] == 0:
        return float("nan")
    gained = np.diff(caught, prepend=0.0) / caught[-1]
    return float((gained * caught / (caught + wrong)).sum())


def recall_at(rate: float, scores: Floats, labels: Array) -> float:
    """Largest recall at a threshold whose false positive rate is at most `rate`. NaN with one class only."""
    caught, wrong = _by_threshold(scores, labels)
    if caught[-1] == 0 or wrong[-1] == 0:
        return float("nan")
    return float(np.max(np.where(wrong <= rate * wrong[-1], caught, 0.0)) / caught[-1])


def _by_threshold(scores: Floats, labels: Array) -> tuple[Floats, Floats]:
    """True and false positives at every distinct threshold, from the highest score down."""
    order = np.argsort(-scores, kind="stable")
    positive = (labels[order] > 0).astype(np.float64)
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    return np.cumsum(positive)[last], np.cumsum(1.0 - positive)[last]


def f1(scores: Floats, labels: Array) -> float:
    """F1 of the positive class; of more than two classes the plain mean over the classes that occur."""
    truth = (labels > 0).astype(np.int64) if labels.min(initial=0) < 0 else labels.astype(np.int64)
    found = scores.astype(np.int64)
    kinds = np.unique(np.concatenate([truth, found[found >= 0]]))
    if kinds.max(initial=0) <= 1:
        return _f1(found == 1, truth == 1)
    return float(np.mean([_f1(found == kind, truth == kind) for kind in kinds]))


def _f1(found: Array, truth: Array) -> float:
    """NaN where the class neither occurs nor is found."""
    total = int(found.sum() + truth.sum())
    return 2.0 * int((found & truth).sum()) / total if total else float("nan")


def recall_at_fpr(rate: float) -> Metric:
    return Metric(f"recall@fpr={rate:g}", "score", as_is, partial(recall_at, rate), of_rarer_class=True)


METRICS: dict[str, Metric] = {
    "top1": Metric("top1", "decision", equal_share),
    "top5": Metric("top5", "best five", among_five),
    "auc": Metric("auc", "score", as_is, auc, of_rarer_class=True),
    "average_precision": Metric("average_precision", "score", as_is, average_precision, of_rarer_class=True),
    "recall@fpr": recall_at_fpr(0.01),
    "f1": Metric("f1", "decision", as_is, f1, of_rarer_class=True),
    "mae": Metric("mae", "numbers", absolute_error, higher_is_better=False, bounded=False),
    "rmse": Metric("rmse", "numbers", squared_error, root_mean, higher_is_better=False, bounded=False),
    "cosine": Metric("cosine", "numbers", closeness, needs_labels=False),
    "agreement": Metric("agreement", "decision", equal_share, needs_labels=False),
}


def metric_from_name(word: str, folder: Path) -> Metric:
    """The metric called `word`: a name in METRICS, `recall@fpr=0.05`, or `file.py:function` seen from `folder`.

    A function of the user's gets all outputs by name and the labels; higher must be better.

    Raises:
        InputError: no such metric.
    """
    if word in METRICS:
        return METRICS[word]
    if ":" in word:
        return Metric(told(word, folder), "outputs", needs_labels=False, bounded=False, user=partial(user_scores, word, folder))
    name, _, rate = word.partition("=")
    if name == "recall@fpr":
        try:
            wanted = float(rate.removesuffix("%")) / (100.0 if rate.endswith("%") else 1.0)
        except ValueError:
            wanted = -1.0
        if 0.0 < wanted < 1.0:
            return recall_at_fpr(wanted)
        raise InputError(f"{word} names no false positive rate between 0 and 1.", "Write for instance recall@fpr=0.01.")
    near = difflib.get_close_matches(word, METRICS, n=1)
    remedy = f"Did you mean {near[0]}? " if near else ""
    raise InputError(f"There is no metric {word!r}.", f"{remedy}Choose from {', '.join(METRICS)}, or give file.py:function.")


def default_metric(task: str | None, outputs: Sequence[TensorSpec], labels: Array | None) -> tuple[Metric | None, str]:
    """The metric for a task where none was asked for, with a note on what it can't tell; None where no verdict can be had.

    `task` is "classification", "regression", "embedding", or None: then the first output's name, type and size are the clue.
    """
    if task == "embedding":
        return METRICS["cosine"], "" if labels is None else "labels are not used: the metric compares embeddings with the parent's"
    if labels is not None:
        if task == "regression" or (task is None and labels.dtype.kind == "f" and not np.array_equal(labels, np.round(labels))):
            return METRICS["mae"], "" if task else "the labels are no whole numbers: judged as a regression by mean absolute error"
        return METRICS["top1"], ""
    if task == "regression":
        return None, "a regression without labels has no default verdict: give labels, or a metric and its budget"
    if task == "classification":
        return METRICS["agreement"], LABELS_DECIDE_ANOTHER
    name, size = outputs[0].name, outputs[0].shape[-1] if outputs[0].shape else 1
    decides = np.dtype(outputs[0].dtype).kind in "iub" or any(word in name.lower() for word in _DECISIONS)
    embeds = any(word in name.lower() for word in _EMBEDDINGS) or not isinstance(size, int) or size > _FEW_CLASSES
    metric, does = ("agreement", "decides between classes") if decides or not embeds else ("cosine", "embeds")
    return METRICS[metric], f"guessed from the output {name!r} that the model {does} (--task says otherwise); {LABELS_DECIDE_ANOTHER}"


LABELS_DECIDE_ANOTHER = "without labels the parent's answers count as the truth: labels would decide a different question"
_DECISIONS = ("logit", "prob", "class", "softmax", "score", "label")
_EMBEDDINGS = ("embed", "feature", "hidden", "pool", "vector", "state")
_FEW_CLASSES = 100
