"""Axes moved before they grow, and no detour around an operator that never needed it.

Transpose(Concat(a, b ...)) = Concat(Transpose(a), Transpose(b) ...),
Reshape(Softmax(Reshape(x))) = Softmax(x)  over the last axis, where that keeps its size.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import producer, rank, size
from optimizer.fusion.rule import Rule, refused
from optimizer.fusion.transposition import permutation


class TransposeBeforeConcat(Rule):
    """Transpose(Concat(...)) where the Concat runs along the last axis, whose numbers lie side by side."""

    def __init__(self) -> None:
        super().__init__("Transpose before Concat")

    def pattern(self, op: Any) -> Any:
        joined = op.Concat(_allow_other_inputs=True, _outputs=["joined"])
        return op.Transpose(joined, _outputs=["y"])

    def check(self, _context: Any, joined: ir.Value, y: ir.Value) -> MatchResult:
        dimensions, order = rank(joined), permutation(producer(y))
        if dimensions is None or order is None:
            return refused("the rank is not known", joined)
        axis = producer(joined).attributes.get_int("axis", 0) % dimensions
        if axis != dimensions - 1 or order[-1] == axis:
            return refused("the Concat does not run along the last axis, or stays there", joined)
        return MatchResult()

    def rewrite(self, op: Any, joined: ir.Value, y: ir.Value) -> Any:
        order = permutation(producer(y))
        assert order is not None
        parts = [op.Transpose(value, perm=list(order)) for value in producer(joined).inputs]
        return op.Concat(*parts, axis=order.index(len(order) - 1))


class SoftmaxInPlace(Rule):
    """Softmax over the last axis between two operators that reshape, where the tensor has its first shape again behind them."""

    def __init__(self, first: str) -> None:
        super().__init__(f"Softmax without {first}")
        self.first = first

    def pattern(self, op: Any, x: Any) -> Any:
        flat = getattr(op, self.first)(x, _allow_other_inputs=True, _outputs=["flat"])
        return op.Reshape(op.Softmax(flat, _outputs=["soft"]), _allow_other_inputs=True, _outputs=["y"])

    def check(self, _context: Any, x: ir.Value, flat: ir.Value, soft: ir.Value, y: ir.Value) -> MatchResult:
        dimensions = rank(flat)
        last = producer(soft).attributes.get_int("axis", -1)
        if dimensions is None or last % dimensions != dimensions - 1:
            return refused("it is not over the last axis", soft)
        if x.shape is None or y.shape is None or any(not isinstance(each, int) for each in (*x.shape, *y.shape)) or x.shape != y.shape:
            return refused("the shape behind is not known to be the one before", y)
        return MatchResult() if size(flat, -1) == size(x, -1) else refused("the last axis has another size between", flat)

    def rewrite(self, op: Any, x: ir.Value, **_: Any) -> Any:
        return op.Softmax(x, axis=-1)


RULES: tuple[Rule, ...] = (
    TransposeBeforeConcat(),
    SoftmaxInPlace("Flatten"),
    SoftmaxInPlace("Reshape"),
)
