"""The parity ladder: the parent and each later form of the model on the same samples; which step breaks, and at which layer.

A step breaks where two forms differ by more than rounding at the precision of the later one explains (`rounding`); there
`divergence` looks for the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.engine import Arrays, Rung, check
from optimizer.errors import InputError
from optimizer.model import TensorSpec, spec
from optimizer.parity.difference import Difference, difference, total
from optimizer.parity.divergence import Form, divergences, explained, first_divergence, ratio
from optimizer.parity.metrics import METRICS, Metric, equal_share
from optimizer.parity.outputs import collect, decisions
from optimizer.parity.rounding import lossy, planned
from optimizer.progress import Track, silent
from optimizer.reference import Reference, sensitivity

Run = Callable[[Arrays], Arrays]

Sizes = Mapping[str, Sequence[Arrays]]
"""Feeds by what is to be said of their size: `as the data has it`, `the largest, x 1x3x512x512`."""

ONE_SIZE = 2.0
"""An error up to this many times the sensitivity is of one size with it."""

BLIND = 0.3
"""Where rounding explains this part of an output, hardly any fault would show."""

_SENSED = 4
"""Samples on which the sensitivity is measured; the median counts."""

_LOOKED_AT = 2
"""Samples on which a layer is looked for."""


@dataclass(frozen=True)
class Answers:
    """What a form gave: its outputs by size, one mapping a feed; and why it could not be run, by size."""

    outputs: Mapping[str, Sequence[Arrays]]
    failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Climbed:
    """How far the ladder was climbed: the rungs so far, what the parent gave, and the form that stands highest with what it gave.

    `sensed` is the outputs' sensitivity to their input, None until a graph has been run.
    """

    form: Form
    parent: Answers
    answers: Answers
    sensed: float | None = None
    rungs: tuple[Rung, ...] = ()

    @property
    def broken(self) -> Rung | None:
        """The first rung that breaks."""
        return next((rung for rung in self.rungs if rung.breaks), None)


def start(form: Form, sizes: Sizes) -> Climbed:
    """The foot of the ladder: the parent. A size that it can't run itself is no measure of the others, and left out."""
    answers = _answers(form, sizes)
    return Climbed(form, answers, answers, _sensed(form, answers, sizes))


def climb(climbed: Climbed, form: Form, sizes: Sizes, metric: Metric = METRICS["agreement"], track: Track = silent) -> Climbed:
    """One rung more: `form` against the one that stood highest (does it break, and where), and against the parent (how far)."""
    track(f"parity ladder: {form.name}", 0, 0)
    # A size that the form before could not be run in is left out: the step that broke there has been told.
    answers = _answers(form, {name: sizes[name] for name in climbed.answers.outputs})
    sensed = climbed.sensed if climbed.sensed is not None else _sensed(form, answers, sizes)
    fault = _fault(climbed.form, form, climbed.answers, answers, sizes)
    feeds = [*chain.from_iterable(sizes[size] for size in answers.outputs)]
    truth = [*chain.from_iterable(climbed.parent.outputs[size] for size in answers.outputs)]
    found = [*chain.from_iterable(answers.outputs.values())]
    gap = _worst_gap(truth, found)
    rung = Rung(
        rung=form.name,
        metric=metric.name,
        agreement=_agreement(feeds, truth, found, metric),
        sqnr_db=gap.sqnr_db if found else None,
        max_abs=gap.max_abs if found else None,
        output_sensitivity=sensed,
        worst_layer=_layer(climbed.form, form, fault, sizes),
        note=fault.note if fault.breaks else _blind(fault) or _note(gap.relative, sensed),
        against=climbed.form.name,
        difference=fault.error,
        explained=fault.explained,
        breaks=fault.breaks,
        sizes=tuple(answers.outputs),
    )
    return Climbed(form, climbed.parent, answers, sensed, (*climbed.rungs, rung))


def _answers(form: Form, sizes: Sizes) -> Answers:
    """Runs a form in the sizes that it is meant to take; one that can't even be opened gives nothing in any."""
    inputs = tuple(spec(value) for value in form.graph.graph.inputs)
    meant = {name: feeds for name, feeds in sizes.items() if all(_fits(feed, inputs) for feed in feeds)}
    outputs: dict[str, Sequence[Arrays]] = {}
    failures: dict[str, str] = {}
    try:
        running = form.opened(())
    except InputError as error:
        return Answers({}, dict.fromkeys(meant, error.reason))
    with closing(running):
        for name, feeds in meant.items():
            try:
                outputs[name] = [running.run(feed) for feed in feeds]
            except InputError as error:
                failures[name] = error.reason
    return Answers(outputs, failures)


def _fits(feed: Arrays, inputs: Sequence[TensorSpec]) -> bool:
    """Whether a form takes a feed's sizes: one in fixed sizes was never meant to take others."""
    try:
        check(feed, inputs)
    except InputError:
        return False
    return True


