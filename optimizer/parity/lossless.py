"""The numeric gate, for an engine with no lossy step: as near to the truth as the parent's own rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.engine import Arrays, Parity
from optimizer.reference import NoTruthError, Reference, float64

TIMES = 8.0
"""How many times the parent's own rounding error an engine's may be: another order of adding up is allowed, a lost bit is not."""

FEEDS = 4
"""Samples that are compared: float64 in numpy is slow, and rounding errors show on every sample."""

_ULP = float(np.finfo(np.float32).eps)


def judge_lossless(parent: ir.Model, engine: Callable[[Arrays], Arrays], feeds: Sequence[Arrays], *, gated_on: str) -> Parity:
    """PASS where each output's largest difference from float64 stays within TIMES the parent's own in float32.

    Of the first FEEDS feeds the worst output counts; `parent` and `engine` hold its largest differences, `budget` what was
    allowed.  Where float64 can't run the graph, what the parent's output moves when half of its input's numbers move by one
    float32 rounding step stands for its rounding error; a note says so.
    """
    reference = Reference(parent)
    notes: tuple[str, ...] = ()
    worst: tuple[float, float, float, str] | None = None
    try:
        for feed in feeds[:FEEDS]:
            rounded = reference.run(feed)
            try:
                truth, moved = float64(parent, feed), rounded
            except NoTruthError as error:
                truth, moved = rounded, reference.run(_nudged(feed))
                notes = (f"{error.reason}: the parent's own variation under a rounding step of its input stands for its rounding error",)
            found = engine(feed)
            for name, exact in truth.items():
                own, other = _distance(moved[name], exact), _distance(found[name], exact)
                allowed = TIMES * max(own, _floor(exact))
                if worst is None or not other * worst[2] <= worst[1] * allowed:
                    worst = (own, other, allowed, name)
    finally:
        reference.close()
    if worst is None:
        return Parity("inconclusive", _METRIC, None, None, None, None, None, None, 0, None, gated_on, "there is no sample to compare on")
    own, other, allowed, name = worst
    passed = other <= allowed
    verb = "is within" if passed else "is more than"
    reason = f"no lossy step: the largest difference from float64, in {name!r}, {verb} {TIMES:g} times the parent's own rounding error"
    count = min(len(feeds), FEEDS)
    return Parity("pass" if passed else "fail", _METRIC, own, other, allowed, other, other, other, count, None, gated_on, reason, notes)


_METRIC = "max_abs"


def _distance(found: NDArray[Any], exact: NDArray[Any]) -> float:
    """Largest absolute difference; infinity where shapes differ or one is NaN or infinite and the other is not."""
    if found.shape != exact.shape:
        return float("inf")
    if exact.size == 0 or exact.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(found, exact) else float("inf")
    one, other = found.astype(np.float64), exact.astype(np.float64)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    differences = np.abs(np.where(same, 0.0, one) - np.where(same, 0.0, other))
    return float(np.where(np.isnan(differences), np.inf, differences).max())


def _floor(exact: NDArray[Any]) -> float:
    """One float32 rounding step of the largest number: the least that any float32 computation may be off; 0 for integers."""
    if exact.dtype.kind != "f" or not np.isfinite(exact).any():
        return 0.0
    return _ULP * float(np.abs(exact[np.isfinite(exact)]).max())


def _nudged(feed: Arrays) -> dict[str, NDArray[Any]]:
    draw = np.random.default_rng(0)
    return {
        name: np.asarray(array * (1.0 + _ULP * draw.integers(0, 2, array.shape)), array.dtype) if array.dtype.kind == "f" else array
        for name, array in feed.items()
    }
