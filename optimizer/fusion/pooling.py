"""ReduceMean over all pixels is GlobalAveragePool, which engines have an INT8 kernel for."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import FLOATS, input_of, integers, producer, rank
from optimizer.fusion.rule import Rule, refused


class MeanOfPixels(Rule):
    """mean over (H, W) of an N x C x H x W tensor = GlobalAveragePool; Flatten drops the axes where the mean dropped them.

    Three dimensions are left alone: the mean over the last of them is a normalization's, not an image's.
    """

    def __init__(self) -> None:
        super().__init__("ReduceMean over pixels")

    def pattern(self, op: Any, x: Any) -> Any:
        return op.ReduceMean(x, _allow_other_inputs=True, _outputs=["y"])

    def check(self, _context: Any, x: ir.Value, y: ir.Value) -> MatchResult:
        node, dimensions = producer(y), rank(x)
        if x.dtype not in FLOATS:
            return refused("the input is not known to be of a float type", x)
        axes = integers(input_of(node, 1))
        if dimensions is None or axes is None:
            return refused("the axes or the rank are not known", node)
        if dimensions < 4 or sorted(axis % dimensions for axis in axes) != list(range(2, dimensions)):
            return refused("the mean does not run over exactly the pixels of an image", node)
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value) -> Any:
        pooled = op.GlobalAveragePool(x)
        return pooled if producer(y).attributes.get_int("keepdims", 1) else op.Flatten(pooled, axis=1)


RULES: tuple[Rule, ...] = (MeanOfPixels(),)
