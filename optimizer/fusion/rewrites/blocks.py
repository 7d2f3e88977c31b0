"""A convolution with few output channels computes a block of pixels as channels of one.

Vector units compute 8 or 16 output channels at once, and leave the rest of a register idle where there are fewer.  A block
of pixels is as many more channels:

    W'[(p, q, oc), ic, kh + p sh, kw + q sw] = W[oc, ic, kh, kw],  strides times the block,

and what comes out is laid back by DepthToSpace.  The zeros in W' cost multiplications, the more the smaller the kernel.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import input_of, known, producer
from optimizer.fusion.rewrites.writing import constant, integers, same_numbers
from optimizer.fusion.rule import Rule, refused
from optimizer.graph import static_shape

LANES = 16
"""Float32 numbers in the widest vector registers of x86-64."""

BLOCKS = ((4, 4), (2, 4), (2, 2), (1, 2), (2, 1), (1, 4), (1, 8), (1, 16), (2,), (4,), (8,), (16,))
"""Rows and columns of a block of a picture, or numbers in one of a signal."""

WORTH = 0.8
"""Instructions a number of the output, as a part of those before, up to which a block is tried."""

WASTE = 1.25
"""Times as many numbers as wanted that may be computed, where blocks don't come out even."""


class BlockIntoChannels(Rule):
    """Conv with so few output channels that those of a block fill the registers; what the last blocks have too much is cut off."""

    def __init__(self, *block: int) -> None:
        super().__init__(f"blocks of {' x '.join(map(str, block))} into channels")
        self.block = block

    def pattern(self, op: Any, x: Any, w: Any) -> Any:
        return op.Conv(x, w, _allow_other_inputs=True, _outputs=["y"])

    def check(self, _context: Any, x: ir.Value, y: ir.Value, w: ir.Value) -> MatchResult:
        node, weight, block = producer(y), known(w), self.block
        if weight is None or weight.ndim != 2 + len(block) or (len(node.inputs) > 2 and known(node.inputs[2]) is None):
            return refused("it has no known weights, or another number of axes", node)
        filled = weight.shape[0] * math.prod(block)
        if filled > LANES or 2 * filled <= LANES:
            return refused("its output channels fill the vector registers, or another block does it better", node)
        if node.attributes.get_int("group", 1) != 1 or any(step > 1 for step in node.attributes.get_ints("dilations", ())):
            return refused("it is grouped or dilated", node)
        if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            return refused("it finds its pads by itself", node)
        taps = zip(weight.shape[2:], _strides(node, block), block, strict=True)
        if math.prod((extent + (part - 1) * step) / (extent * part) for extent, step, part in taps) > WORTH:
            return refused("its kernel is too small for the zeros that a block brings", node)
        if static_shape(x) is None or static_shape(y) is None:
            return refused("its sizes are not known", node)
        sizes = (static_shape(y) or ())[2:]
        if math.prod(_whole(sizes, block)) > WASTE * math.prod(sizes):
            return refused("its output is too small for blocks", node)
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, w: ir.Value, y: ir.Value) -> Any:
        node, weight, block = producer(y), known(w), self.block
        assert weight is not None
        strides, sizes = _strides(node, block), (static_shape(y) or ())[2:]
        inputs = [x, constant(op, w, "blocks", _spread(weight, block, strides))]
        if (bias := known(input_of(node, 2))) is not None:
            inputs.append(constant(op, w, "biases", np.tile(bias, math.prod(block))))
        whole = _whole(sizes, block)
        steps = [step * part for step, part in zip(strides, block, strict=True)]
        wide = op.Conv(*inputs, pads=_pads(node, x, weight, whole, strides), strides=steps)
        if whole == sizes:
            return self._laid_back(op, same_numbers(wide, y), y, weight.shape[0], whole)
        axes = range(2, 2 + len(block))
        places = {"starts": [0] * len(block), "ends": list(sizes), "axes": list(axes)}
        flat = self._laid_back(op, wide, y, weight.shape[0], whole)
        return op.Slice(flat, *(integers(op, node, what, *numbers) for what, numbers in places.items()))

    def _laid_back(self, op: Any, wide: Any, y: ir.Value, channels: int, sizes: tuple[int, ...]) -> Any:
        """From (n, (block, oc), blocks) to (n, oc, pixels)."""
        if len(self.block) == 2 and len(set(self.block)) == 1:
            return op.DepthToSpace(wide, blocksize=self.block[0], mode="DCR")
        axes, node = len(self.block), producer(y)
        counts = [size // part for size, part in zip(sizes, self.block, strict=True)]
        parts = op.Reshape(wide, integers(op, node, "parts", 0, *self.block, channels, *counts))
        order = [0, 1 + axes, *(place for axis in range(axes) for place in (2 + axes + axis, 1 + axis))]
        moved = op.Transpose(parts, perm=order)
        if sizes == (static_shape(y) or ())[2:]:
            parts, moved = same_numbers(parts, y), same_numbers(moved, y)
        return op.Reshape(moved, integers(op, node, "whole", 0, channels, *sizes))


def _strides(node: ir.Node, block: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(node.attributes.get_ints("strides", (1,) * len(block)))


def _whole(sizes: tuple[int, ...], block: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes rounded up to whole blocks."""
    return tuple(-(-size // part) * part for size, part in zip(sizes, block, strict=True))


def _pads(node: ir.Node, x: ir.Value, weight: NDArray[Any], whole: tuple[int, ...], strides: tuple[int, ...]) -> list[int]:
    """The pads with which the last whole block has all that it reads."""
    own = list(node.attributes.get_ints("pads", (0,) * 2 * len(whole)))
    before, after = own[: len(whole)], own[len(whole) :]
    inside = (static_shape(x) or ())[2:]
    reach = [(count - 1) * step + extent for count, step, extent in zip(whole, strides, weight.shape[2:], strict=True)]
    return [*before, *(max(*pair) for pair in zip(after, (a - b - c for a, b, c in zip(reach, inside, before, strict=True)), strict=True))]


def _spread(weight: NDArray[Any], block: tuple[int, ...], strides: tuple[int, ...]) -> NDArray[Any]:
    """The weight of the block's convolution, shape (pixels * oc, ic, *(k + (part - 1) * stride of each axis))."""
    outputs, inputs, *kernel = weight.shape
    extents = [extent + (part - 1) * step for extent, part, step in zip(kernel, block, strides, strict=True)]
    spread = np.zeros((*block, outputs, inputs, *extents), weight.dtype)
    for place in itertools.product(*map(range, block)):
        window = (slice(at * step, at * step + extent) for at, step, extent in zip(place, strides, kernel, strict=True))
        spread[place][(slice(None), slice(None), *window)] = weight
    return spread.reshape(-1, inputs, *extents)


RULES: tuple[Rule, ...] = tuple(BlockIntoChannels(*block) for block in BLOCKS)
