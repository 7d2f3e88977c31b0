"""The numeric gate, held-out data and the ladder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.errors import InputError
from optimizer.parity import ladder, lossless
from optimizer.parity.gate import held_out, judge_lossless
from optimizer.parity.ladder import difference, first_divergence, rungs, worst_layer
from optimizer.reference import NoTruthError, Reference


def _noisy(run: Any, size: float) -> Any:
    draw = np.random.default_rng(0)
    return lambda feed: {name: y * (1 + size * draw.standard_normal(y.shape)).astype(np.float32) for name, y in run(feed).items()}


def test_float32_in_another_order_passes_and_half_precision_fails(model: ir.Model, feeds: Any) -> None:
    optimized = Reference(model, optimized=True)
    parity = judge_lossless(model, optimized.run, feeds[:1], gated_on="here")
    assert (parity.verdict, parity.samples, parity.metric) == ("pass", 1, "max_abs")
    assert parity.low <= parity.drop <= parity.high <= parity.budget
    coarse = judge_lossless(model, _noisy(optimized.run, 1e-3), feeds, gated_on="here")
    assert coarse.verdict == "fail"
    assert "'y'" in coarse.reason


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_engine_that_is_nan_on_one_sample_fails(model: ir.Model, feeds: Any, bad: float) -> None:
    reference = Reference(model)
    seen = iter([1.0, 1.0, 1.0, bad])
    parity = judge_lossless(model, lambda feed: {"y": reference.run(feed)["y"] * np.float32(next(seen))}, feeds, gated_on="here")
    assert parity.verdict == "fail"


def test_where_float64_cant_run_the_parents_own_variation_stands_in_and_is_told(
    model: ir.Model, feeds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(_: ir.Model, __: Any) -> Any:
        raise NoTruthError("no float64 here")

    monkeypatch.setattr(lossless, "float64", refusing)
    reference = Reference(model)
    parity = judge_lossless(model, reference.run, feeds, gated_on="here")
    assert parity.verdict == "pass"
    assert "no float64 here" in parity.notes[0]
    assert judge_lossless(model, _noisy(reference.run, 1e-3), feeds, gated_on="here").verdict == "fail"


def test_without_a_sample_nothing_is_decided(model: ir.Model) -> None:
    assert judge_lossless(model, lambda _: {}, [], gated_on="here").verdict == "inconclusive"


@dataclass(frozen=True)
class Printed:
    prints: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.prints)

    def fingerprints(self) -> tuple[bytes, ...]:
        return self.prints

    def take(self, indices: list[int]) -> Printed:
        return replace(self, prints=tuple(self.prints[i] for i in indices))


def test_samples_that_calibration_saw_are_left_out_and_counted() -> None:
    evaluation: Any = Printed(tuple(b"%d" % i for i in range(300)))
    calibration: Any = Printed((b"7", b"299", b"a"))
    kept, left_out = held_out(evaluation, calibration)
    assert (len(kept), left_out) == (298, 2)
    assert b"7" not in kept.fingerprints()
    assert held_out(evaluation, None) == (evaluation, 0)
    assert held_out(evaluation, Printed((b"a",)))[1] == 0  # type: ignore[arg-type]


def test_more_than_one_percent_shared_is_refused() -> None:
    evaluation: Any = Printed(tuple(b"%d" % i for i in range(300)))
    with pytest.raises(InputError, match="4 of the 300"):
        held_out(evaluation, Printed((b"0", b"1", b"2", b"3")))  # type: ignore[arg-type]
    assert held_out(evaluation, Printed((b"0", b"1", b"2")))[1] == 3  # type: ignore[arg-type]


def test_rungs_tell_error_and_sensitivity_side_by_side(model: ir.Model, feeds: Any) -> None:
    reference = Reference(model)
    near, far = rungs(model, [("fused", Reference(model, optimized=True).run), ("int8", _noisy(reference.run, 0.01))], feeds)
    assert (near.rung, far.rung) == ("fused", "int8")
    assert near.agreement == 1.0
    assert far.sqnr_db == pytest.approx(40, abs=3)
    assert far.max_abs > near.max_abs
    assert 1e-8 < far.output_sensitivity == near.output_sensitivity < 1e-5
    assert far.note == ""


def test_an_error_as_large_as_the_sensitivity_shows_nothing_and_says_so(model: ir.Model, feeds: Any) -> None:
    reference = Reference(model)
    rung = rungs(model, [("other", _noisy(reference.run, 3e-7))], feeds)[0]
    assert "shows nothing" in rung.note


def test_differences_count_nan_and_other_shapes_as_infinite() -> None:
    one = np.array([1.0, 2.0, np.inf])
    assert difference(one, one.copy()).max_abs == 0.0
    assert difference(one, one.copy()).sqnr_db == np.inf
    assert difference(one, np.array([1.0, np.nan, np.inf])).max_abs == np.inf
    assert difference(one, one[:2]).max_abs == np.inf
    assert difference(np.array([3.0, 4.0]), np.array([3.0, 4.5])).sqnr_db == pytest.approx(20)


def test_the_worst_layer_is_the_one_where_the_error_enters(monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_divergence({"one": 0.001, "two": 0.002, "three": 0.3, "four": 0.31}) == "three"
    assert first_divergence({"one": 0.0}) is None
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[1,4] x) => (float[1,4] y)
    <float[4] w = {1.0, 2.0, 3.0, 4.0}, float[4] b = {0.0, 0.0, 0.0, 0.0}> { a = Mul(x, w)  c = Add(a, b)  d = Relu(c)  y = Mul(d, w) }"""
    parent = ir.from_onnx_text(text)
    for name, node in zip(("one", "two", "three", "four"), parent.graph, strict=True):
        node.name = name
    later = parent.clone()
    later.graph.initializers["b"].const_value = ir.tensor(np.full(4, 0.5, np.float32))
    monkeypatch.setattr(ladder, "_WATCHED", 3)
    feeds = {"x": np.ones((1, 4), np.float32)}
    assert worst_layer(parent, later, feeds) == "two"
    assert worst_layer(parent, parent, feeds) is None
