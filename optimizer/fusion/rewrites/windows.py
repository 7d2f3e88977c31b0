"""What a window never sees costs nothing, and a window that sees everything is a matrix product.

Taps that lie over the padding at every place are cut off.  A convolution with one output pixel and no padding is a Gemm of the
flattened input.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import input_of, known, producer, size
from optimizer.fusion.rewrites.writing import constant, integers
from optimizer.fusion.rule import Rule, refused


class UnseenTaps(Rule):
    """Conv without those first and last taps of its kernel that see nothing but padding."""

    def __init__(self) -> None:
        super().__init__("taps over padding cut off")

    def pattern(self, op: Any, x: Any, w: Any) -> Any:
        return op.Conv(x, w, _allow_other_inputs=True, _outputs=["y"])

    def check(self, _context: Any, w: ir.Value, y: ir.Value, **_: Any) -> MatchResult:
        if known(w) is None or producer(y).attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            return refused("its weight is computed, or it finds its pads by itself", y)
        seen = _seen(y)
        if seen is None:
            return refused("its sizes are not known", y)
        return MatchResult() if any(lead or trail for lead, trail, *_ in seen) else refused("every tap sees something", y)

    def rewrite(self, op: Any, x: ir.Value, w: ir.Value, y: ir.Value) -> Any:
        node, weight, seen = producer(y), known(w), _seen(y)
        assert weight is not None
        assert seen is not None
        kept = tuple(slice(lead, extent - trail) for (lead, trail, *_), extent in zip(seen, weight.shape[2:], strict=True))
        attributes: dict[str, Any] = dict(node.attributes) | {"pads": [part[2] for part in seen] + [part[3] for part in seen]}
        attributes.pop("kernel_shape", None)
        return op.Conv(x, constant(op, w, "seen", weight[(slice(None), slice(None), *kept)]), *node.inputs[2:], **attributes)


def _seen(y: ir.Value) -> list[tuple[int, int, int, int]] | None:
    """By axis: first and last taps that see only padding, and the pads that are left without them."""
    node = producer(y)
    weight = known(node.inputs[1])
    assert weight is not None
    axes = weight.ndim - 2
    strides = node.attributes.get_ints("strides", (1,) * axes)
    dilations = node.attributes.get_ints("dilations", (1,) * axes)
    pads = node.attributes.get_ints("pads", (0,) * 2 * axes)
    found = []
    for axis, taps in enumerate(weight.shape[2:]):
        length, places = size(node.inputs[0], axis + 2), size(y, axis + 2)
        if length is None or places is None:
            return None
        before, after, dilation = pads[axis], pads[axes + axis], dilations[axis]
        first = np.arange(places) * strides[axis] - before
        blind = [not np.any((first + tap * dilation >= 0) & (first + tap * dilation < length)) for tap in range(taps)]
        lead = sum(1 for _ in takewhile(bool, blind))
        trail = sum(1 for _ in takewhile(bool, reversed(blind)))
        if lead == taps or lead * dilation > before or trail * dilation > after:
            lead = trail = 0
        found.append((lead, trail, before - lead * dilation, after - trail * dilation))
    return found


class OnePixel(Rule):
    """Conv whose one window covers its whole input: Gemm between two Reshapes."""

    def __init__(self) -> None:
        super().__init__("convolution of one window into Gemm")

    def pattern(self, op: Any, x: Any, w: Any) -> Any:
        return op.Conv(x, w, _allow_other_inputs=True, _outputs=["y"])

    def check(self, _context: Any, x: ir.Value, w: ir.Value, y: ir.Value) -> MatchResult:
        node, weight = producer(y), known(w)
        if weight is None or node.attributes.get_int("group", 1) != 1 or any(node.attributes.get_ints("pads", ())):
            return refused("its weight is computed, or it is grouped or padded", node)
        axes = range(2, weight.ndim)
        if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or any(size(y, axis) != 1 for axis in axes):
            return refused("it has more than one output pixel, or finds its pads by itself", node)
        if any(size(x, axis) != weight.shape[axis] for axis in axes):
            return refused("its window does not cover its input", node)
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, w: ir.Value, y: ir.Value) -> Any:
        node, weight = producer(y), known(w)
        assert weight is not None
        rows = op.Reshape(x, integers(op, node, "row", 0, -1))
        matrix = constant(op, w, "matrix", weight.reshape(len(weight), -1))
        bias = input_of(node, 2)
        product = op.Gemm(rows, matrix, *([] if bias is None else [bias]), transB=1)
        return op.Reshape(product, integers(op, node, "pixel", 0, len(weight), *(1 for _ in weight.shape[2:])))


RULES: tuple[Rule, ...] = (UnseenTaps(), OnePixel())
