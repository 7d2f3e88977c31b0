"""Transposes: two become one or none, and one moves down where it meets another to cancel with."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import known, producer, rank, stands_for
from optimizer.fusion.folding import COMMUTATIVE
from optimizer.fusion.rule import Rule, refused
from optimizer.graph import readers

UNARY = (
    "Abs", "Cast", "Ceil", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish",
    "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
)  # fmt: skip
"""Operators that treat each number by itself; further inputs (of Clip) are scalars."""

BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max")


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


class BelowUnary(Rule):
    """f(Transpose(x)) = Transpose(f(x)), where a later Transpose is then next to this one."""

    def __init__(self, operator: str) -> None:
        super().__init__(f"Transpose below {operator}")
        self.operator = operator

    def pattern(self, op: Any, x: Any) -> Any:
        y = op.Transpose(x, _outputs=["y"])
        return getattr(op, self.operator)(y, _allow_other_inputs=True, _outputs=["z"])

    def check(self, _context: Any, y: ir.Value, z: ir.Value, **_: Any) -> MatchResult:
        if permutation(producer(y)) is None:
            return refused("the rank is not known", y)
        return MatchResult() if _meets_transpose(z) else refused("no Transpose follows that this one could cancel with", z)

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value, z: ir.Value) -> Any:
        node = producer(z)
        return op.Transpose(op.op(self.operator, x, *node.inputs[1:], **node.attributes), perm=permutation(producer(y)))


class BelowConstant(Rule):
    """Transpose(x) + c = Transpose(x + c transposed back), where a later Transpose is then next to this one."""

    def __init__(self, operator: str, swapped: bool) -> None:
        super().__init__(f"Transpose below {operator} of a constant")
        self.operator = operator
        self.swapped = swapped

    def pattern(self, op: Any, x: Any, c: Any) -> Any:
        y = op.Transpose(x, _outputs=["y"])
        return getattr(op, self.operator)(*((c, y) if self.swapped else (y, c)), _outputs=["z"])

    def check(self, _context: Any, c: ir.Value, y: ir.Value, z: ir.Value, **_: Any) -> MatchResult:
        order, constant = permutation(producer(y)), known(c)
        if order is None or constant is None:
            return refused("the other operand is computed, or the rank is not known", c)
        if constant.ndim > len(order):
            return refused("the constant adds dimensions", c)
        return MatchResult() if _meets_transpose(z) else refused("no Transpose follows that this one could cancel with", z)

    def rewrite(self, op: Any, x: ir.Value, c: ir.Value, y: ir.Value, z: ir.Value) -> Any:
        order, constant = permutation(producer(y)), known(c)
        assert order is not None
        assert constant is not None
        moved = c
        if constant.ndim:
            aligned = constant.reshape((1,) * (len(order) - constant.ndim) + constant.shape)
            back = np.ascontiguousarray(aligned.transpose(np.argsort(order)))
            moved = op.initializer(ir.tensor(back, dtype=c.dtype), name=f"{c.name}.transposed")
        operands = (moved, x) if self.swapped else (x, moved)
        return op.Transpose(op.op(self.operator, *operands, **producer(z).attributes), perm=order)


class BelowBoth(Rule):
    """Transpose(a) + Transpose(b) = Transpose(a + b), where both permute alike and have the same rank."""

    def __init__(self, operator: str) -> None:
        super().__init__(f"Transposes below {operator}")
        self.operator = operator

    def pattern(self, op: Any, a: Any, b: Any) -> Any:
        return getattr(op, self.operator)(op.Transpose(a, _outputs=["y"]), op.Transpose(b, _outputs=["w"]), _outputs=["z"])

    def check(self, _context: Any, y: ir.Value, w: ir.Value, **_: Any) -> MatchResult:
        first, second = permutation(producer(y)), permutation(producer(w))
        return MatchResult() if first is not None and first == second else refused("the two permute differently", y, w)

    def rewrite(self, op: Any, a: ir.Value, b: ir.Value, y: ir.Value, z: ir.Value, **_: Any) -> Any:
        return op.Transpose(op.op(self.operator, a, b, **producer(z).attributes), perm=permutation(producer(y)))


def _meets_transpose(value: ir.Value) -> bool:
    """Whether a Transpose put at `value` could move on, past one reader after the other, to another Transpose."""
    while not value.is_graph_output() and len(found := readers(value)) == 1:
        node = found[0]
        if node.graph is not value.graph or node.domain:
            return False
        if node.op_type == "Transpose":
            return True
        others = [other for other in node.inputs if other is not None and other is not value]
        if not (node.op_type in UNARY or (node.op_type in BINARY and all(known(other) is not None for other in others))):
            return False
        value = node.outputs[0]
    return False


RULES: tuple[Rule, ...] = (
    Two(),
    *(BelowUnary(operator) for operator in UNARY),
    *(BelowConstant(operator, swapped=False) for operator in BINARY),
    *(BelowConstant(operator, swapped=True) for operator in BINARY if operator not in COMMUTATIVE),
    *(BelowBoth(operator) for operator in BINARY),
)
