"""Arithmetic on rows of a table is done once, on the table.

A one-hot code times a matrix picks its rows: OneHot(i) W = W[i].  What is then done to each row alone, f(W[i]), is f(W)[i]: a bias,
an activation, a normalization over the row, a product with another matrix.  A look-up reads one row where the product read all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import known, number, owned, producer, rank, size
from optimizer.fusion.folding import ROUGH
from optimizer.fusion.rewrites import rows
from optimizer.fusion.rewrites.folded import ALONE
from optimizer.fusion.rewrites.writing import constant
from optimizer.fusion.rule import Rule, refused
from optimizer.graph import LARGE

WITH_ROW = ("Add", "Div", "Mul", "Pow", "Sub")
"""Operators that take each number with one of a constant row, or of another row of the same place."""

LARGEST = 4
"""Times that a table may grow where a product makes its rows longer."""

_OURS = "optimize.table"
"""Metadata key of a table that a rewrite wrote: the next operator on its rows goes in at once."""


class EqualProduct(Rule):
    """MatMul(Cast(Equal(x, classes)), W) with x of one number where the code has one a class, classes 0, 1, 2 ..."""

    def __init__(self) -> None:
        super().__init__("one-hot product into look-up")

    def pattern(self, op: Any, a: Any, b: Any, w: Any) -> Any:
        return op.MatMul(op.Cast(op.Equal(a, b), _allow_other_attributes=True), w, _outputs=["y"])

    def check(self, _context: Any, a: ir.Value, b: ir.Value, w: ir.Value, y: ir.Value) -> MatchResult:
        x, classes = (a, b) if known(b) is not None else (b, a)
        numbers, weight = known(classes), known(w)
        if numbers is None or not numbers.ndim or weight is None or weight.ndim != 2 or x.dtype is None:
            return refused("classes or matrix are computed", y)
        if numbers.size != numbers.shape[-1] or not np.array_equal(numbers.reshape(-1), np.arange(len(weight))):
            return refused("the classes are not 0, 1, 2 ... along the last axis", y)
        if size(x, -1) != 1 or numbers.ndim > (rank(x) or 0):
            return refused("a code is compared with more than one number", y)
        return MatchResult()

    def rewrite(self, op: Any, a: ir.Value, b: ir.Value, w: ir.Value, **_: Any) -> Any:
        x = a if known(b) is not None else b
        weight = known(w)
        assert weight is not None
        code = op.Squeeze(x, constant(op, w, "axis", np.asarray([-1], np.int64)))
        return _looked_up(op, w, weight, code, x, first=0)


class OneHotProduct(Rule):
    """MatMul(OneHot(i, n, [0, 1]), W) along the last axis; an index may count from the end."""

    def __init__(self) -> None:
        super().__init__("OneHot product into look-up")

    def pattern(self, op: Any, i: Any, n: Any, values: Any, w: Any) -> Any:
        return op.MatMul(op.OneHot(i, n, values, _allow_other_attributes=True, _outputs=["code"]), w, _outputs=["y"])

    def check(self, _context: Any, i: ir.Value, n: ir.Value, values: ir.Value, w: ir.Value, code: ir.Value, y: ir.Value) -> MatchResult:
        weight, pair = known(w), known(values)
        if weight is None or weight.ndim != 2 or pair is None or not np.array_equal(pair, [0, 1]) or i.dtype is None:
            return refused("the matrix or the values are computed, or these are not 0 and 1", y)
        if number(n) != len(weight):
            return refused("the depth is computed", n)
        return MatchResult() if producer(code).attributes.get_int("axis", -1) == -1 else refused("the code is not the last axis", code)

    def rewrite(self, op: Any, i: ir.Value, w: ir.Value, **_: Any) -> Any:
        weight = known(w)
        assert weight is not None
        return _looked_up(op, w, weight, i, i, first=-len(weight))


def _looked_up(op: Any, w: ir.Value, weight: NDArray[Any], code: Any, x: ir.Value, first: int) -> Any:
    """The rows of `weight` at `code` (from `first` on, negative ones from the end), zeros for what is no index, as a one-hot code has."""
    assert x.dtype is not None
    kind, count = x.dtype.numpy(), len(weight)
    inside = op.And(
        op.GreaterOrEqual(code, constant(op, w, "first", np.asarray(first, kind))),
        op.LessOrEqual(code, constant(op, w, "last", np.asarray(count - 1, kind))),
    )
    if np.issubdtype(kind, np.floating):
        inside = op.And(inside, op.Equal(code, op.Floor(code)))
    index = op.Cast(code, to=ir.DataType.INT64)
    if first < 0:
        index = op.Where(
            op.Less(index, constant(op, w, "zero", np.asarray(0))), op.Add(index, constant(op, w, "count", np.asarray(count))), index
        )
    table = constant(op, w, "table", np.concatenate([weight, np.zeros_like(weight[:1])]))
    table.metadata_props[_OURS] = ""
    return op.Gather(table, op.Where(inside, index, constant(op, w, "none", np.asarray(count))), axis=0)


class RowwiseIntoTable(Rule):
    """f(V[i], W[i] ...) = f(V, W ...)[i] for an f that takes each row alone; if `ours`, one of the tables is of a rewrite."""

    def __init__(self, operator: str, *, ours: bool) -> None:
        super().__init__(f"{operator} into table")
        self.operator = operator
        self.ours = ours

    def pattern(self, op: Any) -> Any:
        return getattr(op, self.operator)(_allow_other_inputs=True, _allow_other_attributes=True, _outputs=["y"])

    def check(self, _context: Any, y: ir.Value) -> MatchResult:
        node = producer(y)
        found = [_looked(value) for value in node.inputs]
        gathers = [each for each in found if each is not None]
        if not gathers or len({each.inputs[1] for each in gathers}) > 1:
            return refused("it is not done to rows of one place", node)
        if self.ours and not any(_OURS in (each.inputs[0] or y).metadata_props for each in gathers):
            return refused("no rewrite wrote these tables", node)
        constants = [known(value) for value, gather in zip(node.inputs, found, strict=True) if value is not None and gather is None]
        if any(array is None for array in constants):
            return refused("the other operand is computed", node)
        reason = self._not_by_row(node, [array for array in constants if array is not None])
        return MatchResult() if reason is None else refused(reason, node)

    def _not_by_row(self, node: ir.Node, constants: list[NDArray[Any]]) -> str | None:
        dimensions, width = rank(node.outputs[0]) or 0, size(node.inputs[0], -1)
        if self.operator in WITH_ROW:
            width = size(node.outputs[0], -1)
            along = all(row.ndim == 0 or (row.size == row.shape[-1] and row.shape[-1] in (1, width)) for row in constants)
            return None if along and all(row.ndim <= dimensions for row in constants) else "the operand is not one row"
        if _looked(node.inputs[0]) is None:
            return "its first operand is no look-up"
        if self.operator in ALONE:
            return None if self.operator not in ROUGH or self.operator in rows.EXACT else "the operator is only computed roughly ahead"
        if self.operator == "LayerNormalization":
            last = node.attributes.get_int("axis", -1) in (-1, dimensions - 1)
            return None if last and len(node.outputs) == 1 else "it normalizes over more than a row"
        matrix = constants[0] if constants else None
        if matrix is None or matrix.ndim != 2 or width is None or matrix.shape[1] > LARGEST * width:
            return "the table would grow too much, or the product is of two look-ups"
        return None

    def rewrite(self, op: Any, y: ir.Value) -> Any:
        node = producer(y)
        gathers = [_looked(value) for value in node.inputs]
        first = next(each for each in gathers if each is not None)
        operands = [known(value if each is None else each.inputs[0]) for value, each in zip(node.inputs, gathers, strict=True)]
        table = known(first.inputs[0])
        assert table is not None
        after = constant(op, node, "table", rows.computed(node, operands).astype(table.dtype))
        after.metadata_props[_OURS] = ""
        return op.Gather(after, first.inputs[1], axis=0)


def _looked(value: ir.Value | None) -> ir.Node | None:
    """The Gather that wrote `value`, of rows of a float table of its own that is small enough to be computed ahead."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Gather" or node.domain or node.attributes.get_int("axis", 0) not in (0, -2) or not rank(value):
        return None
    table = known(node.inputs[0])
    fits = table is not None and table.ndim == 2 and table.dtype.kind == "f" and table.nbytes <= LARGE
    return node if fits and owned(node.inputs[0]) else None


_ROWWISE = (*ALONE, *WITH_ROW, "LayerNormalization", "MatMul")

RULES: tuple[Rule, ...] = (EqualProduct(), OneHotProduct(), *(RowwiseIntoTable(operator, ours=False) for operator in _ROWWISE))

BEHIND: tuple[Rule, ...] = tuple(RowwiseIntoTable(operator, ours=True) for operator in _ROWWISE)
"""Behind a rewrite, as part of it."""
