"""A variance as the mean of squared differences: E[x^2] - E[x]^2 = E[(x - E[x])^2].

A precision move as much as one of speed: where the mean is large against the spread, the left side subtracts two large numbers that
are nearly the same, and BF16 or FP16 leave nothing of what is between them.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import input_of, integers, near, producer, rank
from optimizer.fusion.rewrites.writing import integers as write
from optimizer.fusion.rule import Rule, refused


class SafeVariance(Rule):
    """mean(x x) - m m with m = mean(x) over the same axes, by ReduceMean or GlobalAveragePool."""

    def __init__(self) -> None:
        super().__init__("safe variance")

    def pattern(self, op: Any, a: Any, b: Any) -> Any:
        return op.Sub(a, b, _outputs=["y"])

    def check(self, _context: Any, a: ir.Value, b: ir.Value, y: ir.Value) -> MatchResult:
        found = _found(a, b)
        return refused(found, y) if isinstance(found, str) else MatchResult()

    def rewrite(self, op: Any, a: ir.Value, b: ir.Value, y: ir.Value) -> Any:
        found = _found(a, b)
        assert not isinstance(found, str)
        x, axes, mean = found
        over = write(op, producer(y), "axes", *axes)
        kept = rank(mean) == rank(x)
        away = op.Sub(x, mean if kept else op.ReduceMean(x, over, keepdims=1))
        return op.ReduceMean(op.Mul(away, away), over, keepdims=int(kept))


def _found(a: ir.Value, b: ir.Value) -> tuple[ir.Value, tuple[int, ...], ir.Value] | str:
    """What the variance is of, over which axes, and the mean; or why it is none."""
    of_squares, mean = _mean(a), _square(b)
    if of_squares is None or mean is None:
        return "it is no mean of squares less a squared mean"
    x, of_mean = _square(of_squares[0]), _mean(mean)
    if x is None or of_mean is None or of_mean[0] is not x:
        return "mean and squares are not of one tensor"
    if of_mean[1] != of_squares[1] or rank(a) != rank(mean) or not of_mean[1]:
        return "the means run over other axes"
    return x, of_mean[1], mean


def _mean(value: ir.Value) -> tuple[ir.Value, tuple[int, ...]] | None:
    """What a mean is of, and over which axes, counted from the first."""
    node = value.producer()
    if node is None or node.domain or (x := node.inputs[0] if node.inputs else None) is None or (dimensions := rank(x)) is None:
        return None
    if node.op_type == "GlobalAveragePool":
        return x, tuple(range(2, dimensions))
    axes = integers(input_of(node, 1)) if node.op_type == "ReduceMean" else None
    return None if axes is None else (x, tuple(sorted(axis % dimensions for axis in axes)))


def _square(value: ir.Value) -> ir.Value | None:
    """x of x x or x ** 2."""
    node = value.producer()
    if node is None or node.domain or node.op_type not in {"Mul", "Pow"}:
        return None
    x, other = node.inputs
    return x if (x is other if node.op_type == "Mul" else near(other, 2.0)) else None


RULES: tuple[Rule, ...] = (SafeVariance(),)
