from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.data import open_samples
from optimizer.errors import InputError
from optimizer.model import Model, Source
from optimizer.parity.gate import NoQuestion, Question, judge, question_from_words
from optimizer.preprocessing import Preprocessing
from optimizer.reference import Reference
from optimizer.request import Request


@pytest.fixture
def world(model: ir.Model, tmp_path: Path) -> Any:
    """A model and a function that opens 320 evaluation samples for it, with labels or without."""
    made = Model(model, Source("onnx", "net.onnx", "0" * 64))
    x = np.random.default_rng(0).standard_normal((320, 64)).astype(np.float32)

    def samples(labels: np.ndarray | None) -> Any:
        np.savez(tmp_path / "data.npz", x=x, **({} if labels is None else {"y": labels}))
        return open_samples("data.npz", made.inputs, Preprocessing(), tmp_path)

    return made, samples, x


def test_the_question_follows_from_the_words_and_the_parent_passes_it(world: Any) -> None:
    made, samples, x = world
    reference = Reference(made.graph)
    labels = np.array([int(reference.run({"x": row[None]})["y"].argmax()) for row in x])
    data = samples(labels)
    question = question_from_words(Request(Path("m"), Path("o"), max_drop="2%", min_metric=0.9), made, data)
    assert isinstance(question, Question)
    assert (question.metric.name, question.scores.value, question.threshold) == ("top1", 1.0, 0.98)
    assert judge(question, reference.run, data, gated_on="here").verdict == "pass"


def test_a_regression_without_labels_is_inconclusive_with_the_reason(world: Any) -> None:
    made, samples, _ = world
    data = samples(None)
    question = question_from_words(Request(Path("m"), Path("o"), task="regression"), made, data)
    assert isinstance(question, NoQuestion)
    parity = judge(question, lambda feeds: feeds, data, gated_on="here")
    assert parity.verdict == "inconclusive"
    assert "no default verdict" in parity.reason


def test_a_guess_stands_in_the_notes_and_wrong_words_are_refused(world: Any) -> None:
    made, samples, _ = world
    data = samples(None)
    question = question_from_words(Request(Path("m"), Path("o")), made, data)
    assert isinstance(question, Question)
    assert "guessed" in question.notes[0]
    for words in ({"metric": "topp"}, {"max_drop": "1"}, {"metric": "top1"}):
        with pytest.raises(InputError):
            question_from_words(Request(Path("m"), Path("o"), **words), made, data)
