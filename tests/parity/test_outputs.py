from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optimizer.errors import InputError
from optimizer.parity import outputs as room
from optimizer.parity.metrics import METRICS
from optimizer.parity.outputs import Rows, collect, decisions


def test_rows_come_back_as_they_went_in_from_memory_and_from_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for memory in (1 << 20, 16):
        monkeypatch.setattr(room, "_IN_MEMORY", memory)
        rows = Rows()
        for size in (3, 1, 4):
            rows.append(np.arange(size, dtype=np.float32))
        both = [(a.tolist(), b.tolist()) for a, b in zip(rows, rows, strict=True)]
        assert both == [([0, 1, 2],) * 2, ([0],) * 2, ([0, 1, 2, 3],) * 2]
        with pytest.raises(InputError, match="differ in shape"):
            rows.stacked()


def test_a_decision_keeps_a_number_a_sample_and_not_the_scores(numbered: Any, answers: Any) -> None:
    made = collect(answers(y=np.eye(1_000, dtype=np.float32)), numbered(1_000), METRICS["agreement"])
    assert made.only.stacked().shape == (1_000, 1)
    assert (made.only.stacked()[:, 0] == np.arange(1_000)).all()


@pytest.mark.parametrize("shape", [(40,), (40, 1)])
def test_binary_outputs_turn_at_a_half_for_probabilities_and_at_zero_for_logits(
    numbered: Any, answers: Any, shape: tuple[int, ...]
) -> None:
    logits = np.linspace(-4, 4, 40, dtype=np.float32)
    for scores, turn in ((logits, 0.0), (1 / (1 + np.exp(-logits)), 0.5)):
        made = collect(answers(y=scores.reshape(shape)), numbered(40), METRICS["agreement"])
        assert made.reading.threshold == turn
        assert [int(row[0]) for row in decisions(made, turn)] == [int(logit > 0) for logit in logits]


def test_a_map_of_one_channel_decides_at_every_position_instead_of_agreeing_with_whatever_comes(numbered: Any, answers: Any) -> None:
    maps = np.random.default_rng(0).random((20, 1, 6, 5)).astype(np.float32)
    made = collect(answers(y=maps), numbered(20), METRICS["agreement"])
    assert (made.reading.axis, made.reading.threshold) == (None, 0.5)
    other = collect(answers(y=1 - maps), numbered(20), METRICS["agreement"], like=made.reading)
    assert not any((one == two).any() for one, two in zip(decisions(made, 0.5), decisions(other, 0.5), strict=True))


def test_the_output_that_fits_the_labels_is_read_and_named_among_several(numbered: Any, answers: Any) -> None:
    labels = np.arange(20) % 3
    run = answers(features=np.zeros((20, 2), np.float32), logits=np.eye(3, dtype=np.float32)[labels], extra=np.zeros((20, 7), np.float32))
    made = collect(run, numbered(20), METRICS["top1"], labels)
    assert made.reading.output == "logits"
    assert "'logits'" in made.reading.note
    assert collect(run, numbered(20), METRICS["cosine"]).reading.output == "features"


@pytest.mark.parametrize(("shape", "axis"), [((5, 4, 6), 0), ((4, 6, 5), 2)])
def test_maps_are_read_along_the_axis_that_the_labels_lack(numbered: Any, answers: Any, shape: tuple[int, ...], axis: int) -> None:
    maps = np.random.default_rng(0).random((8, *shape)).astype(np.float32)
    labels = maps.argmax(axis + 1)
    assert labels.shape == (8, 4, 6)
    made = collect(answers(y=maps), numbered(8), METRICS["top1"], labels)
    assert made.reading.axis == axis
    assert (made.only.stacked() == labels.reshape(8, -1)).all()


def test_feeds_of_a_fixed_batch_count_every_sample(numbered: Any, answers: Any) -> None:
    labels = np.arange(12) % 3
    run = answers(y=np.eye(3, dtype=np.float32)[labels])
    made = collect(run, numbered(12, batch=4), METRICS["top1"], labels.reshape(3, 4))
    assert len(made) == 12
    assert (made.only.stacked()[:, 0] == labels).all()


def test_nan_and_infinity_make_no_decision_but_a_masked_class_is_none(numbered: Any, answers: Any) -> None:
    scores = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    scores[1, 0], scores[2, 0], scores[3, 1] = np.nan, np.inf, -np.inf
    made = collect(answers(y=scores), numbered(4), METRICS["agreement"])
    assert made.broken.tolist() == [False, True, True, False]
    assert [int(row[0]) for row in decisions(made, None)] == [0, -1, -1, 0]


def test_outputs_that_a_metric_cant_read_are_refused_with_what_was_found(numbered: Any, answers: Any) -> None:
    with pytest.raises(InputError, match=r"y float32 \[3\].*classes up to 9"):
        collect(answers(y=np.zeros((10, 3), np.float32)), numbered(10), METRICS["top1"], np.arange(10))
    with pytest.raises(InputError, match="no sample"):
        collect(answers(y=np.zeros((1, 3))), numbered(0), METRICS["top1"], np.arange(0))
