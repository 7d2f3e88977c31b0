from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.errors import InputError
from optimizer.parity.budget import budget_from_words
from optimizer.parity.gate import ask, judge, undecided
from optimizer.parity.metrics import METRICS, metric_from_name


def _classes(labels: np.ndarray, wrong: np.ndarray | list[int], classes: int = 10) -> np.ndarray:
    """Logits whose decision is the label, except where `wrong`."""
    decided = labels.copy()
    decided[wrong] = (decided[wrong] + 1) % classes
    return np.eye(classes, dtype=np.float32)[decided]


LABELS = np.random.default_rng(0).integers(0, 10, 2_000)
PARENT_WRONG = np.arange(361)
PARENT = _classes(LABELS, PARENT_WRONG)


def test_an_engine_that_answers_the_same_passes_and_its_numbers_say_so(judged: Any) -> None:
    parity = judged(PARENT, PARENT, LABELS, "top1")
    assert (parity.verdict, parity.metric, parity.samples, parity.gated_on) == ("pass", "top1", 2_000, "this CPU")
    assert parity.parent == parity.engine == pytest.approx(0.8195)
    assert parity.budget == pytest.approx(0.008195)
    assert parity.low <= parity.drop == 0.0 <= parity.high < parity.budget


def test_verdicts_follow_the_bounds(judged: Any) -> None:
    for lost, verdict in ((4, "pass"), (14, "inconclusive"), (16, "inconclusive"), (60, "fail")):
        engine = _classes(LABELS, np.arange(361 + lost))
        for budget in ("1%", "0.8pp"):
            parity = judged(PARENT, engine, LABELS, "top1", budget)
            assert parity.verdict == verdict
            assert parity.drop == pytest.approx(lost / 2_000)
            assert parity.low <= parity.drop <= parity.high
            assert (parity.high < parity.budget) == (verdict == "pass")
            assert (parity.low > parity.budget) == (verdict == "fail")


def test_what_is_missing_is_told_in_samples_or_in_words(judged: Any) -> None:
    near = judged(PARENT, _classes(LABELS, np.arange(361 + 12)), LABELS, "top1")
    assert near.samples_needed > 2_000
    assert f"about {near.samples_needed - 2_000:,} more samples" in near.reason
    over = judged(PARENT, _classes(LABELS, np.arange(361 + 18)), LABELS, "top1")
    assert over.verdict == "inconclusive"
    assert over.samples_needed is None
    assert "more samples would not" in over.reason


def test_too_few_samples_are_inconclusive_even_without_a_flip_and_the_least_number_is_named(judged: Any) -> None:
    for metric, labels in (("top1", LABELS[-250:]), ("agreement", None), ("cosine", None)):
        parity = judged(PARENT[-250:], PARENT[-250:], labels, metric)
        assert parity.verdict == "inconclusive"
        assert "299" in parity.reason


def test_answers_that_are_nan_count_as_wrong_and_are_told(judged: Any) -> None:
    broken = PARENT.copy()
    broken[400:500] = np.nan
    for metric, labels in (("top1", LABELS), ("agreement", None)):
        parity = judged(PARENT, broken, labels, metric)
        assert parity.verdict == "fail"
        assert parity.drop == pytest.approx(0.05)
        assert "NaN or infinity on 100 samples" in parity.reason
    parity = judged(PARENT, broken, None, "cosine")
    assert (parity.verdict, parity.engine, parity.drop) == ("fail", None, None)
    assert "100 of 2000" in parity.reason


def test_a_parent_that_is_nan_itself_is_refused_or_told(judged: Any) -> None:
    broken = PARENT.copy()
    broken[:3] = np.nan
    with pytest.raises(InputError, match="parent itself"):
        judged(broken, PARENT, None, "cosine")
    with pytest.raises(InputError, match="parent itself"):
        judged(broken, PARENT, None, "agreement")
    assert any("count as wrong" in note for note in judged(broken, PARENT, LABELS, "top1").notes)


