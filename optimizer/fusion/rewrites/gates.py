"""Gates of channels (squeeze and excitation, Hu et al. 2018) with less memory moved.

x + x s = x (1 + s),            s one number a channel: one pass over x instead of two;
mean(W x + b) = W mean(x) + b,  W of single pixels: the mean runs over the fewer channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import known, producer
from optimizer.fusion.rewrites.folded import pixelwise
from optimizer.fusion.rewrites.writing import constant
from optimizer.fusion.rule import Rule, refused
from optimizer.graph import elements, readers


class PlusGated(Rule):
    """x + x s in each order of its operands, where s has fewer numbers than x."""

    def __init__(self, form: str) -> None:
        super().__init__(f"gate {form}")
        self.form = form

    def pattern(self, op: Any, x: Any, s: Any) -> Any:
        gated = op.Mul(x, s) if "x s" in self.form else op.Mul(s, x)
        return op.Add(x, gated, _outputs=["y"]) if self.form.startswith("x +") else op.Add(gated, x, _outputs=["y"])

    def check(self, _context: Any, x: ir.Value, s: ir.Value, y: ir.Value) -> MatchResult:
        sizes = elements(x), elements(s)
        if sizes[0] is None or sizes[1] is None or sizes[1] >= sizes[0] or elements(y) != sizes[0]:
            return refused("the gate is not known to have fewer numbers", s)
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, s: ir.Value, y: ir.Value) -> Any:
        assert x.dtype is not None
        return op.Mul(x, op.Add(s, constant(op, producer(y), "one", np.asarray(1, x.dtype.numpy()))))


class MeanBeforePixels(Rule):
    """GlobalAveragePool(Conv(x)) = Conv(GlobalAveragePool(x)) for a Conv of single pixels, where that reads fewer numbers."""

    def __init__(self) -> None:
        super().__init__("mean before convolution of pixels")

    def pattern(self, op: Any, x: Any) -> Any:
        return op.GlobalAveragePool(x, _outputs=["y"])

    def check(self, _context: Any, x: ir.Value, y: ir.Value) -> MatchResult:
        node = x.producer()
        weight = known(node.inputs[1]) if node is not None and node.op_type == "Conv" and not node.domain else None
        if node is None or weight is None or not pixelwise(node, weight):
            return refused("what it averages is no convolution of single pixels with known weights", x)
        alone = readers(x) == [producer(y)] and not x.is_graph_output()
        return MatchResult() if alone or weight.shape[1] < weight.shape[0] else refused("the convolution reads more channels", x)

    def rewrite(self, op: Any, x: ir.Value, **_: Any) -> Any:
        node = producer(x)
        return op.Conv(op.GlobalAveragePool(node.inputs[0]), *node.inputs[1:], **node.attributes)


RULES: tuple[Rule, ...] = (*map(PlusGated, ("x + x s", "x + s x", "x s + x", "s x + x")), MeanBeforePixels())
