"""Layers in which half precision loses all digits that count, though every number fits: differences, angles, exponents, long sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from calibration.observers import Statistics
from optimizer.graph import constant, static_shape
from optimizer.precision import seen, walks
from optimizer.precision.overflow import MARGIN, Found

_ROUNDING: Mapping[ir.DataType, float] = {ir.DataType.FLOAT16: 2.0**-11, ir.DataType.BFLOAT16: 2.0**-8}
"""The relative error of one rounding: half a unit in the last of 11 or 8 binary digits."""

_WRONG = 1 / 8
"""The relative error of a result from which on it is no longer one."""

_TURN = 1 / 16
"""The error of an angle, in radians, from which on its sine is no longer one."""

_LONG = 2048
"""Terms of a sum from which on its order and its accumulator decide about it."""

_SCALES = frozenset({"Div", "Mul"})
_MEANS = frozenset({"ReduceMean", "ReduceSum", "GlobalAveragePool"})
_ARRANGES = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_LINEAR = frozenset(
    {"Add", "Concat", "CumSum", "Div", "Einsum", "Expand", "Gather", "MatMul", "Mul", "Neg", "Slice", "Sub", "Tile", "Where"}
)
_SUMS = frozenset({"ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSum", "ReduceSumSquare"})

Rule = Callable[[ir.Graph, Mapping[str, Statistics], ir.DataType], Iterator[Found]]


def variances(graph: ir.Graph, statistics: Mapping[str, Statistics], half: ir.DataType) -> Iterator[Found]:
    """A variance as E[x^2] - m^2: two numbers of m^2's size, each rounded, whose difference may be far smaller."""
    for node in graph:
        parts = _variance(node)
        if not parts:
            continue
        why = f"{node.name} is a variance, the small difference of two large squares, of which {half.name} keeps few digits"
        yield from ((one, why) for one in (*parts, node))
        squares, variance = seen.of(node.inputs[0], statistics), seen.of(node.outputs[0], statistics)
        source = next(value for one in parts if (value := _square_of(one)) is not None)
        if squares is None or variance is None or (made := source.producer()) is None or not (spread := seen.rms(variance)):
            continue
        times = math.sqrt(seen.rms(squares) / spread)
        if times * _ROUNDING[half] > _WRONG:
            yield made, f"its numbers are {times:.3g} times as large as their spread, which {half.name} rounds away"


def _variance(node: ir.Node) -> list[ir.Node]:
    """The nodes that make the mean of squares, and those that make the square of the mean, where `node` subtracts these; else none."""
    if node.op_type != "Sub":
        return []
    squares = _chain(node.inputs[0], _ARRANGES | _MEANS | _SCALES)
    square = _chain(node.inputs[1], _ARRANGES | _SCALES)
    if not squares or not square or not _averages(squares):
        return []
    base = _square_of(square[-1])
    if _square_of(squares[-1]) is None or base is None:
        return []
    mean = _chain(base, _ARRANGES | _SCALES)
    return [*squares, *square, *mean] if _averages(mean[-1:]) else []


def _chain(value: ir.Value | None, through: frozenset[str]) -> list[ir.Node]:
    """The nodes from the maker of a value upwards, through operators that read one tensor, to the first that is none of them."""
    found: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None:
        found.append(node)
        computed = [source for source in node.inputs if source is not None and constant(source) is None]
        if node.op_type not in through or len(computed) != 1 or _square_of(node) is not None:
            break
        value = computed[0]
    return found


def _averages(chain: list[ir.Node]) -> bool:
    return any(node.op_type in _MEANS for node in chain)


def _square_of(node: ir.Node) -> ir.Value | None:
    """What a node squares, None where it does not."""
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return node.inputs[0]
    exponent = constant(node.inputs[1]) if node.op_type == "Pow" else None
    return node.inputs[0] if exponent is not None and (exponent == 2).all() else None


def differences(graph: ir.Graph, statistics: Mapping[str, Statistics], half: ir.DataType) -> Iterator[Found]:
    """A sum or difference that is far smaller than what goes in, which must then come unrounded."""
    for node in graph:
        if node.op_type not in {"Add", "Sub"}:
            continue
        operands = [known for value in node.inputs if (known := seen.of(value, statistics)) is not None]
        result = seen.of(node.outputs[0], statistics)
        if len(operands) != 2 or result is None or not (left := seen.rms(result)):
            continue
        times = max(map(seen.rms, operands)) / left
        if times * _ROUNDING[half] > _WRONG:
            why = f"{node.name} leaves 1/{times:.0f} of what it reads, whose rounding in {half.name} is as large"
            yield node, why
            yield from ((made, why) for value in node.inputs if value is not None and (made := value.producer()) is not None)


def angles(graph: ir.Graph, statistics: Mapping[str, Statistics], half: ir.DataType) -> Iterator[Found]:
    """A sine or cosine of many turns, such as of a position times a frequency: rounding moves the angle."""
    for node in graph:
        known = seen.of(node.inputs[0], statistics) if node.op_type in {"Cos", "Sin"} else None
        if known is None or node.inputs[0] is None or seen.largest(known) * MARGIN * _ROUNDING[half] <= _TURN:
            continue
        error = seen.largest(known) * _ROUNDING[half]
        why = f"the angle {node.inputs[0].name} reaches {seen.largest(known):.4g} rad, which {half.name} rounds by up to {error:.2g}"
        yield node, why
        sources = walks.before(node.inputs[0], _LINEAR | _ARRANGES)
        yield from ((made, why) for made in sources if made.op_type in _LINEAR | _ARRANGES | {"Range"})


def exponents(graph: ir.Graph, statistics: Mapping[str, Statistics], half: ir.DataType) -> Iterator[Found]:
    """An exponential of a large number: its relative error is the absolute one of its exponent."""
    for node in graph:
        known = seen.of(node.inputs[0], statistics) if node.op_type == "Exp" else None
        if known is None or node.inputs[0] is None or known.maximum * _ROUNDING[half] * MARGIN <= _WRONG:
            continue
        error = known.maximum * _ROUNDING[half]
        reached = f"the exponent {node.inputs[0].name} reaches {known.maximum:.4g}"
        why = f"{reached}, and its rounding in {half.name} changes the power by {error:.0%}"
        yield node, why
        if (made := node.inputs[0].producer()) is not None:
            yield made, why


def long_sums(graph: ir.Graph, _statistics: Mapping[str, Statistics], half: ir.DataType) -> Iterator[Found]:
    """A running sum whose terms vanish beside it, and sums of so many terms that an accumulator in the type would lose some."""
    for node in graph:
        terms = _terms(node)
        if node.op_type == "CumSum" and (terms is None or terms * _ROUNDING[half] > 1):
            yield node, f"it writes every step of a sum of {terms or 'any number of'} terms, which {half.name} rounds to less than a term"
        elif node.op_type in _SUMS and terms is not None and terms > _LONG:
            yield node, f"it adds up {terms} terms, which an accumulator in {half.name} would lose beside their sum"


def _terms(node: ir.Node) -> int | None:
    """How many numbers go into one of a sum, None where shapes don't tell."""
    shape = static_shape(node.inputs[0]) if node.op_type in _SUMS | {"CumSum"} and node.inputs[0] is not None else None
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if shape is None or (axes is None and len(node.inputs) > 1 and node.inputs[1] is not None):
        return None
    chosen = [int(axis) for axis in axes.reshape(-1)] if axes is not None and axes.size else range(len(shape))
    return math.prod(shape[axis] for axis in chosen)


RULES: tuple[Rule, ...] = (variances, differences, angles, exponents, long_sums)
"""Each finds layers that must stay in float32."""
