"""A transposed convolution whose windows don't overlap computes pixels of a block as channels.

    W'[(p, q, oc), ic] = W[ic, oc, p, q],  laid back by DepthToSpace:

a Conv of single pixels, for which engines have their best kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import input_of, known, producer
from optimizer.fusion.rewrites.writing import constant, same_numbers
from optimizer.fusion.rule import Rule, refused


class TransposedIntoPixels(Rule):
    """ConvTranspose of pictures with a square kernel, as large as its stride, and no pads."""

    def __init__(self) -> None:
        super().__init__("transposed convolution into pixels")

    def pattern(self, op: Any, x: Any, w: Any) -> Any:
        return op.ConvTranspose(x, w, _allow_other_inputs=True, _outputs=["y"])

    def check(self, _context: Any, y: ir.Value, w: ir.Value, **_: Any) -> MatchResult:
        node, weight = producer(y), known(w)
        if weight is None or weight.ndim != 4 or (len(node.inputs) > 2 and known(node.inputs[2]) is None):
            return refused("it is no convolution of pictures with known weights", node)
        height, width = weight.shape[2:]
        if height != width or tuple(node.attributes.get_ints("strides", (1, 1))) != (height, width):
            return refused("its windows overlap, leave gaps, or are not square", node)
        if node.attributes.get_int("group", 1) != 1 or any(step > 1 for step in node.attributes.get_ints("dilations", ())):
            return refused("it is grouped or dilated", node)
        given = [name for name in ("pads", "output_padding") if any(node.attributes.get_ints(name, ()))]
        if given or "output_shape" in node.attributes or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            return refused("its output is cut or extended", node)
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, w: ir.Value, y: ir.Value) -> Any:
        weight = known(w)
        assert weight is not None
        inputs, outputs, size, _ = weight.shape
        parts = [x, constant(op, w, "pixels", weight.transpose(2, 3, 1, 0).reshape(size**2 * outputs, inputs, 1, 1))]
        if (bias := known(input_of(producer(y), 2))) is not None:
            parts.append(constant(op, w, "biases", np.tile(bias, size**2)))
        return op.DepthToSpace(same_numbers(op.Conv(*parts), y), blocksize=size, mode="DCR")


RULES: tuple[Rule, ...] = (TransposedIntoPixels(),)