@dataclass(frozen=True)
class _Fault:
    """The worst difference of a step: in which size, relative to the output, and what rounding explains of it."""

    size: str | None = None
    error: float | None = None
    explained: float | None = None
    breaks: bool = False
    note: str = ""


def _fault(before: Form, after: Form, one: Answers, other: Answers, sizes: Sizes) -> _Fault:
    if other.failures:
        size, why = next(iter(other.failures.items()))
        return _Fault(size, breaks=True, note=f"{before.name} runs with {size}, {after.name} does not: {why}")
    sensed = _explained(before.graph if before.own else after.graph, after, one if before.own else other, sizes)
    worst = _Fault()
    for size, found in other.outputs.items():
        for name in one.outputs[size][0]:
            error = _gap(name, one.outputs[size], found).relative
            allowed = total(parts[name] for parts in sensed[size]).relative
            if worst.error is None or ratio(error, allowed) > ratio(worst.error, worst.explained or 0.0):
                where = f"output {name!r} with {size}: {error:.1e} of it differs from {before.name}, rounding explains {allowed:.1e}"
                worst = _Fault(size, error, allowed, ratio(error, allowed) > 1.0, where)
    return worst


def _explained(graph: ir.Model, after: Form, exact: Answers, sizes: Sizes) -> dict[str, list[dict[str, Difference]]]:
    """By size and feed: what rounding at the precisions of the later form explains of each output of a graph that gives `exact`."""
    precisions = planned(after.graph) if after.own else {}
    pairs = [(size, run) for size in exact.outputs if size in sizes for run in zip(sizes[size], exact.outputs[size], strict=True)]
    found: dict[str, list[dict[str, Difference]]] = {}
    for (size, _), parts in zip(pairs, explained(graph, precisions, [run for _, run in pairs]), strict=True):
        found.setdefault(size, []).append(parts)
    return found


def _gap(name: str, one: Sequence[Arrays], other: Sequence[Arrays]) -> Difference:
    missing = np.empty(0)
    return total(difference(first[name], second.get(name, missing)) for first, second in zip(one, other, strict=True))


def _layer(before: Form, after: Form, fault: _Fault, sizes: Sizes) -> str | None:
    """The first layer that diverges where a step breaks; of a lossy step that holds the layer that loses most by itself."""
    if fault.size is None or (fault.error is None and not after.own):
        return None  # an engine that does not run shows nothing
    feeds = sizes[fault.size][:_LOOKED_AT]
    if fault.breaks:
        found = first_divergence(before, after, feeds)
        return found.layer if found is not None else None
    if not after.own or not lossy(planned(after.graph)):
        return None
    worst = max(divergences(before, after, feeds[:1]), key=lambda one: one.error, default=None)
    return worst.layer if worst is not None and worst.error else None


def _agreement(feeds: Sequence[Arrays], truth: Sequence[Arrays], found: Sequence[Arrays], metric: Metric) -> float | None:
    """Share of decisions that are the same; None where the metric does not read decisions."""
    if metric.keeps != "decision" or not feeds:
        return None
    parent = collect(_replay(truth), feeds, metric)
    others = collect(_replay(found), feeds, metric, like=parent.reading)
    threshold = parent.reading.threshold
    return float(np.mean([equal_share(*pair) for pair in zip(decisions(others, threshold), decisions(parent, threshold), strict=True)]))


def _replay(outputs: Sequence[Arrays]) -> Run:
    """A run that gives recorded outputs in order."""
    recorded = iter(outputs)
    return lambda _: next(recorded)


def _worst_gap(truth: Sequence[Arrays], found: Sequence[Arrays]) -> Difference:
    """The difference over all samples of the float output that differs most for its size."""
    floats = [name for name, array in truth[0].items() if _is_float(array)] if truth else []
    return max((_gap(name, truth, found) for name in floats), key=lambda gap: gap.relative, default=Difference())


def _is_float(array: NDArray[Any]) -> bool:
    return array.dtype.kind == "f"


def _sensed(form: Form, answers: Answers, sizes: Sizes) -> float | None:
    """The median sensitivity of a graph's outputs to a millionth of its input, on a few samples."""
    feeds = [*chain.from_iterable(sizes[size] for size in answers.outputs)][:_SENSED]
    if not feeds or not form.own:
        return None
    with closing(Reference(form.graph)) as reference:
        return float(np.median([sensitivity(reference.run, feed) for feed in feeds]))


def _blind(fault: _Fault) -> str:
    """Said of a step in which no fault could show."""
    if fault.explained is None or fault.explained < BLIND:
        return ""
    return f"rounding alone can change the output by {fault.explained:.1e} of it: this comparison shows nothing"


def _note(relative: float, sensed: float | None) -> str:
    if sensed is None or relative == 0.0 or relative > ONE_SIZE * sensed:
        return ""
    return (
        f"the error ({relative:.1e} of the output) is no larger than what a millionth of the input does to it ({sensed:.1e}): "
        "this comparison shows nothing"
    )
