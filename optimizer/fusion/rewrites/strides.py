"""A strided convolution over few input channels reads the pixels of a stride as channels of one.

    W'[oc, (p, q, ic), i, j] = W[oc, ic, i s + p, j s + q],  stride 1 over SpaceToDepth of the input,

with zeros where the kernel ends before a whole stride.  A convolution over one or three channels gathers its operands one by
one; over s s times as many it reads them in order.  Over a signal (one spatial axis) it is the same with a Reshape.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import known, producer, rank, size
from optimizer.fusion.rewrites.writing import constant, integers, same_numbers
from optimizer.fusion.rule import Rule, refused

FEW = 4
"""Input channels up to which operands are gathered one by one."""


class StrideIntoChannels(Rule):
    """Conv with one stride on all spatial axes over few channels, of a signal (2 axes with the batch left out) or a picture."""

    def __init__(self) -> None:
        super().__init__("strides into channels")

    def pattern(self, op: Any, x: Any, w: Any) -> Any:
        return op.Conv(x, w, _allow_other_inputs=True, _outputs=["y"])

    def check(self, _context: Any, x: ir.Value, y: ir.Value, w: ir.Value) -> MatchResult:
        node, weight = producer(y), known(w)
        if weight is None or weight.ndim not in (3, 4) or rank(x) != weight.ndim:
            return refused("it is no convolution of signals or pictures with known weights", node)
        strides = node.attributes.get_ints("strides", ())
        if len(set(strides)) != 1 or strides[0] < 2:
            return refused("it has no stride, or not the same one on each axis", node)
        if weight.shape[1] > FEW or node.attributes.get_int("group", 1) != 1:
            return refused("it has input channels enough, or is grouped", node)
        if any(step > 1 for step in node.attributes.get_ints("dilations", ())):
            return refused("it is dilated", node)
        if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            return refused("it finds its pads by itself", node)
        if any(size(value, axis) is None for value in (x, y) for axis in range(2, weight.ndim)):
            return refused("its sizes are not known", node)
        if min(weight.shape[2:]) < strides[0]:
            return refused("its kernel is smaller than its stride", node)
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, w: ir.Value, y: ir.Value) -> Any:
        node, weight = producer(y), known(w)
        assert weight is not None
        stride = node.attributes.get_ints("strides", ())[0]
        axes = range(2, weight.ndim)
        kernel = [-(-extent // stride) for extent in weight.shape[2:]]
        own = node.attributes.get_ints("pads", (0,) * 2 * len(axes))
        before = list(own[: len(axes)])
        wanted = [(_known(y, axis) - 1 + kernel[axis - 2]) * stride for axis in axes]
        after = [total - _known(x, axis) - before[axis - 2] for total, axis in zip(wanted, axes, strict=True)]
        deep = self._deep(op, _extended(op, x, node, before, after), node, weight.shape[1], stride, wanted)
        return op.Conv(same_numbers(deep, x), constant(op, w, "strides", _deep_weight(weight, stride, kernel)), *node.inputs[2:])

    @staticmethod
    def _deep(op: Any, x: Any, node: ir.Node, channels: int, stride: int, sizes: list[int]) -> Any:
        """The input with the pixels of a stride as channels, those of one place in the stride together."""
        if len(sizes) == 2:
            return op.SpaceToDepth(x, blocksize=stride)
        steps = sizes[0] // stride
        if channels == 1:
            return op.Transpose(op.Reshape(x, integers(op, node, "steps", 0, steps, stride)), perm=[0, 2, 1])
        parts = op.Reshape(x, integers(op, node, "steps", 0, channels, steps, stride))
        return op.Reshape(op.Transpose(parts, perm=[0, 3, 1, 2]), integers(op, node, "channels", 0, stride * channels, steps))


def _extended(op: Any, x: ir.Value, node: ir.Node, before: list[int], after: list[int]) -> Any:
    """The input with zeros around it; what no window reaches at its end, a negative number in `after`, is cut off."""
    inside = x
    if any(count < 0 for count in after):
        ends = [count if count < 0 else np.iinfo(np.int64).max for count in after]
        places = {"starts": [0] * len(after), "ends": ends, "axes": list(range(2, 2 + len(after)))}
        inside = same_numbers(op.Slice(x, *(integers(op, node, what, *numbers) for what, numbers in places.items())), x)
    added = [max(count, 0) for count in after]
    if not any((*before, *added)):
        return inside
    return same_numbers(op.Pad(inside, integers(op, node, "pads", 0, 0, *before, 0, 0, *added)), x)


def _known(value: ir.Value, axis: int) -> int:
    found = size(value, axis)
    assert found is not None
    return found


def _deep_weight(weight: NDArray[Any], stride: int, kernel: list[int]) -> NDArray[Any]:
    """The weight over the input with strides as channels: shape (oc, stride ** axes * ic, *kernel)."""
    outputs, inputs, *extents = weight.shape
    padded = np.pad(weight, [(0, 0), (0, 0), *((0, count * stride - extent) for count, extent in zip(kernel, extents, strict=True))])
    parts = padded.reshape(outputs, inputs, *(part for count in kernel for part in (count, stride)))
    places = [3 + 2 * axis for axis in range(len(kernel))]
    steps = [2 + 2 * axis for axis in range(len(kernel))]
    return np.ascontiguousarray(parts.transpose(0, *places, 1, *steps)).reshape(outputs, -1, *kernel)


RULES: tuple[Rule, ...] = (StrideIntoChannels(),)
