"""The body of a Loop, evaluated in symbols: what one step makes of the step's input and of the states.

A value in the body is one of: an array that is known; `Steps`, a count that grows with the step; `Length`, a size; `Before`,
a condition on the step's number; `Sum`, numbers of the cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from optimizer.fusion.shapes import Size
from optimizer.graph import constant as known
from optimizer.importers import _recurrent_algebra as algebra
from optimizer.importers._recurrent_algebra import ONE, Curve, Sum
from optimizer.importers._recurrent_cells import CURVES, INPUT, UnprovenError


@dataclass(frozen=True)
class Steps:
    """The number of the step, from 0, plus `more`."""

    more: int


@dataclass(frozen=True)
class Length:
    """A number of steps: known, or the free size of that name."""

    size: int | Size


@dataclass(frozen=True)
class Before:
    """Whether the number of the step plus `more` is less than `end`."""

    more: int
    end: Length


Symbol = NDArray[Any] | Steps | Length | Before | Sum

CEILING = "Min"
"""The curve that is cut off above: no activation by itself, but the first half of a Clip."""


class Step:
    """A body, evaluated node by node from `given`: symbols of the body's inputs and of outer values that it reads.

    `sequences` collects the outer values of which each step reads its own element.
    """

    def __init__(self, body: ir.Graph, opsets: Mapping[str, int], given: Mapping[ir.Value, Symbol]) -> None:
        self.symbols: dict[ir.Value, Symbol] = dict(given)
        self.sequences: list[ir.Value] = []
        self._opsets = dict(opsets)
        self._body = body

    def of(self, value: ir.Value | None) -> Symbol:
        """The symbol of a value of the body or of one that it reads from outside."""
        if value is None:
            raise UnprovenError("an operand is left out")
        if value not in self.symbols:
            node = value.producer()
            array = known(value)
            if array is not None:
                self.symbols[value] = array
            elif node is not None and node.graph is self._body:
                self._run(node)
            else:
                raise UnprovenError(f"it reads {value.name!r} from outside")
        return self.symbols[value]

    def _run(self, node: ir.Node) -> None:
        if node.op_type == "Gather" and not node.domain:
            self.symbols[node.outputs[0]] = self._element(node)
            return
        operands = [None if value is None else self.of(value) for value in node.inputs]
        if node.domain == "" and all(operand is None or isinstance(operand, np.ndarray) for operand in operands):
            results: Sequence[Symbol] = self._computed(node, operands)
        elif node.domain == "" and node.op_type in _OPERATORS:
            results = _OPERATORS[node.op_type](node, operands)
        else:
            raise UnprovenError(f"its step has an operator, {node.op_type}, that is no part of a cell")
        self.symbols.update(zip(node.outputs, results, strict=True))

    def _computed(self, node: ir.Node, operands: Sequence[Any]) -> list[NDArray[Any]]:
        evaluator = ReferenceEvaluator(ir.to_proto(node), opsets=self._opsets)
        feeds = {value.name or "": operand for value, operand in zip(node.inputs, operands, strict=True) if value is not None}
        return [np.asarray(output) for output in evaluator.run(None, feeds)]

    def _element(self, node: ir.Node) -> Symbol:
        """The step's own element of a sequence from outside: the cell's input."""
        source, index = node.inputs
        assert source is not None
        if self.of(index) != Steps(0) or node.attributes.get_int("axis", 0) != 0 or source.graph is self._body:
            raise UnprovenError("it reads its input in another order than step by step")
        if source.dtype == ir.DataType.BOOL:
            raise UnprovenError("a mask says at each step whether the state changes, which ONNX's GRU and LSTM have no place for")
        width = source.shape[2] if source.shape is not None and len(source.shape) == 3 else None
        if not isinstance(width, int):
            raise UnprovenError("its input is not known to be a sequence of rows of a known size")
        if source not in self.sequences:
            self.sequences.append(source)
        return algebra.leaf(INPUT, width)


def _pass(_node: ir.Node, operands: Sequence[Any]) -> list[Symbol]:
    return [operands[0]]


def _cast(node: ir.Node, operands: Sequence[Any]) -> list[Symbol]:
    """Counts keep their number in any type; the cell's own numbers must keep theirs."""
    if isinstance(operands[0], Sum) and node.inputs[0] is not None and node.inputs[0].dtype != ir.DataType(node.attributes["to"].as_int()):
        raise UnprovenError("its step changes the type of its numbers")
    return [operands[0]]


