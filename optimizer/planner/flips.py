"""How many decisions a candidate will change, predicted from how near its parent's decisions are and how far it moves them.

Counting changed answers on the few samples of a screening tells little: of 32 samples a plan that changes 1 % of all answers changes
none three times out of four.  Every sample says more than whether it flipped, though: with margin m of the winning class over
another one, and d the candidate's change of that difference, an error of d's size s would flip it with probability
Phi(-m / s), be it one sample or thousands.  The rate is the mean over all samples of 1 - prod(1 - Phi(-m / s)) over the five nearest
rivals.  That is screening, and never evidence: the gate counts on held-out data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.engine import Arrays
from optimizer.errors import InputError
from optimizer.parity.metrics import METRICS, Metric
from optimizer.parity.outputs import Reading, collect
from optimizer.parity.statistics import LEVEL, clopper_pearson

_RIVALS = 5
"""Classes beside the winning one that are looked at: farther ones hardly ever win."""

_FLOOR = 1e-4
"""Probabilities below this count as this: logarithms of smaller ones differ by much where nothing is decided."""

_OUT_OF_REACH = 1e3
"""Times the usual margin beyond which a class is no rival but a masked one, whose rounding alone would drown everything."""

_POSITIONS = 4096
"""Positions of a sample that are looked at, spread evenly: a map of pixels has more than are needed to know its rate."""

_ENOUGH = 5.0
"""Flips that have to be expected at the scale at which chances are told: of fewer, one sample more or less decides."""

_SCALES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)

_MODEL = 1.5
"""The factor by which the normal error may be a wrong model, measured by benchmarks/screening.py."""

_TAIL = np.linspace(-9.0, 9.0, 18001)
_CHANCE = np.array([NormalDist().cdf(float(z)) for z in _TAIL])

Array = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """What a candidate did to the decisions of one sample.

    `margins` and `moved`, float64 (positions, rivals): the parent's score of its winner less that of each rival, and by how much
    the candidate changed that; without rivals where the outputs are decisions themselves.  `flipped`, bool (positions,): where the
    candidate decides otherwise.
    """

    margins: Floats
    moved: Floats
    flipped: NDArray[np.bool_]


@dataclass(frozen=True)
class Flips:
    """The share of decisions that change: predicted, with one-sided 95 % bounds, and as it was observed on so many samples.

    Of samples with several positions (the steps of a sequence, pixels) `rate` and `observed` are shares of these, as the gate's
    agreement counts them, and `whole` is the predicted share of samples in which any position changes.
    """

    rate: float
    low: float
    high: float
    observed: float
    samples: int
    whole: float


def read(metric: Metric, feeds: Sequence[Arrays], parent: Sequence[Arrays], like: Reading | None = None) -> Reading | None:
    """How decisions are read from the outputs, given the parent's on the same feeds; None where the metric judges none.

    As the gate does (`like`, where it has a reading of its own): classes along the last axis, or the first of a map; an output
    of one score a position turns positive at 0.5 or 0; whole numbers are decisions themselves; of the five likeliest classes the first
    is looked at.  Boxes, embeddings and regressions are no decisions: they are screened by their distance.  What a user's own metric
    makes of probabilities is not known: they are read as decisions, and of several classes all positions as one answer.
    """
    if metric.user is not None and parent:
        return _of_probabilities(feeds, parent)
    if metric.keeps not in ("decision", "best five") or not parent:
        return None
    if like is not None:
        return like
    answers = iter(parent)
    try:
        return collect(lambda _: next(answers), feeds, metric).reading
    except InputError:
        return None


def _of_probabilities(feeds: Sequence[Arrays], parent: Sequence[Arrays]) -> Reading | None:
    reading = read(METRICS["agreement"], feeds, parent)
    if reading is None or reading.output is None:
        return None
    if reading.axis is None:
        return reading if reading.threshold else None
    rows = _positions(parent[0][reading.output][0], reading)
    return replace(reading, whole=True) if rows.dtype.kind == "f" and _sums_to_one(rows) else None


def change(wanted: Array, got: Array, reading: Reading) -> Change:
    """What became of one sample's decisions; `wanted` and `got` are the output that `reading` names, without the batch axis.

    All of them count as flipped where the candidate gives NaN or plus infinity, or another number of answers.
    """
    exact = _positions(wanted, reading)
    broken = wanted.shape != got.shape or (got.dtype.kind == "f" and bool(np.isnan(got).any() or (got == np.inf).any()))
    other = exact if broken else _positions(got, reading)
    flipped = np.full(len(exact), True) if broken else _decided(exact, reading) != _decided(other, reading)
    if wanted.dtype.kind != "f":
        return Change(np.empty((len(exact), 0)), np.empty((len(exact), 0)), flipped)
    step = -(-len(exact) // _POSITIONS) or 1
    exact, other = _scores(exact[::step], other[::step], reading)
    nearest = np.argsort(-exact, axis=-1, kind="stable")[:, : _RIVALS + 1]
    exact, other = (np.take_along_axis(scores, nearest, -1) for scores in (exact, other))
    margins = exact[:, :1] - exact[:, 1:]
    moved = np.full_like(margins, np.inf) if broken else margins - (other[:, :1] - other[:, 1:])
    return Change(margins, moved, flipped)


def flips(changes: Sequence[Change], whole: bool = False) -> Flips:
    """The predicted rate over at least one sample, with at least one decision in each: of positions, or of `whole` samples.

    It is held within what the observed share allows (Clopper and Pearson, 1934).
    The bounds are wide where samples are few, as if one more had been as uncertain as can be, and never narrower than the
    normal error is wrong.  Decisions without scores are counted alone, as if half a flip more had been seen.
    """
    count = len(changes)
    observed = float(np.mean([one.flipped.any() if whole else one.flipped.mean() for one in changes]))
    seen = clopper_pearson(round(observed * count, 6), count)
    if not changes[0].margins.shape[1]:
        any_of_it = float(np.mean([one.flipped.any() for one in changes]))
        return Flips((observed * count + 0.5) / (count + 1), seen.low, seen.high, observed, count, any_of_it)
    chances, scale = _chances(changes)
    of_whole = np.array([1.0 - np.prod(1.0 - chance) for chance in chances])
    shares = of_whole if whole else np.array([chance.mean() for chance in chances])
    rate, likely = float(shares.mean()), float(min(scale * shares.mean(), 1.0))
    variance = (float(np.square(shares - rate).sum()) + likely * (1.0 - likely) / scale**2) / count
    reach = NormalDist().inv_cdf(1.0 - LEVEL) * math.sqrt(variance / count)
    held = min(max(rate, seen.low), seen.high)
    return Flips(
        rate=held,
        low=min(max((rate - reach) / _MODEL, seen.low), held),
        high=max(min((rate + reach) * _MODEL, seen.high), held),
        observed=observed,
        samples=count,
        whole=float(of_whole.mean()),
    )


def _chances(changes: Sequence[Change]) -> tuple[list[Floats], float]:
    """Of each sample, the chance of each position to flip (1 where the candidate gave no number), and the scale it was told at.

    The size of the error is half each position's own, half that of all: one alone knows too little, all together hide that
    some are harder.  Where it is so small that hardly any sample lies within its reach, it is scaled up until some do, and
    their chances are divided by the scale: near zero margins are spread evenly, so that the rate grows with the error.
    """
    margins = np.concatenate([one.margins for one in changes])
    squares = np.square(np.concatenate([one.moved for one in changes]))
    usual = float(np.median(margins[:, 0]))
    rivals = margins <= (_OUT_OF_REACH * usual if usual > 0.0 else math.inf)
    squares = np.where(rivals, squares, 0.0)
    count = rivals.sum(-1)
    broken = np.isinf(squares).any(-1)
    everywhere = math.sqrt(squares[~broken].sum() / max(count[~broken].sum(), 1))
    size = (np.sqrt(squares.sum(-1) / np.maximum(count, 1)) + everywhere)[:, None] / 2.0
    weight = np.concatenate([np.full(len(one.margins), 1.0 / len(one.margins)) for one in changes])
    for scale in _SCALES:
        with np.errstate(divide="ignore", invalid="ignore"):
            beyond = np.where(rivals & (size > 0.0), -margins / (scale * size), -np.inf)
        lost = 1.0 - np.prod(1.0 - np.interp(beyond, _TAIL, _CHANCE, left=0.0), axis=-1)
        if (weight * lost)[~broken].sum() >= min(_ENOUGH, len(changes) / 4):
            break
    ends = np.cumsum([len(one.margins) for one in changes])[:-1]
    return np.split(np.where(broken, 1.0, lost / scale), ends), scale


def _positions(output: Array, reading: Reading) -> Array:
    """The output as (positions, classes), with one column where each position has one number."""
    if reading.axis is None:
        return output.reshape(-1, 1)
    return np.moveaxis(output, reading.axis, -1).reshape(-1, output.shape[reading.axis])


def _decided(rows: Array, reading: Reading) -> Array:
    """The decision of each position."""
    if rows.dtype.kind != "f":
        return rows[:, 0]
    return rows.argmax(-1) if reading.axis is not None else rows[:, 0] > (reading.threshold or 0.0)


def _scores(exact: Array, other: Array, reading: Reading) -> tuple[Floats, Floats]:
    """Both models' rows as scores whose errors are of one size: logarithms of probabilities, a binary score beside 0, where it turns."""
    exact, other = exact.astype(np.float64), other.astype(np.float64)
    if reading.axis is None:
        if reading.threshold:  # what turns at 0.5 is a probability
            exact, other = (_logarithm(rows) - _logarithm(1.0 - rows) for rows in (exact, other))
        exact, other = (np.hstack([np.zeros_like(rows), rows]) for rows in (exact, other))
    elif _sums_to_one(exact):
        exact, other = _logarithm(exact), _logarithm(other)
    # A class that is masked with minus infinity is at no distance that could change.
    lowest = float(np.finfo(np.float32).min)
    return np.maximum(exact, lowest), np.maximum(other, lowest)


def _sums_to_one(rows: Array) -> bool:
    """Whether rows are probabilities of classes."""
    return bool(rows.min(initial=0.0) >= 0.0 and np.allclose(rows.sum(-1), 1.0, atol=1e-2))


def _logarithm(probabilities: Floats) -> Floats:
    logarithms: Floats = np.log(np.maximum(probabilities, _FLOOR))
    return logarithms
