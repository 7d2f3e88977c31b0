"""Chains of reshapes, and what is one without being called so: the last one alone says what comes out, since none moves a number."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import input_of, integers, producer, rank, size
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


class Past(Rule):
    """The same where others read what the first one gives: the second reads what the first one read."""

    def __init__(self, second: str) -> None:
        super().__init__(f"{second} past a reshape that others read")
        self.second = second

    def pattern(self, op: Any, y: Any) -> Any:
        return getattr(op, self.second)(y, _allow_other_inputs=True, _outputs=["z"])

    def check(self, _context: Any, y: ir.Value, z: ir.Value) -> MatchResult:
        first = y.producer()
        if first is None or first.domain or first.op_type not in OPERATORS or first.graph is not producer(z).graph:
            return refused("what it reads is not reshaped", y)
        return MatchResult() if _target(z) is not None else refused("more than one of the resulting sizes is free", z)

    def rewrite(self, op: Any, y: ir.Value, z: ir.Value) -> Any:
        target = op.initializer(ir.tensor(np.array(_target(z), np.int64)), name=f"{producer(z).name}.shape")
        return op.Reshape(producer(y).inputs[0], target)


class ReductionOfOne(Rule):
    """A mean, sum, product or extreme along axes of size 1 is what was there."""

    def __init__(self, operator: str) -> None:
        super().__init__(f"{operator} along size 1")
        self.operator = operator

    def pattern(self, op: Any, x: Any) -> Any:
        return getattr(op, self.operator)(x, _allow_other_inputs=True, _outputs=["z"])

    def check(self, _context: Any, x: ir.Value, z: ir.Value) -> MatchResult:
        axes = integers(input_of(producer(z), 1))
        if not axes or any(size(x, axis) != 1 for axis in axes):
            return refused("the axes are not known, or not all of size 1", x)
        return MatchResult() if _target(z) is not None else refused("more than one of the resulting sizes is free", z)

    def rewrite(self, op: Any, x: ir.Value, z: ir.Value) -> Any:
        return op.Reshape(x, op.initializer(ir.tensor(np.array(_target(z), np.int64)), name=f"{producer(z).name}.shape"))


class OneOfAnAxis(Rule):
    """Unsqueeze(Gather(x, i)) = Slice(x, i, i + 1) where the axis that the one takes away is the one that the other puts there."""

    def __init__(self) -> None:
        super().__init__("Gather of one and Unsqueeze into Slice")

    def pattern(self, op: Any, x: Any, index: Any, axes: Any) -> Any:
        return op.Unsqueeze(op.Gather(x, index, _outputs=["y"]), axes, _outputs=["z"])

    def check(self, _context: Any, x: ir.Value, index: ir.Value, axes: ir.Value, y: ir.Value, **_: Any) -> MatchResult:
        dimensions, added = rank(x), integers(axes)
        if dimensions is None or rank(index) != 0 or integers(index) is None:
            return refused("the index is computed or not one number, or the dimensions are not known", x, index)
        if added is None or len(added) != 1 or added[0] % dimensions != _axis(y) % dimensions:
            return refused("another axis comes back than was taken away", axes)
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, index: ir.Value, y: ir.Value, **_: Any) -> Any:
        start = (integers(index) or (0,))[0]
        bounds = {"start": start, "end": start + 1 if start != -1 else _END, "axis": _axis(y)}
        layer = producer(y).name
        words = [op.initializer(ir.tensor(np.array([bound], np.int64)), name=f"{layer}.{name}") for name, bound in bounds.items()]
        return op.Slice(x, *words)


def _axis(y: ir.Value) -> int:
    return producer(y).attributes.get_int("axis", 0)


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


_END = int(np.iinfo(np.int64).max)
"""Where a Slice that goes to the end ends."""

REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin")

RULES: tuple[Rule, ...] = (
    OneOfAnAxis(),
    *(ReductionOfOne(operator) for operator in REDUCTIONS),
    *(Chain(first, second) for first in OPERATORS for second in OPERATORS),
    *(Past(second) for second in OPERATORS),
)