def test_agreement_is_the_share_of_equal_decisions(judged: Any) -> None:
    engine = PARENT.copy()
    engine[5:13] = np.roll(PARENT[5:13], 1, axis=1)
    parity = judged(PARENT, engine, None, "agreement")
    assert (parity.parent, parity.engine, parity.verdict) == (1.0, 1 - 8 / 2_000, "pass")
    assert judged(PARENT, engine * 3 + 1, None, "agreement").drop == parity.drop


BIT = LABELS % 2


@pytest.mark.parametrize(("labels", "parent"), [(BIT, "(n,)"), (BIT, "(n,1)"), (BIT, "(n,2)"), (2 * BIT - 1, "(n,)")])
def test_binary_models_of_every_shape_are_judged_by_top1(judged: Any, labels: np.ndarray, parent: str) -> None:
    chance = np.where(labels > 0, 0.9, 0.2).astype(np.float32)
    chance[:40] = 1 - chance[:40]
    shaped = {"(n,)": chance, "(n,1)": chance[:, None], "(n,2)": np.stack([1 - chance, chance], 1)}[parent]
    parity = judged(shaped, shaped, labels, "top1")
    assert parity.parent == pytest.approx(0.98)
    assert parity.verdict == "pass"


def test_one_hot_labels_are_read_as_classes(judged: Any) -> None:
    assert judged(PARENT, PARENT, np.eye(10)[LABELS], "top1").parent == pytest.approx(0.8195)


def test_top5_looks_at_the_five_best(judged: Any) -> None:
    scores = np.tile(np.arange(10, dtype=np.float32), (2_000, 1))
    parity = judged(scores, -scores, LABELS, "top5")
    assert parity.parent == pytest.approx(np.mean(LABELS >= 5))
    assert parity.engine == pytest.approx(np.mean(LABELS < 5))


def test_cosines_lose_little_by_noise_and_fail_where_some_embeddings_are_ruined(judged: Any) -> None:
    draw = np.random.default_rng(0)
    parent = draw.standard_normal((1_000, 32)).astype(np.float32)
    near = parent + 0.02 * draw.standard_normal(parent.shape).astype(np.float32)
    assert judged(parent, near, None, "cosine").verdict == "pass"
    ruined = near.copy()
    ruined[::20] *= -1
    parity = judged(parent, ruined, None, "cosine")
    assert parity.verdict == "fail"
    assert parity.drop == pytest.approx(0.05, abs=1e-3)


@pytest.mark.parametrize("metric", ["mae", "rmse"])
def test_an_error_metric_may_worsen_by_the_budget(judged: Any, metric: str) -> None:
    draw = np.random.default_rng(0)
    labels = draw.standard_normal((1_500, 3))
    parent = labels + draw.standard_normal((1_500, 3))
    for worse, verdict in ((1.0, "pass"), (1.02, "pass"), (1.3, "fail"), (0.8, "pass")):
        engine = labels + worse * (parent - labels)
        parity = judged(parent.astype(np.float32), engine.astype(np.float32), labels, metric, "10%")
        assert parity.verdict == verdict
        assert parity.drop == pytest.approx((worse - 1) * parity.parent, rel=1e-3, abs=1e-6)
        assert parity.low <= parity.drop <= parity.high


@pytest.mark.parametrize("metric", ["auc", "average_precision", "recall@fpr=0.1", "f1"])
def test_metrics_over_all_pass_the_same_engine_and_fail_a_ruined_one(judged: Any, metric: str) -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 1_200)
    parent = (labels + 0.5 * draw.standard_normal(1_200) - 0.5).astype(np.float32)
    same = judged(parent, parent, labels, metric_from_name(metric, Path()), "2%")
    assert same.verdict == "pass"
    assert same.low <= 0 <= same.high
    ruined = np.where(draw.random(1_200) < 0.4, -parent, parent).astype(np.float32)
    assert judged(parent, ruined, labels, metric_from_name(metric, Path()), "2%").verdict == "fail"


def test_a_metric_of_the_rarer_class_counts_that_class(judged: Any) -> None:
    labels = (np.arange(2_000) < 100).astype(np.int64)
    scores = labels.astype(np.float32)
    parity = judged(scores, scores, labels, "auc")
    assert parity.verdict == "inconclusive"
    assert "rarer class (here 100)" in parity.reason