def _add(_node: ir.Node, operands: Sequence[Any]) -> list[Symbol]:
    a, b = operands
    for count, more in ((a, b), (b, a)):
        if isinstance(count, Steps) and isinstance(more, np.ndarray) and more.size == 1:
            return [Steps(count.more + int(more.reshape(())))]
    first, second = _sums(a, b)
    return [first + second]


def _sub(_node: ir.Node, operands: Sequence[Any]) -> list[Symbol]:
    first, second = _sums(*operands)
    return [first + second * algebra.constant(np.array(-1.0), second.width)]


def _mul(_node: ir.Node, operands: Sequence[Any]) -> list[Symbol]:
    first, second = _sums(*operands)
    return [first * second]


def _div(_node: ir.Node, operands: Sequence[Any]) -> list[Symbol]:
    if not isinstance(operands[1], np.ndarray) or not operands[1].all():
        raise UnprovenError("its step divides by what is computed")
    return _mul(_node, [operands[0], np.asarray(1 / operands[1].astype(np.float64))])


def _neg(node: ir.Node, operands: Sequence[Any]) -> list[Symbol]:
    return _mul(node, [operands[0], np.array(-1.0)])


def _less(_node: ir.Node, operands: Sequence[Any]) -> list[Symbol]:
    steps, end = operands
    if isinstance(end, np.ndarray) and end.size == 1:
        end = Length(int(end.reshape(())))
    if not isinstance(steps, Steps) or not isinstance(end, Length):
        raise UnprovenError("it may stop before the sequence ends")
    return [Before(steps.more, end)]


def _and(_node: ir.Node, operands: Sequence[Any]) -> list[Symbol]:
    a, b = operands
    if isinstance(a, Before) and isinstance(b, Before) and a.end == b.end:
        return [max(a, b, key=lambda each: each.more)]
    for one, other in ((a, b), (b, a)):
        if isinstance(one, np.ndarray) and one.size == 1 and bool(one.reshape(())):
            return [other]
    raise UnprovenError("it may stop before the sequence ends")


def _matmul(_node: ir.Node, operands: Sequence[Any]) -> list[Symbol]:
    row, matrix = operands
    if not isinstance(row, Sum) or not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.shape[0] != row.width:
        raise UnprovenError("its step multiplies by a matrix that is computed")
    return [algebra.dot(row, matrix)]


def _gemm(node: ir.Node, operands: Sequence[Any]) -> list[Symbol]:
    row, matrix, *bias = operands
    if node.attributes.get_int("transA", 0) or not isinstance(matrix, np.ndarray):
        raise UnprovenError("its step multiplies by a matrix that is computed")
    matrix = matrix.T if node.attributes.get_int("transB", 0) else matrix
    [result] = _matmul(node, [row, matrix * np.float64(node.attributes.get_float("alpha", 1.0))])
    if not bias or bias[0] is None:
        return [result]
    added = _wide(bias[0], matrix.shape[1])
    return [_row(result) + added * algebra.constant(np.array(node.attributes.get_float("beta", 1.0)), added.width)]


def _split(node: ir.Node, operands: Sequence[Any]) -> list[Symbol]:
    row = _row(operands[0])
    _last_axis(node.attributes.get_int("axis", 0))
    given = operands[1] if len(operands) > 1 else None
    if given is None:
        each = math.ceil(row.width / len(node.outputs))
        sizes = [min(each, row.width - each * number) for number in range(len(node.outputs))]
    else:
        sizes = [int(size) for size in given]
    ends = np.cumsum(sizes)
    return [row.columns(int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True)]


