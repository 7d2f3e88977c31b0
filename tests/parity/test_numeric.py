"""The numeric gate and held-out data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.errors import InputError
from optimizer.parity import lossless
from optimizer.parity.gate import held_out, judge_lossless
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
