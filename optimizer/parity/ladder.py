"""The parity ladder: the parent against each later form of the model, on the same samples, beside the output's own sensitivity."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from kernels.target import this_cpu
from optimizer.engine import Arrays, Rung
from optimizer.model import layers
from optimizer.parity.metrics import METRICS, Metric, equal_share
from optimizer.parity.outputs import collect, decisions
from optimizer.reference import Reference, sensitivity

Run = Callable[[Arrays], Arrays]

ONE_SIZE = 2.0
"""An error up to this many times the sensitivity is of one size with it."""

_SENSED = 4
"""Samples on which the sensitivity is measured; the median counts."""

_WATCHED = 32
"""Layers whose results are held at a time."""


@dataclass(frozen=True)
class Difference:
    """How far outputs are from the parent's: energy of parent and error, largest difference; any NaN or infinity makes them inf."""

    signal: float
    error: float
    max_abs: float

    @property
    def relative(self) -> float:
        """Root of error energy over signal energy."""
        return math.sqrt(self.error / self.signal) if self.signal else (math.inf if self.error else 0.0)

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise in dB; infinite where nothing differs."""
        return -20.0 * math.log10(self.relative) if self.relative else math.inf


def difference(parent: NDArray[Any], other: NDArray[Any]) -> Difference:
    """Of two arrays of one shape, in float64. Places where both hold the same NaN or infinity count as equal."""
    if parent.shape != other.shape:
        return Difference(1.0, math.inf, math.inf)
    one, two = parent.astype(np.float64), other.astype(np.float64)
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    gap = np.where(same, 0.0, two) - np.where(same, 0.0, one)
    gap = np.where(np.isfinite(gap), np.abs(gap), np.inf)
    finite = one[np.isfinite(one)]
    return Difference(float(finite @ finite), float(np.square(gap).sum()), float(gap.max(initial=0.0)))


def rungs(
    parent: ir.Model, later: Sequence[tuple[str, Run]], samples: Sequence[Arrays], metric: Metric = METRICS["agreement"]
) -> tuple[Rung, ...]:
    """One Rung for each later form, in the order given: agreement of decisions, SQNR, largest difference, sensitivity.

    `agreement` is None where `metric` does not read decisions.  `samples` are few: they are run for every rung.
    """
    reference = Reference(parent, threads=this_cpu().cores)
    try:
        truth = [reference.run(feeds) for feeds in samples]
        sensed = float(np.median([sensitivity(reference.run, feeds) for feeds in samples[:_SENSED]])) if samples else None
    finally:
        reference.close()
    answers = collect(_replay(truth), samples, metric) if metric.keeps == "decision" and samples else None
    told = []
    for name, run in later:
        found = [run(feeds) for feeds in samples]
        gap = _summed(truth, found)
        agreement = None
        if answers is not None:
            others = collect(_replay(found), samples, metric, like=answers.reading)
            pairs = zip(decisions(others, answers.reading.threshold), decisions(answers, answers.reading.threshold), strict=True)
            agreement = float(np.mean([equal_share(*pair) for pair in pairs]))
        told.append(Rung(name, metric.name, agreement, gap.sqnr_db, gap.max_abs, sensed, note=_note(gap.relative, sensed)))
    return tuple(told)


def _replay(outputs: Sequence[Arrays]) -> Run:
    """A run that gives recorded outputs in order."""
    recorded = iter(outputs)
    return lambda _: next(recorded)


def _summed(truth: Sequence[Arrays], found: Sequence[Arrays]) -> Difference:
    """The difference over all samples of the output that differs most for its size."""
    worst: Difference | None = None
    for name in truth[0] if truth else ():
        if truth[0][name].dtype.kind != "f":
            continue
        parts = [difference(one[name], other[name]) for one, other in zip(truth, found, strict=True)]
        whole = Difference(sum(p.signal for p in parts), sum(p.error for p in parts), max(p.max_abs for p in parts))
        if worst is None or whole.relative > worst.relative:
            worst = whole
    return worst if worst is not None else Difference(0.0, 0.0, 0.0)


def _note(relative: float, sensed: float | None) -> str:
    if sensed is None or relative == 0.0 or relative > ONE_SIZE * sensed:
        return ""
    return (
        f"the error ({relative:.1e} of the output) is no larger than what a millionth of the input does to it ({sensed:.1e}): "
        "this comparison shows nothing"
    )


def worst_layer(parent: ir.Model, later: ir.Model, feeds: Arrays) -> str | None:
    """The layer of `parent` at which the error of `later` grows most, on one sample; None where no tensor of theirs differs.

    Both write a layer's result under one name; layers that `later` lost are passed over.  A few layers are watched at a time, so
    that never all activations are in memory.
    """
    there = {value.name for node in later.graph for value in node.outputs}
    tensors = {layer.name: layer.outputs[0] for layer in layers(parent) if layer.outputs and layer.outputs[0] in there}
    errors: dict[str, float] = {}
    for names in batched(tensors, _WATCHED):
        watch = [tensors[name] for name in names]
        with closing(Reference(parent, watch)) as one, closing(Reference(later, watch)) as other:
            truth, found = one.run(feeds), other.run(feeds)
        errors |= {name: difference(truth[tensors[name]], found[tensors[name]]).relative for name in names}
    return first_divergence(errors)


def first_divergence(errors: Mapping[str, float]) -> str | None:
    """The layer at which the error grows most over the worst one before it; `errors` are relative, in topological order."""
    worst_so_far, steepest, found = 0.0, 0.0, None
    for layer, relative in errors.items():
        growth = relative - worst_so_far
        if growth > steepest:
            steepest, found = growth, layer
        worst_so_far = max(worst_so_far, relative)
    return found


def batched(names: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    """Runs of `size` names, the last one perhaps shorter."""
    left = iter(names)
    while part := tuple(islice(left, size)):
        yield part
