"""Transposes: two become one or none, and one that moves no number a Reshape; `regions` saves Transposes over whole graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult

from optimizer.fusion import flattening
from optimizer.fusion.conditions import producer, rank, stands_for
from optimizer.fusion.rule import Rule, refused


def permutation(transpose: ir.Node) -> tuple[int, ...] | None:
    """The axes of the input in the order of the output; left out, they are reversed."""
    given = transpose.attributes.get_ints("perm")
    if given is not None:
        return tuple(given)
    dimensions = rank(transpose.inputs[0])
    return None if dimensions is None else tuple(reversed(range(dimensions)))


class Two(Rule):
    """Transpose(Transpose(x)) is one Transpose, or x itself."""

    def __init__(self) -> None:
        super().__init__("Transpose of Transpose")

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Transpose(op.Transpose(x, _outputs=["y"]), _outputs=["z"])

    def check(self, _context: Any, x: ir.Value, y: ir.Value, z: ir.Value) -> MatchResult:
        both = self._both(y, z)
        if both is None:
            return refused("the rank is not known", y)
        if both == tuple(range(len(both))) and not stands_for(x, z):
            return refused("input and output are both open to the caller", x, z)
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value, z: ir.Value) -> Any:
        both = self._both(y, z)
        assert both is not None
        return x if both == tuple(range(len(both))) else op.Transpose(x, perm=both)

    @staticmethod
    def _both(y: ir.Value, z: ir.Value) -> tuple[int, ...] | None:
        first, second = permutation(producer(y)), permutation(producer(z))
        return None if first is None or second is None else tuple(first[axis] for axis in second)


class MovesNothing(Rule):
    """A Transpose that only moves axes of size 1 is a Reshape, which costs nothing and joins others."""

    def __init__(self) -> None:
        super().__init__("Transpose of axes of size 1")

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Transpose(x, _outputs=["y"])

    def check(self, _context: Any, x: ir.Value, y: ir.Value) -> MatchResult:
        order = permutation(producer(y))
        if order is None or x.shape is None:
            return refused("the rank is not known", x)
        if not flattening.moves_nothing(x.shape, order):
            return refused("an axis moves that may hold more than one number", x)
        return MatchResult() if flattening.target(x.shape, order) is not None else refused("more than one size is free", x)

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value) -> Any:
        order = permutation(producer(y))
        assert order is not None
        assert x.shape is not None
        sizes = np.array(flattening.target(x.shape, order), np.int64)
        return op.Reshape(x, op.initializer(ir.tensor(sizes), name=f"{producer(y).name}.shape"))


RULES: tuple[Rule, ...] = (Two(), MovesNothing())
