"""Arithmetic on rows of a table is done once, on the table.

A one-hot code times a matrix picks its rows: OneHot(i) W = W[i].  What is then done to each row alone, f(W[i]), is f(W)[i]: a bias,
an activation, a normalization over the row, a product with another matrix.  A look-up reads one row where the product read all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import input_of, known, owned, producer, rank, size
from optimizer.fusion.rule import Rule, refused

ALONE = (
    "Abs",
    "Clip",
    "Elu",
    "Erf",
    "Exp",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Neg",
    "Relu",
    "Sigmoid",
    "Softplus",
    "Sqrt",
    "Tanh",
)
"""Operators that take each number alone."""

WITH_ROW = ("Add", "Div", "Mul", "Sub")
"""Operators that take each number with one of a constant row."""

LARGEST = 4
"""Times that a table may grow where a product makes its rows longer."""


class OneHotProduct(Rule):
    """MatMul(Cast(Equal(x, classes)), W) with x of one number where the code has one a class, classes 0, 1, 2 ..."""

    def __init__(self) -> None:
        super().__init__("one-hot product into look-up")

    def pattern(self, op: Any, x: Any, classes: Any, w: Any) -> Any:
        return op.MatMul(op.Cast(op.Equal(x, classes), _allow_other_attributes=True), w, _outputs=["y"])

    def check(self, _context: Any, x: ir.Value, classes: ir.Value, w: ir.Value, y: ir.Value) -> MatchResult:
        numbers, weight = known(classes), known(w)
        if numbers is None or weight is None or weight.ndim != 2 or rank(x) is None:
            return refused("classes or matrix are computed", y)
        if not np.array_equal(numbers.reshape(-1), np.arange(len(weight))) or numbers.size != numbers.shape[-1]:
            return refused("the classes are not 0, 1, 2 ... along the last axis", y)
        if size(x, -1) != 1 or numbers.ndim > (rank(x) or 0):
            return refused("a code is compared with more than one number", y)
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, w: ir.Value, **_: Any) -> Any:
        weight = known(w)
        assert weight is not None

        def constant(what: str, array: NDArray[Any]) -> Any:
            return op.initializer(ir.tensor(array), name=f"{w.name}/{what}")

        kind = x.dtype.numpy() if x.dtype is not None else np.int64
        # What is none of the classes has a code of zeros: the row behind the last.
        table = constant("table", np.concatenate([weight, np.zeros_like(weight[:1])]))
        rows = len(weight)
        code = op.Squeeze(x, constant("axis", np.asarray([-1], np.int64)))
        inside = op.And(
            op.GreaterOrEqual(code, constant("first", np.asarray(0, kind))),
            op.LessOrEqual(code, constant("last", np.asarray(rows - 1, kind))),
        )
        if np.issubdtype(kind, np.floating):
            inside = op.And(inside, op.Equal(code, op.Floor(code)))
        index = op.Where(inside, op.Cast(code, to=ir.DataType.INT64), constant("none", np.asarray(rows, np.int64)))
        return op.Gather(table, index, axis=0)


class RowwiseIntoTable(Rule):
    """f(Gather(W, i)) = Gather(f(W), i), for an f that takes each row alone."""

    def __init__(self, operator: str) -> None:
        super().__init__(f"{operator} into table")
        self.operator = operator

    def pattern(self, op: Any, w: Any, i: Any) -> Any:
        rows = op.Gather(w, i, _allow_other_attributes=True, _outputs=["rows"])
        return getattr(op, self.operator)(rows, _allow_other_inputs=True, _allow_other_attributes=True, _outputs=["y"])

    def check(self, _context: Any, w: ir.Value, rows: ir.Value, y: ir.Value, **_: Any) -> MatchResult:
        table, node = known(w), producer(y)
        if table is None or table.ndim != 2 or table.dtype.kind != "f" or not owned(w):
            return refused("it is no table of its own", node)
        if producer(rows).attributes.get_int("axis", 0) not in (0, -2):
            return refused("columns are picked, not rows", node)
        operands = [known(value) for value in node.inputs[1:] if value is not None]
        if any(array is None for array in operands):
            return refused("the other operand is computed", node)
        if (reason := self._not_by_row(node, table, [array for array in operands if array is not None])) is not None:
            return refused(reason, node)
        return MatchResult()

    def _not_by_row(self, node: ir.Node, table: NDArray[Any], operands: list[NDArray[Any]]) -> str | None:
        if self.operator in ALONE:
            return None
        if self.operator in WITH_ROW:
            within = operands[0].ndim == 0 or (operands[0].size == operands[0].shape[-1] and operands[0].shape[-1] in (1, table.shape[1]))
            return None if within and operands[0].ndim <= 2 else "the operand is not one row"
        if self.operator == "LayerNormalization":
            last = node.attributes.get_int("axis", -1) in (-1, (rank(node.inputs[0]) or 0) - 1)
            return None if last and len(node.outputs) == 1 else "it normalizes over more than a row"
        matrix = operands[0]
        if matrix.ndim != 2 or matrix.shape[1] > LARGEST * table.shape[1]:
            return "the table would grow too much"
        return None

    def rewrite(self, op: Any, w: ir.Value, i: ir.Value, y: ir.Value, **_: Any) -> Any:
        table = known(w)
        assert table is not None
        return op.Gather(op.initializer(ir.tensor(_applied(producer(y), table)), name=f"{w.name}/{producer(y).name}"), i, axis=0)


def _applied(node: ir.Node, table: NDArray[Any]) -> NDArray[Any]:
    """What the node makes of every row, computed in float64 and rounded once."""
    wide = ir.Value(name="rows", type=ir.TensorType(ir.DataType.DOUBLE), shape=ir.Shape(table.shape))
    operands, constants = [wide], list[ir.Value]()
    for place in range(1, len(node.inputs)):
        array = known(input_of(node, place))
        assert array is not None
        numbers = array.astype(np.float64) if array.dtype.kind == "f" else array
        constants.append(ir.Value(name=f"operand{place}", const_value=ir.tensor(numbers, name=f"operand{place}")))
        operands.append(constants[-1])
    alone = ir.Node(node.domain, node.op_type, operands, list(node.attributes.values()), num_outputs=1)
    alone.outputs[0].name = "result"
    graph = ir.Graph([wide], alone.outputs, nodes=[alone], initializers=constants, opset_imports={"": 20})
    (result,) = ReferenceEvaluator(ir.to_proto(ir.Model(graph, ir_version=10))).run(None, {"rows": table.astype(np.float64)})
    return np.asarray(result).astype(table.dtype)


RULES: tuple[Rule, ...] = (
    OneHotProduct(),
    *(RowwiseIntoTable(operator) for operator in (*ALONE, *WITH_ROW, "LayerNormalization", "MatMul")),
)
