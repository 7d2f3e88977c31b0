"""A variance as the mean of squared differences: E[x^2] - E[x]^2 = E[(x - E[x])^2].

A precision move as much as one of speed: where the mean is large against the spread, the left side subtracts two large numbers that
are nearly the same, and BF16 or FP16 leave nothing of what is between them.
"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import input_of, integers, near, producer, rank, size
from optimizer.fusion.rewrites.writing import integers as write
from optimizer.fusion.rule import Rule, refused


class SafeVariance(Rule):
    """mean(x x) - m m with m = mean(x) over the same axes, by ReduceMean, ReduceSum over the number, or GlobalAveragePool."""

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
    """What a mean is of, and over which axes, counted from the first; a sum over its number counts as one."""
    node = value.producer()
    if node is None or node.domain or (x := node.inputs[0] if node.inputs else None) is None or (dimensions := rank(x)) is None:
        return None
    if node.op_type == "GlobalAveragePool":
        return x, tuple(range(2, dimensions))
    if node.op_type in {"Mul", "Div"}:
        return _sum_over_number(node, x)
    axes = integers(input_of(node, 1)) if node.op_type == "ReduceMean" else None
    return None if axes is None else (x, tuple(sorted(axis % dimensions for axis in axes)))


def _sum_over_number(scaled: ir.Node, total: ir.Value) -> tuple[ir.Value, tuple[int, ...]] | None:
    """What is summed and divided by how many numbers there are, or multiplied by the inverse; with the axes."""
    node = total.producer()
    x = node.inputs[0] if node is not None and node.op_type == "ReduceSum" and not node.domain else None
    if node is None or x is None or (dimensions := rank(x)) is None or (axes := integers(input_of(node, 1))) is None:
        return None
    sizes = [size(x, axis) for axis in axes]
    count = math.prod(each for each in sizes if each is not None)
    if None in sizes or not count or not near(scaled.inputs[1], 1 / count if scaled.op_type == "Mul" else count):
        return None
    return x, tuple(sorted(axis % dimensions for axis in axes))


def _square(value: ir.Value) -> ir.Value | None:
    """x of x x or x ** 2."""
    node = value.producer()
    if node is None or node.domain or node.op_type not in {"Mul", "Pow"}:
        return None
    x, other = node.inputs
    return x if (x is other if node.op_type == "Mul" else near(other, 2.0)) else None


RULES: tuple[Rule, ...] = (SafeVariance(),)
