"""A scale and shift of channels that no layer can take in (between a nonlinear operator and a padded convolution) as a depthwise
convolution of single pixels: one pass instead of two, in the blocked layout in which engines keep what convolutions exchange.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import MatchResult

from optimizer.fusion.channels import affine
from optimizer.fusion.conditions import fits, producer, rank, size
from optimizer.fusion.rewrites.writing import constant
from optimizer.fusion.rule import Rule, refused


class AffineIntoConvolution(Rule):
    """x s + t for pictures x, with constants of one number a channel, or one in all."""

    def __init__(self) -> None:
        super().__init__("scale and shift into depthwise convolution")

    def pattern(self, op: Any, x: Any, s: Any, t: Any) -> Any:
        return op.Add(op.Mul(x, s, _outputs=["scaled"]), t, _outputs=["y"])

    def check(self, _context: Any, x: ir.Value, scaled: ir.Value, y: ir.Value, **_: Any) -> MatchResult:
        found = self._found(x, scaled, y)
        return refused(found, y) if isinstance(found, str) else MatchResult()

    def rewrite(self, op: Any, x: ir.Value, s: ir.Value, t: ir.Value, scaled: ir.Value, y: ir.Value) -> Any:
        found = self._found(x, scaled, y)
        assert not isinstance(found, str)
        assert x.dtype is not None
        scale, shift = (array.astype(x.dtype.numpy()) for array in found)
        weight = constant(op, s, "pixels", scale.reshape(-1, 1, 1, 1))
        return op.Conv(x, weight, constant(op, t, "biases", shift), group=len(scale))

    @staticmethod
    def _found(x: ir.Value, scaled: ir.Value, y: ir.Value) -> tuple[NDArray[np.float64], NDArray[np.float64]] | str:
        """Scale and shift by channel, or why not."""
        channels = size(x, 1)
        if rank(x) != 4 or channels is None or x.dtype is None or rank(y) != 4:
            return "it is no picture with known channels"
        parts = [affine(producer(value), before, rank=4, axis=1, channels=channels) for value, before in ((scaled, x), (y, scaled))]
        first, second = parts
        if isinstance(first, str) or isinstance(second, str):
            return next(part for part in parts if isinstance(part, str))
        if not (fits(first.scale, x.dtype.numpy()) and fits(second.shift, x.dtype.numpy())):
            return "scale or shift leave the range of their type"
        return first.scale, second.shift


RULES: tuple[Rule, ...] = (AffineIntoConvolution(),)
