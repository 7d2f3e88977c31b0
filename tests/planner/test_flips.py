"""The predicted flip rate agrees with real flips, holds at every size of sample, and knows what is a decision."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from optimizer.parity.metrics import METRICS
from optimizer.parity.outputs import Reading
from optimizer.planner.flips import Flips, change, flips, read

CLASSES = Reading("y", 0)
SCORES = Reading("y", None, 0.0)


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def network(samples: int, seed: int = 0, classes: int = 10) -> NDArray[Any]:
    """Logits as a trained classifier has them: the winner ahead by anything from nothing to far."""
    draw = np.random.default_rng(seed)
    logits = draw.standard_normal((samples, classes))
    logits[np.arange(samples), draw.integers(0, classes, samples)] += draw.exponential(6.0, samples)
    return logits


def predicted(parent: NDArray[Any], got: NDArray[Any], reading: Reading = CLASSES) -> Flips:
    return flips([change(want, have, reading) for want, have in zip(parent, got, strict=True)])


@pytest.mark.parametrize("size", [0.01, 0.03, 0.1])
@pytest.mark.parametrize("as_probabilities", [False, True])
def test_the_predicted_rate_is_that_of_thousands_of_samples(size: float, as_probabilities: bool) -> None:
    many = network(40_000)
    noise = size * np.random.default_rng(1).standard_normal(many.shape)
    real = (many.argmax(-1) != (many + noise).argmax(-1)).mean()
    form = softmax if as_probabilities else np.asarray
    rates = [predicted(form(many[rows]), form(many[rows] + noise[rows])) for rows in np.arange(30 * 100).reshape(30, 100)]
    assert np.median([found.rate for found in rates]) == pytest.approx(real, rel=0.35)
    inside = [found.low <= real <= found.high for found in rates]
    assert np.mean(inside) >= 0.85
    seen = [found.observed for found in rates]
    assert np.std([found.rate for found in rates]) < 0.75 * np.std(seen)


def test_nothing_that_moves_flips_nothing_and_everything_that_breaks_flips() -> None:
    parent = network(30)
    same = predicted(parent, parent.copy())
    assert (same.rate, same.low, same.observed) == (0.0, 0.0, 0.0)
    for value in (np.nan, np.inf):
        broken = parent.copy()
        broken[:, 3] = value
        found = predicted(parent, broken)
        assert (found.rate, found.observed, found.high, found.whole) == (1.0, 1.0, 1.0, 1.0)


def test_one_broken_sample_does_not_spoil_what_is_known_of_the_others() -> None:
    parent = network(40)
    got = parent + 1e-4
    got[0, 0] = np.nan
    found = predicted(parent, got)
    assert found.rate == pytest.approx(1 / 40, rel=0.05)


def test_the_prediction_stays_within_what_the_counted_flips_allow() -> None:
    parent = np.tile([[9.0, 0.0, 0.0]], (100, 1))
    got = parent.copy()
    got[:30, 1] = 100.0
    found = predicted(parent, got)
    assert found.low >= 0.22
    calm = np.tile([[1e-3, 0.0, 0.0]], (100, 1))
    nudged = predicted(calm, calm + np.array([0.5, 0.0, 0.0]))
    assert nudged.observed == 0.0
    assert nudged.rate < 0.03


def test_few_samples_leave_wide_bounds_and_many_narrow_ones() -> None:
    parent = network(3200)
    got = parent + 0.1 * np.random.default_rng(2).standard_normal(parent.shape)
    widths = [(found := predicted(parent[:count], got[:count])).high / found.rate for count in (2, 32, 3200)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 3.0
    assert widths[-1] < 1.7


def test_a_masked_class_is_no_rival() -> None:
    parent = np.hstack([network(50, classes=4), np.full((50, 6), -np.inf)])
    got = parent + 0.01
    assert predicted(parent, got).rate < 1e-6
    far = np.where(np.isinf(parent), -1e9, parent)
    rounded = np.where(np.isinf(parent), -1e9 + 64.0, parent)
    assert predicted(far, rounded).rate == 0.0


def test_a_sequence_counts_its_steps_and_tells_how_many_samples_change_anywhere() -> None:
    steps = [network(count, seed=count) for count in (20, 35, 50)]
    draw = np.random.default_rng(3)
    got = [logits + 0.05 * draw.standard_normal(logits.shape) for logits in steps]
    found = flips([change(want, have, Reading("y", 1)) for want, have in zip(steps, got, strict=True)])
    assert 0.0 < found.rate < 0.05
    assert found.whole > 5 * found.rate
    assert found.samples == 3


def test_a_map_of_classes_is_decided_at_each_position_along_its_first_axis() -> None:
    logits = network(100 * 100, classes=5).T.reshape(5, 100, 100)
    moved = logits + 0.1 * np.random.default_rng(4).standard_normal(logits.shape)
    found = predicted(logits[None], moved[None])
    real = (logits.argmax(0) != moved.argmax(0)).mean()
    assert found.observed == real
    assert found.rate == pytest.approx(real, rel=0.3)


@pytest.mark.parametrize("probable", [False, True])
def test_a_binary_score_turns_at_its_threshold(probable: bool) -> None:
    draw = np.random.default_rng(5)
    scores = 3 * draw.standard_normal((4000, 1))
    got = scores + 0.2 * draw.standard_normal(scores.shape)
    form = (lambda x: 1 / (1 + np.exp(-x))) if probable else np.asarray
    found = predicted(form(scores), form(got), Reading("y", None, 0.5 if probable else 0.0))
    assert found.observed == ((scores > 0) != (got > 0)).mean()
    assert found.rate == pytest.approx(found.observed, rel=0.3)


def test_decisions_without_scores_are_counted_and_no_flip_is_no_proof() -> None:
    parent = np.arange(32)[:, None]
    found = predicted(parent, parent.copy(), Reading("y"))
    assert 0.0 < found.rate < 0.03
    assert found.high > 0.08
    assert predicted(parent, parent + 1, Reading("y")).rate > 0.9


def test_another_number_of_answers_counts_as_changed_ones() -> None:
    steps = network(6)
    assert flips([change(steps, steps[:5], Reading("y", 1))]).rate == 1.0
    assert flips([change(np.arange(4), np.arange(3), Reading("y"))]).observed == 1.0


def outputs(count: int, *shape: int, name: str = "y", dtype: type = np.float32) -> Sequence[dict[str, NDArray[Any]]]:
    draw = np.random.default_rng(6)
    return [{name: draw.random(shape).astype(dtype)} for _ in range(count)]


def test_what_decides_is_read_as_the_gate_reads_it() -> None:
    feeds = [{"x": np.zeros((1, 3), np.float32)} for _ in range(3)]
    agreement, top5 = METRICS["agreement"], METRICS["top5"]

    def reading(metric: str, *shape: int) -> Reading | None:
        return read(METRICS[metric], feeds, outputs(3, 1, *shape))

    assert reading("agreement", 10) == Reading("y", 0)
    assert reading("top1", 20, 37) == Reading("y", 1)
    assert reading("agreement", 21, 8, 8) == Reading("y", 0)
    for shape in ((1,), (1, 8, 8)):
        found = reading("agreement", *shape)
        assert found is not None
        assert (found.axis, found.threshold) == (None, 0.5)
    assert [reading(name, 384) for name in ("cosine", "mae", "auc")] == [None, None, None]
    assert read(agreement, [], []) is None
    gates = Reading("other", 2)
    assert read(top5, feeds, outputs(3, 1, 10), like=gates) == gates
    assert read(METRICS["mae"], feeds, outputs(3, 1, 10), like=gates) is None
    assert read(agreement, feeds, outputs(3, 1, 10, dtype=np.complex64)) is None


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "screening.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_the_screening", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_under_a_user_s_metric_a_text_of_probabilities_is_one_answer_and_a_map_of_scores_is_its_pixels() -> None:
    mine = replace(METRICS["agreement"], name="mine", keeps="outputs", user=nullcontext)
    texts = softmax(network(8 * 20).reshape(8, 1, 20, 10))
    found = read(mine, [{}] * 8, [{"y": text} for text in texts])
    assert found is not None
    assert (found.output, found.axis, found.whole) == ("y", 1, True)
    other = softmax(np.log(texts) + 0.3 * np.random.default_rng(3).standard_normal(texts.shape))
    changes = [change(want[0], have[0], found) for want, have in zip(texts, other, strict=True)]
    one, each = flips(changes, found.whole), flips(changes)
    assert one.rate == pytest.approx(one.whole)
    assert one.rate > 3 * each.rate
    assert one.observed >= each.observed
    pixels = read(mine, [{}] * 4, [{"y": softmax(network(1 * 30, classes=2)).reshape(1, 30, 2)[:, :, :1]} for _ in range(4)])
    assert pixels is not None
    assert (pixels.axis, pixels.threshold, pixels.whole) == (None, 0.5, False)
    assert read(mine, [{}] * 4, [{"y": network(1, seed)} for seed in range(4)]) is None  # an embedding, for all that is known


@pytest.mark.slow
def test_on_a_real_model_32_samples_tell_what_hundreds_of_held_out_ones_show(benchmark: ModuleType, assets: Path) -> None:
    model = benchmark.imported(assets, "resnet8_cifar10.h5")
    near, far = benchmark.cifar(assets)
    near, far = near[:260], far[:800]
    table = benchmark.calibrate(model, [{model.inputs[0].name: x[None]} for x in near[:60]], key={})
    graphs = [*benchmark.plans(model, table, (127, 31), ("minmax",)), *benchmark.alone(model, table, (31,))][::3]
    parent, *tried = (benchmark.ran(graph, near[60:], far) for graph in (model.graph, *graphs))
    found = benchmark.agreement(parent, tried, 32, draws=6)
    assert len(found.real) >= 8
    factors = found.factors(0.01, 0.2)
    assert np.mean((factors > 0.5) & (factors < 2.0)) > 0.85
    assert min(found.covered(len(far))) > 0.9
    assert found.order(found.rate) > max(found.order(found.observed) + 0.05, 0.85)
