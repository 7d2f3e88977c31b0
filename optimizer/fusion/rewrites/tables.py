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

WITH_ROW = ("Add", "Div", "Mul", "Sub")
"""Operators that take each number with one of a constant row."""

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
    """f(Gather(W, i)) = Gather(f(W), i), for an f that takes each row alone; only tables of a rewrite if `ours`."""

    def __init__(self, operator: str, *, ours: bool) -> None:
        super().__init__(f"{operator} into table")
        self.operator = operator
        self.ours = ours

    def pattern(self, op: Any, w: Any, i: Any) -> Any:
        found = op.Gather(w, i, _allow_other_attributes=True, _outputs=["found"])
        return getattr(op, self.operator)(found, _allow_other_inputs=True, _allow_other_attributes=True, _outputs=["y"])

    def check(self, _context: Any, w: ir.Value, found: ir.Value, y: ir.Value, **_: Any) -> MatchResult:
        table, node = known(w), producer(y)
        if table is None or table.ndim != 2 or table.dtype.kind != "f" or not owned(w):
            return refused("it is no table of its own", node)
        if self.ours and _OURS not in w.metadata_props:
            return refused("no rewrite wrote this table", node)
        if producer(found).attributes.get_int("axis", 0) not in (0, -2) or not rank(found):
            return refused("columns are picked, not rows", node)
        operands = [known(value) for value in node.inputs[1:] if value is not None]
        if any(array is None for array in operands):
            return refused("the other operand is computed", node)
        if (reason := self._not_by_row(node, table, [array for array in operands if array is not None])) is not None:
            return refused(reason, node)
        return MatchResult()

    def _not_by_row(self, node: ir.Node, table: NDArray[Any], operands: list[NDArray[Any]]) -> str | None:
        if self.operator in ALONE:
            return None if self.operator not in ROUGH or self.operator in rows.EXACT else "the operator is only computed roughly ahead"
        if self.operator in WITH_ROW:
            row = operands[0]
            along = row.ndim == 0 or (row.size == row.shape[-1] and row.shape[-1] in (1, table.shape[1]))
            return None if along and row.ndim <= (rank(node.inputs[0]) or 0) else "the operand is not one row"
        if self.operator == "LayerNormalization":
            last = node.attributes.get_int("axis", -1) in (-1, (rank(node.inputs[0]) or 0) - 1)
            return None if last and len(node.outputs) == 1 else "it normalizes over more than a row"
        matrix = operands[0]
        if matrix.ndim != 2 or matrix.shape[1] > LARGEST * table.shape[1]:
            return "the table would grow too much"
        return None

    def rewrite(self, op: Any, w: ir.Value, i: ir.Value, y: ir.Value, **_: Any) -> Any:
        table, node = known(w), producer(y)
        assert table is not None
        after = constant(op, w, node.name or self.operator, rows.computed(node, table))
        after.metadata_props[_OURS] = ""
        return op.Gather(after, i, axis=0)


_ROWWISE = (*ALONE, *WITH_ROW, "LayerNormalization", "MatMul")

RULES: tuple[Rule, ...] = (EqualProduct(), OneHotProduct(), *(RowwiseIntoTable(operator, ours=False) for operator in _ROWWISE))

BEHIND: tuple[Rule, ...] = tuple(RowwiseIntoTable(operator, ours=True) for operator in _ROWWISE)
"""Behind a rewrite, as part of it."""
