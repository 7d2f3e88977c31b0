"""Weights rounded with the data in view: GPTQ, and AdaRound where it leaves less of a layer's error.

What counts is the layer's squared output error on the data, which falls apart into output channels: each channel takes the
better of its candidates, rounding to nearest among them, so that no channel gets worse.  Where a layer has a bias the mean of the
error goes into it, and the weights have to see to the rest alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from calibration import adaround as learnt
from calibration import gptq as compensated
from calibration.correction import shift
from calibration.gptq import layer_error
from calibration.weights import WEIGHT_METHODS, weight_ranges
from optimizer.engine import Arrays
from optimizer.graph import clone
from optimizer.plan import Capability, Plan
from optimizer.precision.rounded import mark, marked
from optimizer.precision.writer import Writer
from optimizer.recovery.form import Form, Recovered, listed, noted, rewritten
from optimizer.recovery.layers import Floats, bias, bias_place, in_int8, matrix, set_bias, set_weight
from optimizer.recovery.moments import Moments, moments

Rounding = Callable[[Floats, Floats, Floats, int], NDArray[np.int8]]
"""Weight (groups, channels, inputs), mean products of its inputs, scales (groups, channels), limit -> integers."""

_WORTH = 0.98
"""Share of its error that a layer's rounding may leave at most to be taken."""

_MOST = 10_000_000
"""Channels times inputs squared of a layer up to which AdaRound, some hundred products of that many, is worth its seconds."""


def adaround(form: Form, plan: Plan, capability: Capability, feeds: Sequence[Arrays]) -> Recovered | None:
    """Rounds by AdaRound (Nagel et al. 2020) the weights of those INT8 layers where it leaves less error than GPTQ does."""
    return _rounded(form, plan, capability, feeds, "adaround", _by_adaround)


def gptq(form: Form, plan: Plan, capability: Capability, feeds: Sequence[Arrays]) -> Recovered | None:
    """Rounds the weights of INT8 layers by GPTQ (Frantar et al. 2022), but those that another step has rounded."""
    return _rounded(form, plan, capability, feeds, "gptq", _by_gptq)


@dataclass(frozen=True)
class _Rounded:
    """Integers (groups, channels, inputs) for a weight, scales (groups, channels), and the mean square error of each output channel."""

    integers: NDArray[np.int8]
    scale: Floats
    error: Floats

    @property
    def numbers(self) -> Floats:
        """What stands for the weight: float64 (groups, channels, inputs)."""
        return self.integers * self.scale[:, :, None]

    def better(self, other: _Rounded) -> _Rounded:
        """Each channel from the one that leaves less error."""
        wins = other.error < self.error
        integers = np.where(wins[:, :, None], other.integers, self.integers)
        return _Rounded(integers, np.where(wins, other.scale, self.scale), np.minimum(other.error, self.error))


_Way = Callable[[Floats, Moments, int], "_Rounded | None"]


def _by_gptq(weight: Floats, seen: Moments, limit: int) -> _Rounded:
    """Each channel on the better of the grids that a weight can have."""
    grids = [_scale(weight, method, limit) for method in WEIGHT_METHODS]
    return reduce(_Rounded.better, [_by(compensated.gptq, weight, seen, scale, limit) for scale in grids])


def _by_adaround(weight: Floats, seen: Moments, limit: int) -> _Rounded | None:
    """The channels where it beats GPTQ, on the grid that is best for that; None without any, or where learning would take too long."""
    if weight.size * weight.shape[2] > _MOST:
        return None
    rival = _by_gptq(weight, seen, limit)
    found = rival.better(_by(learnt.adaround, weight, seen, rival.scale, limit))
    return found if found.error.sum() < _WORTH * rival.error.sum() else None


def _nearest(weight: Floats, seen: Moments, limit: int) -> _Rounded:
    """As precision rounds a weight that nobody has rounded before."""
    scale = _scale(weight, "minmax", limit)
    return _judged(weight, seen, np.clip(np.rint(weight / scale[:, :, None]), -limit, limit).astype(np.int8), scale)


def _by(rounding: Rounding, weight: Floats, seen: Moments, scale: Floats, limit: int) -> _Rounded:
    parts = [rounding(weight[:, :, cut], products, scale, limit) for cut, products in seen.blocks()]
    return _judged(weight, seen, np.concatenate(parts, axis=2), scale)


def _judged(weight: Floats, seen: Moments, integers: NDArray[np.int8], scale: Floats) -> _Rounded:
    off = integers * scale[:, :, None] - weight
    errors = [layer_error(off[:, :, cut], products) for cut, products in seen.blocks()]
    return _Rounded(integers, scale, np.sum(errors, axis=0))


def _scale(weight: Floats, method: str, limit: int) -> Floats:
    """Scales (groups, channels), each a float32 number: what the graph will hold."""
    ranges = weight_ranges(weight.reshape(-1, weight.shape[2]), 0, method, limit)
    scale = (ranges / limit).astype(np.float32)
    return np.where(scale > 0, scale, np.float32(1)).astype(np.float64).reshape(weight.shape[:2])


def _rounded(form: Form, plan: Plan, capability: Capability, feeds: Sequence[Arrays], step: str, way: _Way) -> Recovered | None:
    """The form with the weights rounded in one way where that is worth it, each marked with its scales."""
    layers = [node for node in in_int8(form.model, plan, capability) if marked(node.inputs[1]) is None]
    if not layers or not feeds:
        return None
    graph = clone(form.model.graph)
    nodes = {node.name: node for node in graph.graph}
    writer = Writer(graph.graph)
    limit, left_over = capability.weight_limit, dict[str, float]()
    for layer, seen in moments(form.model.graph, layers, feeds):
        weight, biased = matrix(layer), bias_place(layer) is not None
        left = seen.centred() if biased else seen
        usual, found = _nearest(weight, left, limit), way(weight, left, limit)
        if found is None or not found.better(usual).error.sum() < _WORTH * usual.error.sum():
            continue
        found, node = found.better(usual), nodes[layer.name]
        if biased:
            set_bias(writer, node, bias(layer) - shift(found.numbers - weight, seen.mean).reshape(-1), step)
        mark(set_weight(writer, node, found.numbers, step), found.scale.reshape(-1).astype(np.float32))
        left_over[layer.name or ""] = float(found.error.sum() / usual.error.sum())
    if not left_over:
        return None
    share = sum(left_over.values()) / len(left_over)
    note = f"{step}: {share:.0%} of the output error that rounding to nearest causes is left at {listed(left_over)}, on average"
    return Recovered(rewritten(form, graph), noted(plan, step), note)
