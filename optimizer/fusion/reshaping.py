"""Chains of reshapes: the last one alone says what comes out, since none of them moves a number."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import integers, producer
from optimizer.fusion.rule import Rule, refused

OPERATORS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


class Chain(Rule):
    """Reshape(Reshape(x)) = Reshape(x), for every pair of operators that only reshape."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{second} of {first}")
        self.first = first
        self.second = second

    def pattern(self, op: Any, x: Any) -> Any:
        y = getattr(op, self.first)(x, _allow_other_inputs=True)
        return getattr(op, self.second)(y, _allow_other_inputs=True, _outputs=["z"])

    def check(self, _context: Any, z: ir.Value, **_: Any) -> MatchResult:
        return MatchResult() if _target(z) is not None else refused("more than one of the resulting sizes is free", z)

    def rewrite(self, op: Any, x: ir.Value, z: ir.Value) -> Any:
        target = op.initializer(ir.tensor(np.array(_target(z), np.int64)), name=f"{producer(z).name}.shape")
        return op.Reshape(x, target)


def _target(z: ir.Value) -> list[int] | None:
    """The shape of `z` as Reshape takes it, whatever it is applied to."""
    node = producer(z)
    if node.op_type == "Reshape":
        given = integers(node.inputs[1])
        if given is not None and 0 not in given:
            return list(given)
    if z.shape is None:
        return None
    sizes = [each if isinstance(each, int) else -1 for each in z.shape]
    return sizes if sizes.count(-1) <= 1 and (0 not in sizes) else None


RULES: tuple[Rule, ...] = tuple(Chain(first, second) for first in OPERATORS for second in OPERATORS)
