"""What a model has kept of its training data: statistics of its first layer, the range that it clips or quantizes, its own scaling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.engine import Arrays
from optimizer.graph import constant, readers
from optimizer.model import TensorSpec
from optimizer.reference import Reference

_SAMPLES = 8
"""Samples that the model is run on for this, at least."""

_CARRIERS = frozenset({"Cast", "Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Pad"})
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
_LINEAR = frozenset({"Conv", "Gemm", "MatMul"})
_INDIFFERENT = frozenset({"Shape", "Size"})
"""Readers of an input that do not care for its numbers."""

_WIDER, _OFF = 3.3, 3.0
"""How far a first layer's numbers may be from training's: the median channel's spread by this factor, its mean by as many spreads.
ResNet-20 on CIFAR-10: 0.83 and 0.15 as trained, .41 at half the contrast; .21 without mean and std, 3.6 with them twice, 53 and 39
for raw 0..255."""

_FEWEST = 32
"""Numbers a channel that a spread is judged by."""

_WIDE, _NARROW, _GAIN = 10.0, 0.02, 16.0
"""Where numbers that a model has itself scaled should not lie: half of them beyond `_WIDE`, unless it multiplies by `_GAIN` or more,
or all of them spread less than `_NARROW`."""

_CUT_OFF = 0.2
"""The share of the numbers' span that a model's own range may cut off at either end."""

_OF_RANGE = 1 / 64
"""The part of a model's own range below which it is not used: four steps of an 8-bit one."""


@dataclass
class _Moments:
    """Sums over what a tensor holds, by channel (axis 1); its extremes; the median magnitude of each sample."""

    count: int = 0
    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    low: float = np.inf
    high: float = -np.inf
    medians: list[float] = field(default_factory=list)

    def add(self, array: NDArray[np.float32]) -> None:
        by_channel = np.moveaxis(array.astype(np.float64), 1, 0).reshape(array.shape[1], -1)
        self.count += by_channel.shape[1]
        self.total = self.total + by_channel.sum(axis=1)
        self.squares = self.squares + np.square(by_channel).sum(axis=1)
        self.low, self.high = min(self.low, float(array.min())), max(self.high, float(array.max()))
        self.medians.append(float(np.median(np.abs(array))))

    @property
    def mean(self) -> NDArray[np.float64]:
        return self.total / self.count

    @property
    def spread(self) -> NDArray[np.float64]:
        """Standard deviation of each channel."""
        return np.sqrt(np.maximum(self.squares / self.count - self.mean**2, 0))


@dataclass(frozen=True)
class _Sign:
    """A tensor to look at, and what its numbers say: words, or None where nothing is wrong."""

    tensor: str
    judge: Callable[[_Moments], str | None]