def _slice(_node: ir.Node, operands: Sequence[Any]) -> list[Symbol]:
    """A slice of columns, all rows."""
    row, starts, ends, *more = operands
    axes = more[0] if more and more[0] is not None else np.arange(len(starts))
    steps = more[1] if len(more) > 1 and more[1] is not None else np.ones(len(starts), np.int64)
    whole, start, stop = _row(row), 0, _row(row).width
    if not all(isinstance(each, np.ndarray) for each in (starts, ends, axes, steps)):
        raise UnprovenError("its step slices where it has computed to")
    for axis, first, last, step in zip(axes, starts, ends, steps, strict=True):
        if axis in {1, -1} and step == 1:
            start, stop, _ = slice(int(first), int(last)).indices(whole.width)
        elif not (axis in {0, -2} and step == 1 and first == 0 and last >= 2**31 - 1):
            raise UnprovenError("its step takes some of the samples, or some of the columns")
    return [whole.columns(start, stop)]


def _curve(node: ir.Node, operands: Sequence[Any]) -> list[Symbol]:
    alpha, beta = CURVES[node.op_type]
    alpha, beta = node.attributes.get_float("alpha", alpha), node.attributes.get_float("beta", beta)
    return [algebra.curve(node.op_type, alpha, beta, _row(operands[0]))]


def _clip(_node: ir.Node, operands: Sequence[Any]) -> list[Symbol]:
    """min(max(x, 0), top) = top min(max((x - top / 2) / top + 1 / 2, 0), 1), ONNX's HardSigmoid with alpha 1 / top."""
    low, top = (_bound(bound) for bound in operands[1:])
    return [_clipped(_row(operands[0]), low, top)]


def _min(_node: ir.Node, operands: Sequence[Any]) -> list[Symbol]:
    row, top = operands
    return [algebra.curve(CEILING, _bound(top), 0.0, _row(row))]


def _max(_node: ir.Node, operands: Sequence[Any]) -> list[Symbol]:
    """What was cut off above, cut off below: a Clip in two nodes."""
    row, low = _row(operands[0]), _bound(operands[1])
    inner = algebra.only(row)
    if not isinstance(inner, Curve) or inner.name != CEILING:
        raise UnprovenError("its step clips to other bounds than 0 and a number")
    return [_clipped(inner.of, low, inner.alpha)]


def _bound(operand: Any) -> float:
    if not isinstance(operand, np.ndarray) or operand.size != 1:
        raise UnprovenError("its step clips to bounds that are computed")
    return float(operand.reshape(()))


def _clipped(row: Sum, low: float, top: float) -> Sum:
    if low != 0 or not top > 0:
        raise UnprovenError("its step clips to other bounds than 0 and a number")
    moved = row + algebra.constant(np.array(-top / 2), row.width)
    return algebra.curve("HardSigmoid", 1 / top, 0.5, moved) * algebra.constant(np.array(top), row.width)


def _sums(a: Any, b: Any) -> tuple[Sum, Sum]:
    """Two operands of one width; a constant is one number, or one a column."""
    width = next((each.width for each in (a, b) if isinstance(each, Sum)), None)
    if width is None:
        raise UnprovenError("its step computes with counts")
    return _wide(a, width), _wide(b, width)


def _wide(operand: Any, width: int) -> Sum:
    if isinstance(operand, np.ndarray) and operand.ndim <= 2 and operand.size in {1, width} and operand.size == (operand.shape or (1,))[-1]:
        return algebra.constant(operand, width)
    if isinstance(operand, Sum) and operand.width == width:
        return operand
    if isinstance(operand, Sum) and operand.terms.keys() <= {ONE}:
        return operand
    raise UnprovenError("its step broadcasts rows of different sizes")


def _row(operand: Any) -> Sum:
    if not isinstance(operand, Sum):
        raise UnprovenError("its step computes with counts")
    return operand


def _last_axis(axis: int) -> None:
    if axis not in {1, -1}:
        raise UnprovenError("its step splits the samples")


_OPERATORS: Mapping[str, Callable[[ir.Node, Sequence[Any]], list[Symbol]]] = {
    "Identity": _pass,
    "Cast": _cast,
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Neg": _neg,
    "Less": _less,
    "And": _and,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Split": _split,
    "Slice": _slice,
    "Clip": _clip,
    "Min": _min,
    "Max": _max,
    **dict.fromkeys(CURVES, _curve),
}
