"""Pixels of a grid put side by side as channels, then convolved (YOLO's Focus): one convolution over the pixels as they were.

    W'[oc, c, i s + p, j s + q] = W[oc, (g, c), i, j]  for the group g of channels that starts at pixel (p, q),

with stride s, and pads s times as large.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import known, producer
from optimizer.fusion.rewrites.slices import taken
from optimizer.fusion.rewrites.writing import constant
from optimizer.fusion.rule import Rule, refused
from optimizer.graph import static_shape


class FocusIntoConvolution(Rule):
    """Conv(Concat(Slices of every s-th pixel)) as one Conv of stride s times its own."""

    def __init__(self) -> None:
        super().__init__("Focus into one convolution")

    def pattern(self, op: Any, w: Any) -> Any:
        return op.Conv(op.Concat(_allow_other_inputs=True, _outputs=["joined"]), w, _allow_other_inputs=True, _outputs=["y"])

    def check(self, _context: Any, joined: ir.Value, w: ir.Value, y: ir.Value) -> MatchResult:
        node, weight = producer(y), known(w)
        if weight is None or weight.ndim != 4 or node.attributes.get_int("group", 1) != 1:
            return refused("it is no convolution of pictures with known weights, or grouped", node)
        if any(step > 1 for step in node.attributes.get_ints("dilations", ())):
            return refused("it is dilated", node)
        if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            return refused("it finds its pads by itself", node)
        found = _grid(producer(joined))
        return refused(found, joined) if isinstance(found, str) else MatchResult()

    def rewrite(self, op: Any, joined: ir.Value, w: ir.Value, y: ir.Value) -> Any:
        node, weight, found = producer(y), known(w), _grid(producer(joined))
        assert weight is not None
        assert not isinstance(found, str)
        x, step, starts = found
        attributes: dict[str, Any] = {
            "strides": [step * each for each in node.attributes.get_ints("strides", (1, 1))],
            "pads": [step * each for each in node.attributes.get_ints("pads", (0,) * 4)],
        }
        return op.Conv(x, constant(op, w, "grid", _spread(weight, step, starts)), *node.inputs[2:], **attributes)


def _grid(concat: ir.Node) -> tuple[ir.Value, int, list[tuple[int, int]]] | str:
    """The picture, the step, and the first pixel of each group of channels; or why it is none."""
    if concat.attributes.get_int("axis", 0) not in (1, -3):
        return "it does not put channels side by side"
    parts = [taken(value) if value is not None else None for value in concat.inputs]
    if any(part is None for part in parts):
        return "an input is no Slice of known size"
    slices = [part for part in parts if part is not None]
    x, first = slices[0]
    whole = static_shape(x)
    assert whole is not None
    if len(whole) != 4 or any(start is not x for start, _ in slices):
        return "the Slices are not of one picture"
    step = first.steps[2]
    if step < 2 or any(what.steps != (1, 1, step, step) for _, what in slices):
        return "the Slices do not take every s-th pixel"
    if any(what.sizes[:2] != whole[:2] or any(what.starts[:2]) or max(what.starts[2:]) >= step for _, what in slices):
        return "the Slices leave samples, channels or pixels out"
    if any(extent % step or what.sizes[axis] * step != extent for _, what in slices for axis, extent in ((2, whole[2]), (3, whole[3]))):
        return "the picture's size is no multiple of the step"
    return x, step, [(what.starts[2], what.starts[3]) for _, what in slices]


def _spread(weight: NDArray[Any], step: int, starts: list[tuple[int, int]]) -> NDArray[Any]:
    """The weight over the pixels themselves, shape (oc, c, kh * step, kw * step)."""
    outputs, inputs, height, width = weight.shape
    channels = inputs // len(starts)
    spread = np.zeros((outputs, channels, height * step, width * step), weight.dtype)
    for group, (row, column) in enumerate(starts):
        spread[:, :, row::step, column::step] += weight[:, group * channels : (group + 1) * channels]
    return spread


RULES: tuple[Rule, ...] = (FocusIntoConvolution(),)
