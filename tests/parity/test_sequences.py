"""Samples of a sequence are no independent evidence: the gate counts stretches of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from optimizer.parity.gate import judge
from optimizer.parity.metrics import METRICS
from optimizer.parity.outputs import Outputs, collect
from optimizer.parity.scores import Scores, in_blocks, scores_of
from optimizer.parity.statistics import Contrast, clopper_pearson
from optimizer.sequence import independent_after


def _scores(flipped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parent's and engine's two scores a sample; where flipped the engine decides for the other class."""
    parent = np.tile(np.float32([1, 0]), (len(flipped), 1))
    return parent, np.where(flipped[:, None], parent[:, ::-1], parent)


def test_one_block_a_sample_is_the_plain_gate(asked: Callable[..., Any], answers: Callable[..., Any], numbered: Any) -> None:
    parent, engine = _scores(np.arange(1000) % 250 == 0)
    question = asked(parent, None, "agreement")
    plain = judge(question, answers(y=engine), numbered(1000), gated_on="this CPU")
    assert judge(question, answers(y=engine), numbered(1000), gated_on="this CPU", block=1) == plain


def test_samples_that_hang_together_are_fewer_than_they_look(asked: Callable[..., Any], answers: Callable[..., Any], numbered: Any) -> None:
    parent, engine = _scores(np.zeros(1000, bool))
    question = asked(parent, None, "agreement")
    assert judge(question, answers(y=engine), numbered(1000), gated_on="this CPU").verdict == "pass"
    found = judge(question, answers(y=engine), numbered(1000), gated_on="this CPU", block=4)
    assert found.verdict == "inconclusive"
    assert "below 1,196 samples (here 1,000)" in found.reason
    assert any("4 consecutive samples count as one, in all 250" in note for note in found.notes)
    assert found.samples == 1000
    assert found.samples_needed is not None
    assert found.samples_needed > 1196


def test_a_loss_in_one_stretch_is_bounded_wider_than_the_same_loss_spread_out(
    asked: Callable[..., Any], answers: Callable[..., Any], numbered: Any
) -> None:
    stretch, spread = np.zeros(6000, bool), np.zeros(6000, bool)
    stretch[:60], spread[::100] = True, True
    highs = []
    for flipped in (stretch, spread):
        parent, engine = _scores(flipped)
        highs.append(judge(asked(parent, None, "agreement"), answers(y=engine), numbered(6000), gated_on="this CPU", block=10).high)
    assert highs[0] > 1.2 * highs[1]


def test_the_score_of_a_block_is_the_mean_of_its_samples(answers: Callable[..., Any], numbered: Any) -> None:
    parent, engine = _scores(np.arange(12) < 3)
    outputs = [collect(answers(y=table), numbered(12), METRICS["agreement"]) for table in (parent, engine)]
    scores = in_blocks(scores_of(METRICS["agreement"], outputs[1], outputs[0], None), 4)
    assert scores.each.tolist() == [0.25, 1.0, 1.0]
    assert scores.counted == 3
    assert scores.value == 0.75


def test_a_jackknife_leaves_out_stretches_of_a_sequence(answers: Callable[..., Any], numbered: Any) -> None:
    labels = (np.arange(300) // 5) % 2
    table = labels.astype(np.float32)[:, None] + np.sin(np.arange(300) / 7)[:, None].astype(np.float32)
    kept = collect(answers(y=table), numbered(300), METRICS["auc"], labels)
    in_order = Outputs(kept.reading, kept.rows, kept.broken, in_sequence=True)
    plain, stretched = (scores_of(METRICS["auc"], outputs, outputs, labels) for outputs in (kept, in_order))
    assert plain.value == stretched.value
    assert plain.pseudo is not None
    assert stretched.pseudo is not None
    assert not np.array_equal(plain.pseudo, stretched.pseudo)
    assert len(in_blocks(stretched, 30).pseudo) == 10


def test_at_the_edge_of_the_budget_a_sequence_passes_falsely_in_at_most_one_of_twenty() -> None:
    """Errors that stay alike from step to step (autoregressive, 0.9) flip 5 % of the answers: as single samples over 20 % would pass."""
    draw = np.random.default_rng(0)
    samples, tries, cut = 1000, 300, 1.6449
    noise = draw.standard_normal((samples, tries))
    errors = noise.copy()
    for step in range(1, samples):
        errors[step] = 0.9 * errors[step - 1] + np.sqrt(1 - 0.81) * noise[step]
    blocks = [_high(error > cut, independent_after(np.abs(error))) < 0.05 for error in errors.T]
    single = [_high(error > cut, 1) < 0.05 for error in errors.T]
    assert np.mean(blocks) <= 0.05
    assert np.mean(single) > 0.2


def _high(flipped: np.ndarray, block: int) -> float:
    """The upper bound of the rate of flipped answers, as the gate takes it."""
    same = 1.0 - flipped
    scores = in_blocks(Scores(float(same.mean()), same, None, len(same), 0), block)
    if scores.binary:
        return clopper_pearson(int((scores.each == 0).sum()), len(scores.each)).high
    return Contrast(np.ones(len(scores.each)), scores.each, True, 1.0, len(scores.each)).difference().high
