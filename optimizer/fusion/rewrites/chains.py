"""Two linear layers with nothing between them are one: W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2).

One of two convolutions must be of single pixels.  The product may multiply more and move less, or both less.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import fits, input_of, known, producer
from optimizer.fusion.rewrites.folded import pixelwise
from optimizer.fusion.rewrites.writing import constant
from optimizer.fusion.rule import Rule, refused

DEARER = 2.0
"""Times as many multiplications as before that the product may take."""


class ConvOfConv(Rule):
    """Conv(Conv(x)), where the first computes single pixels (and adds nothing where the second pads), or the second does."""

    def __init__(self) -> None:
        super().__init__("convolution of convolution")

    def pattern(self, op: Any, x: Any, v: Any, w: Any) -> Any:
        y = op.Conv(x, v, _allow_other_inputs=True, _outputs=["y"])
        return op.Conv(y, w, _allow_other_inputs=True, _outputs=["z"])

    def check(self, _context: Any, v: ir.Value, w: ir.Value, y: ir.Value, z: ir.Value, **_: Any) -> MatchResult:
        first, second = producer(y), producer(z)
        inner, outer = known(v), known(w)
        biases = [input_of(node, 2) for node in (first, second)]
        if inner is None or outer is None or any(bias is not None and known(bias) is None for bias in biases):
            return refused("a weight or bias is computed", z)
        if inner.ndim != 4 or any(node.attributes.get_int("group", 1) != 1 for node in (first, second)):
            return refused("a convolution is grouped, or not of pictures", z)
        ahead, behind = pixelwise(first, inner), pixelwise(second, outer)
        if not (ahead or behind):
            return refused("neither computes single pixels", z)
        padded = any(second.attributes.get_ints("pads", ())) or second.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
        if not behind and padded and biases[0] is not None and np.any(known(biases[0])):
            return refused("padding puts zeros where the first one's bias would stand", z)
        taps = math.prod(inner.shape[2:]) * math.prod(outer.shape[2:])
        if outer.shape[0] * inner.shape[1] * taps > DEARER * (inner.size + outer.size):
            return refused("the product multiplies too much", z)
        product, bias = _product(first, second)
        if not (fits(product, outer.dtype) and (bias is None or fits(bias, outer.dtype))):
            return refused("the product leaves the range of its type", z)
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, w: ir.Value, y: ir.Value, z: ir.Value, **_: Any) -> Any:
        first, second, weight = producer(y), producer(z), known(w)
        assert weight is not None
        product, bias = _product(first, second)
        inputs = [x, constant(op, w, "product", product.astype(weight.dtype))]
        if bias is not None:
            inputs.append(constant(op, w, "biases", bias.astype(weight.dtype)))
        spatial = first if pixelwise(second, weight) else second
        attributes = {name: value for name, value in spatial.attributes.items() if name != "kernel_shape"}
        return op.Conv(*inputs, **attributes)


def _product(first: ir.Node, second: ir.Node) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Weight and bias of both in one, float64."""
    inner, outer = (np.asarray(known(node.inputs[1]), np.float64) for node in (first, second))
    if inner.shape[2:] == (1, 1) and pixelwise(first, inner):
        product = np.moveaxis(np.tensordot(outer, inner[:, :, 0, 0], axes=(1, 0)), -1, 1)
    else:
        product = np.tensordot(outer[:, :, 0, 0], inner, axes=(1, 0))
    biases = [None if (bias := known(input_of(node, 2))) is None else np.asarray(bias, np.float64) for node in (first, second)]
    if biases[0] is None:
        return product, biases[1]
    through = outer.sum((2, 3)) @ biases[0]
    return product, through if biases[1] is None else through + biases[1]


RULES: tuple[Rule, ...] = (ConvOfConv(),)
