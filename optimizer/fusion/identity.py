"""Nodes that give back what they take: removed, unless input and output both have a name that the caller knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import input_of, integers, known, number, producer, rank, size, stands_for
from optimizer.fusion.rule import Rule, refused
from optimizer.fusion.transposition import permutation
from optimizer.graph import static_shape


def _never_changes(_node: ir.Node) -> str | None:
    return None


def _dropout(node: ir.Node) -> str | None:
    training = input_of(node, 2)
    if training is not None and number(training) != 0:
        return "the dropout may be in training mode"
    return "the mask is read as well" if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]) else None


def _cast(node: ir.Node) -> str | None:
    before = _x(node).dtype
    return None if before is not None and int(before) == node.attributes.get_int("to", 0) else "the type changes"


def _same_shape(node: ir.Node) -> str | None:
    before, after = static_shape(_x(node)), static_shape(node.outputs[0])
    return None if before is not None and before == after else "the shape changes, or is not known"


def _reshape(node: ir.Node) -> str | None:
    """Numbers are neither lost nor made, so that one free size that has kept its place is the same size."""
    before, after = _x(node).shape, node.outputs[0].shape
    if before is not None and after is not None:
        sizes = [[size if isinstance(size, int) else None for size in shape] for shape in (before, after)]
        if sizes[0] == sizes[1] and sizes[0].count(None) == 1 and 0 not in sizes[0]:
            return None
    return _same_shape(node)


def _transpose(node: ir.Node) -> str | None:
    order = permutation(node)
    return None if order is not None and order == tuple(range(len(order))) else "the axes change their order"


def _slice(node: ir.Node) -> str | None:
    x, starts, ends = _x(node), integers(input_of(node, 1)), integers(input_of(node, 2))
    dimensions = rank(x)
    if starts is None or ends is None or dimensions is None:
        return "the slice is computed"
    axes = range(len(starts)) if input_of(node, 3) is None else integers(input_of(node, 3))
    steps = (1,) * len(starts) if input_of(node, 4) is None else integers(input_of(node, 4))
    if axes is None or steps is None:
        return "the slice is computed"
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        whole = end >= (size(x, axis) or 2**31 - 1)
        if start != 0 or step != 1 or not whole:
            return "the slice leaves something out"
    return None


def _pad(node: ir.Node) -> str | None:
    pads = integers(input_of(node, 1))
    return None if pads is not None and not any(pads) else "the Pad adds something"


def _concat(node: ir.Node) -> str | None:
    return None if len(node.inputs) == 1 else "several inputs are joined"


def _neutral(element: float) -> Callable[[ir.Node], str | None]:
    def changes(node: ir.Node) -> str | None:
        array = known(node.inputs[1])
        if array is None or not np.all(array.astype(np.float64) == element):
            return f"the operand is not {element:g}"
        x = _x(node)
        if array.size == 1 and rank(x) is not None and array.ndim <= (rank(x) or 0):
            return None
        return _same_shape(node)

    return changes


def _x(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None, "the first input of these operators can't be left out"
    return value


UNCHANGED: dict[str, Callable[[ir.Node], str | None]] = {
    "Identity": _never_changes,
    "Dropout": _dropout,
    "Cast": _cast,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Expand": _same_shape,
    "Transpose": _transpose,
    "Slice": _slice,
    "Pad": _pad,
    "Concat": _concat,
    "Add": _neutral(0),
    "Sub": _neutral(0),
    "Mul": _neutral(1),
    "Div": _neutral(1),
}
"""For each operator, why its output differs from its first input, or None where it does not."""


class Removed(Rule):
    """A node whose output is its input."""

    def __init__(self, operator: str) -> None:
        super().__init__(f"{operator} without effect")
        self.operator = operator

    def pattern(self, op: Any, x: Any) -> Any:
        return getattr(op, self.operator)(x, _allow_other_inputs=True, _outputs=["y"])

    def check(self, _context: Any, x: ir.Value, y: ir.Value) -> MatchResult:
        if reason := UNCHANGED[self.operator](producer(y)):
            return refused(reason, y)
        return MatchResult() if stands_for(x, y) else refused("input and output are both open to the caller", x, y)

    def rewrite(self, _op: Any, x: ir.Value, **_: Any) -> Any:
        return x


class CastLike(Rule):
    """CastLike(x, y) = Cast(x) to the type of y, which is known before the run though y is not."""

    def __init__(self) -> None:
        super().__init__("CastLike to a known type")

    def pattern(self, op: Any, x: Any, y: Any) -> Any:
        return op.CastLike(x, y)

    def check(self, _context: Any, y: ir.Value, **_: Any) -> MatchResult:
        return refused("the type is not known", y) if y.dtype is None else MatchResult()

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value) -> Any:
        return op.Cast(x, to=y.dtype)


class ReversedTwice(Rule):
    """Slices that each take all of one axis from its last element to its first: two of them give back what they take."""

    def __init__(self) -> None:
        super().__init__("Slice back and back again")

    def pattern(self, op: Any, x: Any, a: Any, b: Any, axis: Any, step: Any, c: Any, d: Any, axis2: Any, step2: Any) -> Any:
        return op.Slice(op.Slice(x, a, b, axis, step), c, d, axis2, step2, _outputs=["y"])

    def check(self, _context: Any, x: ir.Value, y: ir.Value, axis: ir.Value, axis2: ir.Value, **numbers: ir.Value) -> MatchResult:
        a, b, step, c, d, step2 = (integers(numbers[name]) for name in ("a", "b", "step", "c", "d", "step2"))
        dimensions = rank(x)
        chosen = [] if dimensions is None else [{each % dimensions for each in integers(value) or ()} for value in (axis, axis2)]
        if not a == c == step == step2 == (-1,) or not all(end is not None and end[0] <= -(2**31) for end in (b, d)):
            return refused("a slice does more than turn one axis round", y)
        if not chosen or chosen[0] != chosen[1] or len(chosen[0]) != 1:
            return refused("the two turn different axes round", axis, axis2)
        return MatchResult() if stands_for(x, y) else refused("input and output are both open to the caller", x, y)

    def rewrite(self, _op: Any, x: ir.Value, **_: Any) -> Any:
        return x


class TimesNothing(Rule):
    """A product of whole numbers with 0 is 0, whatever the other is; of floats it may be NaN."""

    def __init__(self) -> None:
        super().__init__("whole number times 0")

    def pattern(self, op: Any, x: Any, zero: Any) -> Any:
        return op.Mul(x, zero, _outputs=["y"])

    def check(self, _context: Any, x: ir.Value, zero: ir.Value, y: ir.Value) -> MatchResult:
        array = known(zero)
        if array is None or array.dtype.kind not in "iu" or array.any():
            return refused("it is not whole numbers times 0", x, zero)
        return MatchResult() if static_shape(y) is not None else refused("the shape is not known", y)

    def rewrite(self, op: Any, zero: ir.Value, y: ir.Value, **_: Any) -> Any:
        array = known(zero)
        assert array is not None
        return op.Identity(op.initializer(ir.tensor(np.zeros(static_shape(y) or (), array.dtype)), name=f"{producer(y).name}.zero"))


TYPES: tuple[Rule, ...] = (CastLike(), Removed("Cast"))

RULES: tuple[Rule, ...] = (*TYPES, ReversedTwice(), TimesNothing(), *(Removed(operator) for operator in UNCHANGED if operator != "Cast"))