def test_a_metric_of_two_classes_refuses_ten_and_one(judged: Any) -> None:
    with pytest.raises(InputError, match="two classes"):
        judged(PARENT[:, 0], PARENT[:, 0], LABELS, "auc")
    with pytest.raises(InputError, match="both classes"):
        judged(PARENT[:, 0], PARENT[:, 0], LABELS * 0, "auc")


def test_the_engine_must_surely_reach_what_min_metric_asks_whatever_the_parent_does(judged: Any) -> None:
    asked = {0.78: "pass", 0.81: "inconclusive", 0.9: "fail"}
    for least, verdict in asked.items():
        parity = judged(PARENT, PARENT, LABELS, "top1", min_metric=least)
        assert parity.verdict == verdict
        assert verdict == "pass" or "--min-metric" in parity.reason
    labels = np.zeros((500, 1))
    error = np.full((500, 1), 2.0, np.float32)
    assert judged(error, error, labels, "mae", min_metric=2.5).verdict == "pass"
    assert judged(error, error, labels, "mae", min_metric=1.5).verdict == "fail"


def test_labels_are_asked_for_and_must_fit(judged: Any) -> None:
    with pytest.raises(InputError, match="needs labels"):
        judged(PARENT, PARENT, None, "top1")
    with pytest.raises(InputError, match="needs labels"):
        judged(PARENT, PARENT, None, "mae")


def test_a_relative_budget_of_a_parent_with_nothing_right_is_refused(judged: Any) -> None:
    wrong = _classes(LABELS, np.arange(2_000))
    with pytest.raises(InputError, match="in points"):
        judged(wrong, wrong, LABELS, "top1")
    assert judged(wrong, wrong, LABELS, "top1", "1pp").verdict == "pass"


def test_several_outputs_are_named_in_the_notes(numbered: Any, answers: Any) -> None:
    run = answers(hidden=np.zeros((2_000, 3), np.float32), logits=PARENT)
    question = ask(run, numbered(2_000, LABELS), METRICS["top1"], budget_from_words("1%"), notes=("a guess", ""))
    parity = judge(question, run, numbered(2_000, LABELS), gated_on="simulation")
    assert question.threshold == pytest.approx(0.99 * 0.8195)
    assert (parity.verdict, parity.gated_on, parity.notes[0]) == ("pass", "simulation", "a guess")
    assert "'logits'" in parity.notes[1]


def test_a_fixed_batch_is_judged_sample_by_sample(numbered: Any, answers: Any) -> None:
    samples = numbered(2_000, LABELS.reshape(500, 4), batch=4)
    question = ask(answers(y=PARENT), samples, METRICS["top1"], budget_from_words("1%"))
    parity = judge(question, answers(y=PARENT), samples, gated_on="here")
    assert (parity.samples, parity.parent) == (2_000, pytest.approx(0.8195))


USER = """
import numpy as np
def right(outputs, labels):
    return (outputs["y"].argmax(1) == labels).astype(float)
def share(outputs, labels):
    return float((outputs["y"].argmax(1) == labels).mean())
def odd(outputs, labels):
    return np.zeros((3, 2))
"""


def test_a_users_scores_are_judged_as_right_or_wrong_and_its_one_float_by_jackknife(judged: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USER)
    engine = _classes(LABELS, np.arange(365))
    each = judged(PARENT, engine, LABELS, metric_from_name("mine.py:right", tmp_path))
    by_name = judged(PARENT, engine, LABELS, "top1")
    assert (each.verdict, each.low, each.high) == (by_name.verdict, by_name.low, by_name.high)
    whole = judged(PARENT, engine, LABELS, metric_from_name("mine.py:share", tmp_path))
    assert whole.drop == pytest.approx(by_name.drop)
    assert whole.high == pytest.approx(by_name.high, rel=0.5)
    with pytest.raises(InputError, match=r"shape \[3, 2\] for 2000 samples"):
        judged(PARENT, engine, LABELS, metric_from_name("mine.py:odd", tmp_path))


def test_nothing_to_judge_by_is_inconclusive() -> None:
    parity = undecided("none", "here", "no evaluation data")
    assert (parity.verdict, parity.drop, parity.samples, parity.reason) == ("inconclusive", None, 0, "no evaluation data")
