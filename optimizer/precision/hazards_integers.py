"""Layers that 8 bits over the whole range of a tensor would ruin: masks, front ends of a logarithm, a few numbers that outgrow all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from calibration.observers import Statistics
from optimizer.graph import constant
from optimizer.precision import seen, walks
from optimizer.precision.overflow import Found

_LOST = 1 / 2
"""The share of a tensor that may round to 0, of the roots of its magnitudes."""

_SMALL = 1 / 4
"""The share of its numbers that may, where a logarithm makes as much of them."""

_LARGEST_STEP = 1.0
"""Of what a softmax reads: a step of 1 changes the ratio of two probabilities by e."""

_HANDS_ON = frozenset({"Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"})
_ENERGIES = _HANDS_ON | (
    {"Abs", "Add", "AveragePool", "Clip", "Concat", "Conv", "Gemm", "MatMul", "Max", "Mul", "Pow", "ReduceMean", "ReduceSum", "Relu"}
    | {"Split", "Sqrt", "Sub"}
)
"""How a front end comes from samples to energies."""

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "GRU", "LSTM", "MatMul"})

Rule = Callable[[ir.Graph, Mapping[str, Statistics]], Iterator[Found]]


def outgrown(graph: ir.Graph, statistics: Mapping[str, Statistics]) -> Iterator[Found]:
    """A product that reads a tensor in which a few numbers are so large that, beside them, the others round to 0."""
    for node, value, known in _read_by(graph, statistics, _PRODUCTS):
        numbers, share = seen.lost(known)
        if share > _LOST:
            yield node, f"{value.name} reaches {seen.largest(known):.4g}, beside which 8 bits round {numbers:.0%} of its numbers to 0"


def masked(graph: ir.Graph, statistics: Mapping[str, Statistics]) -> Iterator[Found]:
    """A layer that writes for a softmax in steps beside which its scores are all the same: its range is that of a mask."""
    for node in graph:
        known = seen.of(node.outputs[0], statistics)
        if known is None or seen.step(known) <= _LARGEST_STEP:
            continue
        if any(other.op_type in {"LogSoftmax", "Softmax"} for other in walks.behind(node.outputs[0], _HANDS_ON)):
            wide = max(known.maximum, 0.0) - min(known.minimum, 0.0)
            yield node, f"{node.outputs[0].name} spans {wide:.4g}, and 8 bits of it are too coarse for a softmax"


def before_logarithms(graph: ir.Graph, statistics: Mapping[str, Statistics]) -> Iterator[Found]:
    """A product whose input spans decades, of which a logarithm makes as much of the small as of the large."""
    for node, value, known in _read_by(graph, statistics, _PRODUCTS):
        share, _ = seen.lost(known)
        if share <= _SMALL:
            continue
        magnifier = next((other for other in walks.behind(node.outputs[0], _ENERGIES) if _magnifies(other)), None)
        if magnifier is not None:
            small, large = seen.smallest(known), seen.largest(known)
            yield (
                node,
                (
                    f"{value.name} goes from {small:.3g} to {large:.3g}, of which 8 bits round {share:.0%} to 0, and {magnifier.name} "
                    f"({magnifier.op_type}) makes much of little"
                ),
            )


def _read_by(
    graph: ir.Graph, statistics: Mapping[str, Statistics], operators: frozenset[str]
) -> Iterator[tuple[ir.Node, ir.Value, Statistics]]:
    """Each layer of these operators with what it reads of what calibration saw."""
    for node in graph:
        if node.op_type in operators:
            for value in node.inputs:
                if value is not None and (known := seen.of(value, statistics)) is not None:
                    yield node, value, known


def _magnifies(node: ir.Node) -> bool:
    """Whether a layer takes logarithms, or roots as powers."""
    exponent = constant(node.inputs[1]) if node.op_type == "Pow" else None
    return node.op_type == "Log" or (exponent is not None and bool((exponent < 1).all()))


RULES: tuple[Rule, ...] = (outgrown, masked, before_logarithms)
"""Each finds layers that must not be in INT8, nor in dynamic INT8."""