def learnt_suspected(graph: ir.Model, source: str, feeds: Sequence[Arrays], inputs: Sequence[TensorSpec]) -> Iterator[str]:
    """Where the samples are far from what the model shows that it was trained on."""
    names = {spec.name for spec in inputs}
    signs = [(value.name, sign) for value in graph.graph.inputs if value.name in names for sign in _signs(value)]
    if not signs:
        return
    seen = {sign.tensor: _Moments() for _, sign in signs}
    with closing(Reference(graph, list(seen))) as reference:
        stride = max(1, len(feeds) // _SAMPLES)
        for number, feed in enumerate(feed for first in range(stride) for feed in feeds[first::stride]):
            if number >= _SAMPLES and all(moments.count >= _FEWEST for moments in seen.values()):
                break
            outputs = reference.run(feed)
            for tensor, moments in seen.items():
                if outputs[tensor].size and np.isfinite(outputs[tensor]).all():
                    moments.add(outputs[tensor])
    for name, sign in signs:
        if seen[sign.tensor].count and (words := sign.judge(seen[sign.tensor])) is not None:
            yield f"{name!r} in {source}: {words}. Hold scale, mean and std of [inputs.{name}] in optimize.toml against training's."


def _signs(value: ir.Value) -> Iterator[_Sign]:
    """What the graph tells right behind an input: followed through layout and arithmetic to the first operators that compute."""
    gain: float | None = None
    while len(after := _readers(value)) == 1 and (factor := _factor(after[0], value)) is not None:
        if after[0].op_type in {"Mul", "Div"}:
            gain = factor * (gain or 1.0)
        value = after[0].outputs[0]
    if gain is not None:
        yield _Sign(value.name or "", partial(_own_scaling, gain))
    for node in after:
        if (bounds := _bounds(node)) is not None:
            yield _Sign(value.name or "", partial(_own_range, node.op_type, *bounds))
        if (norm := _normalization(node, value)) is not None and (trained := _statistics(norm)) is not None:
            yield _Sign(norm.inputs[0].name or "", partial(_first_layer, *trained))  # type: ignore[union-attr]


def _readers(value: ir.Value) -> list[ir.Node]:
    return [node for node in readers(value) if node.op_type not in _INDIFFERENT]


def _factor(node: ir.Node, value: ir.Value) -> float | None:
    """By how much a node multiplies `value`; None for one that is not plain layout or arithmetic with a constant."""
    if node.op_type in _CARRIERS and node.inputs[0] is value:
        return 1.0
    if node.op_type not in _ARITHMETIC:
        return None
    other = constant(node.inputs[1] if node.inputs[0] is value else node.inputs[0])
    if other is None or other.size == 0 or (node.op_type == "Div" and node.inputs[0] is not value):
        return None
    size = float(np.median(np.abs(other)))
    if node.op_type in {"Add", "Sub"}:
        return 1.0
    return size if node.op_type == "Mul" else 1 / size if size else None


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    """The range that a Clip or a QuantizeLinear keeps."""
    if node.op_type == "Clip":
        low, high = (constant(node.inputs[place]) if place < len(node.inputs) else None for place in (1, 2))
        return None if low is None or high is None else (float(low), float(high))
    if node.op_type != "QuantizeLinear" or len(node.inputs) < 3:
        return None
    scale, zero = constant(node.inputs[1]), constant(node.inputs[2])
    if scale is None or zero is None or scale.size != 1 or zero.dtype.kind not in "iu":
        return None
    kind = np.iinfo(zero.dtype)
    return float((kind.min - int(zero.item())) * scale.item()), float((kind.max - int(zero.item())) * scale.item())


def _normalization(node: ir.Node, value: ir.Value) -> ir.Node | None:
    """The BatchNormalization that `node` is, or that reads what the linear `node` makes of `value` (plus a bias)."""
    if node.op_type == "BatchNormalization":
        return node if node.inputs[0] is value else None
    if node.op_type not in _LINEAR:
        return None
    after = readers(node.outputs[0])
    if len(after) == 1 and after[0].op_type == "Add" and _factor(after[0], node.outputs[0]) is not None:
        after = readers(after[0].outputs[0])
    return after[0] if len(after) == 1 and after[0].op_type == "BatchNormalization" else None


def _statistics(norm: ir.Node) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Mean and standard deviation that training saw, by channel; None where they are those of a layer that never trained."""
    mean, variance = constant(norm.inputs[3]), constant(norm.inputs[4])
    if mean is None or variance is None or (not mean.any() and (variance == 1).all()):
        return None
    return mean.astype(np.float64), np.sqrt(np.maximum(variance.astype(np.float64), 0))


def _first_layer(mean: NDArray[np.float64], spread: NDArray[np.float64], seen: _Moments) -> str | None:
    alive = spread > 1e-3 * spread.max(initial=0)  # a dead channel's tells nothing
    if seen.count < _FEWEST or not alive.any():
        return None
    wider = float(np.median(seen.spread[alive] / spread[alive]))
    off = float(np.median(np.abs(seen.mean - mean)[alive] / spread[alive]))
    if 1 / _WIDER < wider < _WIDER and off < _OFF:
        return None
    return (
        f"behind the first layer its numbers spread {wider:.3g} times as wide as in training, and their mean is off by {off:.2g} of "
        "training's spreads (BatchNormalization kept both)"
    )


def _own_scaling(gain: float, seen: _Moments) -> str | None:
    spread = float(seen.spread.max())
    middle = float(np.median(seen.medians))
    if spread >= _NARROW and (middle <= _WIDE or gain >= _GAIN):
        return None
    return (
        f"the model scales this input itself (by {gain:.3g}), and then has numbers that spread {spread:.2g} and have a median size of "
        f"{middle:.3g}: it was scaled before, or should have been"
    )


def _own_range(operator: str, low: float, high: float, seen: _Moments) -> str | None:
    span, width = high - low, seen.high - seen.low
    beyond = max(seen.high - high, low - seen.low)
    if width >= _OF_RANGE * span and beyond <= _CUT_OFF * max(width, span):
        return None
    return f"it lies in {seen.low:.4g} to {seen.high:.4g}, and the model's own {operator} keeps {low:.4g} to {high:.4g}"
