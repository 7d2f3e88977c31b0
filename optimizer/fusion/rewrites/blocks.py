"""A convolution with few output channels computes a block of pixels as channels of one.

Vector units compute 8 or 16 output channels at once, and leave the rest of a register idle where there are fewer.  A block
of pixels is as many more channels:

    W'[(p, q, oc), ic, kh + p sh, kw + q sw] = W[oc, ic, kh, kw],  strides times the block,

and what comes out is laid back by DepthToSpace.  The zeros in W' cost multiplications, the more the smaller the kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import input_of, known, producer, size
from optimizer.fusion.rule import Rule, refused

LANES = 16
"""Float32 numbers in the widest vector registers of x86-64."""

BLOCKS = ((2, 2), (1, 2), (1, 4))
"""Rows and columns of a block."""


class BlockIntoChannels(Rule):
    """Conv with fewer output channels than lanes, over pixels whose number is a multiple of the block's."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__(f"blocks of {rows} x {columns} pixels into channels")
        self.block = (rows, columns)

    def pattern(self, op: Any, x: Any, w: Any) -> Any:
        return op.Conv(x, w, _allow_other_inputs=True, _outputs=["y"])

    def check(self, _context: Any, y: ir.Value, w: ir.Value, **_: Any) -> MatchResult:
        node, weight = producer(y), known(w)
        if weight is None or weight.ndim != 4 or (len(node.inputs) > 2 and known(node.inputs[2]) is None):
            return refused("it is no convolution of pictures with known weights", node)
        if weight.shape[0] * self.block[0] * self.block[1] > LANES:
            return refused("its output channels fill the vector registers", node)
        if node.attributes.get_int("group", 1) != 1 or any(step > 1 for step in node.attributes.get_ints("dilations", ())):
            return refused("it is grouped or dilated", node)
        if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            return refused("it finds its pads by itself", node)
        sizes = (size(y, 2), size(y, 3))
        if any(found is None or found % part for found, part in zip(sizes, self.block, strict=True)):
            return refused("its output can't be cut into blocks", node)
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, w: ir.Value, y: ir.Value) -> Any:
        node, weight = producer(y), known(w)
        assert weight is not None
        strides = tuple(node.attributes.get_ints("strides", (1, 1)))
        inputs = [x, op.initializer(ir.tensor(_spread(weight, self.block, strides)), name=f"{w.name}/blocks")]
        if (bias := known(input_of(node, 2))) is not None:
            inputs.append(op.initializer(ir.tensor(np.tile(bias, self.block[0] * self.block[1])), name=f"{w.name}/biases"))
        wide = op.Conv(
            *inputs,
            pads=list(node.attributes.get_ints("pads", (0, 0, 0, 0))),
            strides=[step * part for step, part in zip(strides, self.block, strict=True)],
        )
        rows, columns = self.block
        if rows == columns:
            return op.DepthToSpace(wide, blocksize=rows, mode="DCR")
        height, width, channels = size(y, 2), size(y, 3), weight.shape[0]
        assert height is not None
        assert width is not None
        parts = op.Reshape(wide, _sizes(op, node, "parts", [0, rows, columns, channels, height // rows, width // columns]))
        return op.Reshape(op.Transpose(parts, perm=[0, 3, 4, 1, 5, 2]), _sizes(op, node, "whole", [0, channels, height, width]))


def _sizes(op: Any, node: ir.Node, what: str, sizes: list[int]) -> Any:
    return op.initializer(ir.tensor(np.asarray(sizes, np.int64)), name=f"{node.name}/{what}")


def _spread(weight: NDArray[Any], block: tuple[int, int], strides: tuple[int, ...]) -> NDArray[Any]:
    """The weight of the block's convolution, shape (rows * columns * oc, ic, kh + (rows - 1) sh, kw + (columns - 1) sw)."""
    (rows, columns), (down, right) = block, strides
    outputs, inputs, height, width = weight.shape
    spread = np.zeros((rows, columns, outputs, inputs, height + (rows - 1) * down, width + (columns - 1) * right), weight.dtype)
    for p in range(rows):
        for q in range(columns):
            spread[p, q, :, :, p * down : p * down + height, q * right : q * right + width] = weight
    return spread.reshape(-1, *spread.shape[3:])


RULES: tuple[Rule, ...] = tuple(BlockIntoChannels(*block) for block in BLOCKS)
