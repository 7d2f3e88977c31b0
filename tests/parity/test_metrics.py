from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import integers
from sklearn import metrics as sklearn

from optimizer.errors import InputError
from optimizer.model import TensorSpec
from optimizer.parity.metrics import METRICS, auc, average_precision, default_metric, f1, metric_from_name, recall_at

NO_LABELS = None


@given(integers(0, 10_000), integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_scores_over_all_are_scikit_learns_also_with_ties(seed: int, levels: int) -> None:
    draw = np.random.default_rng(seed)
    labels = np.append(draw.integers(0, 2, 60), [0, 1])
    scores = draw.integers(0, levels + 1, 62) / levels
    assert auc(scores, labels) == pytest.approx(sklearn.roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(sklearn.average_precision_score(labels, scores), abs=1e-12)
    rates, recalls, _ = sklearn.roc_curve(labels, scores, drop_intermediate=False)
    assert recall_at(0.2, scores, labels) == pytest.approx(recalls[rates <= 0.2].max(), abs=1e-12)
    found = scores > 0.5
    assert f1(found.astype(float), labels) == pytest.approx(sklearn.f1_score(labels, found, zero_division=np.nan), abs=1e-12, nan_ok=True)
    kinds, guessed = draw.integers(0, 4, 62), draw.integers(0, 4, 62)
    assert f1(guessed.astype(float), kinds) == pytest.approx(sklearn.f1_score(kinds, guessed, average="macro"), abs=1e-12)


def test_a_metric_of_two_classes_is_no_number_where_there_is_one() -> None:
    ones = np.ones(5)
    assert np.isnan([auc(ones, ones), average_precision(ones, 0 * ones), recall_at(0.1, ones, ones), f1(0 * ones, 0 * ones)]).all()


def test_metrics_are_found_by_name_with_their_direction() -> None:
    assert set(METRICS) == {"top1", "top5", "auc", "average_precision", "recall@fpr", "f1", "mae", "rmse", "cosine", "agreement"}
    assert [name for name, metric in METRICS.items() if not metric.higher_is_better] == ["mae", "rmse"]
    assert metric_from_name("recall@fpr=5%", Path()).name == "recall@fpr=0.05"
    assert metric_from_name("mine.py:score", Path()).user is not None


@pytest.mark.parametrize(
    ("word", "part"), [("topp1", "Did you mean top1"), ("recall@fpr=7", "recall@fpr=0.01"), ("accuracy", "Choose from")]
)
def test_a_metric_that_is_not_there_is_refused_with_the_way_out(word: str, part: str) -> None:
    with pytest.raises(InputError) as error:
        metric_from_name(word, Path())
    assert part in error.value.remedy


def _output(name: str, size: int, dtype: str = "float32") -> list[TensorSpec]:
    return [TensorSpec(name, dtype, (1, size))]


def test_the_metric_by_default_follows_task_labels_and_output_and_a_guess_is_named() -> None:
    def chosen(task: str | None, output: list[TensorSpec], labels: np.ndarray | None) -> tuple[str | None, str]:
        metric, note = default_metric(task, output, labels)
        return metric and metric.name, note

    whole = np.array([0, 3])
    assert chosen(None, _output("y", 10), whole) == ("top1", "")
    assert chosen(None, _output("y", 1), np.array([0.5, 1.7]))[0] == "mae"
    assert chosen("regression", _output("y", 1), whole) == ("mae", "")
    assert chosen("embedding", _output("y", 384), NO_LABELS) == ("cosine", "")
    for task, output in (("classification", _output("y", 384)), (None, _output("logits", 6_000)), (None, _output("y", 10))):
        name, note = chosen(task, output, NO_LABELS)
        assert name == "agreement"
        assert "labels would decide a different question" in note
    assert "guessed" in chosen(None, _output("y", 10), NO_LABELS)[1]
    assert chosen(None, _output("y", 384), NO_LABELS)[0] == "cosine"
    assert chosen(None, _output("token_embedding", 32), NO_LABELS)[0] == "cosine"
    assert chosen(None, _output("y", 1, "int64"), NO_LABELS)[0] == "agreement"
    name, note = chosen("regression", _output("y", 1), NO_LABELS)
    assert name is None
    assert "no default verdict" in note
