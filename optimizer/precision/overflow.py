"""Layers whose numbers half precision can't hold: told from what calibration saw, before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibration.observers import Statistics
from optimizer.graph import constant, elements, readers
from optimizer.model import Model, is_layer
from optimizer.plan import Precision
from optimizer.precision import masks, seen, walks
from optimizer.precision.placement import HALF

MARGIN = 2.0
"""Data to come may reach further than the calibration data did."""

_VANISHES = "is 0 in {}"
_MAGNIFY = frozenset({"Div", "Log", "Pow", "Reciprocal", "Sqrt"})
_SQUARES = frozenset({"InstanceNormalization", "LpNormalization", "MeanVarianceNormalization"})
"""Operators that add up squares of what they read, in its type; those with a `stash_type` do it in float32."""

_MEANS = frozenset({"GlobalAveragePool", "ReduceMean"})
Found = tuple[ir.Node, str]
"""A layer that must stay FP32, and why."""


def overflowing(model: Model, statistics: Mapping[str, Statistics], precision: Precision) -> dict[str, str]:
    """Layers that must stay FP32, with the reason: a tensor that they read or write reaches, times MARGIN, beyond what

    `precision` holds, or their sums inside do; a constant lies beyond it, other than a mask that `typed` brings within; a lone
    constant (the epsilon of a normalization), or what a logarithm or a division reads, would become 0.  BF16 has float32's
    exponents: of FP16's troubles only masks of -3.4e38 occur there.
    """
    half = HALF.get(precision)
    if half is None:
        return {}
    found: dict[str, str] = {}
    for rule in (_by_its_numbers, _masks, _vanishing):
        for node, reason in rule(model.graph.graph, statistics, half):
            if is_layer(node):
                found.setdefault(node.name or "", reason)
    return found


def _by_its_numbers(graph: ir.Graph, statistics: Mapping[str, Statistics], half: ir.DataType) -> Iterator[Found]:
    brought = masks.masked(graph, half)
    for node in graph:
        reason = next(_reasons(node, statistics, half, brought), None)
        if reason is not None:
            yield node, reason
            if reason.endswith(_VANISHES.format(half.name)):
                yield from _magnifiers(node, half)


def _magnifiers(node: ir.Node, half: ir.DataType) -> Iterator[Found]:
    """The layers behind a small constant that make much of little: what it keeps from 0 in FP32 must not be 0 when they read it."""
    waiting, told = [node], {node}
    while waiting:
        before = waiting.pop()
        for reader in (reader for value in before.outputs for reader in readers(value)):
            if reader.op_type in _MAGNIFY and reader not in told:
                yield reader, f"what it reads from {before.name} may be 0 in {half.name}"
                waiting.append(reader)
                told.add(reader)


def _reasons(node: ir.Node, statistics: Mapping[str, Statistics], half: ir.DataType, brought: frozenset[ir.Value]) -> Iterator[str]:
    """Why a layer can't be in `half`; the values in `brought` are as large as they are by masks that will be brought within it."""
    limit = f"{half.name} holds {float(half.max):.6g}"
    for value in (*node.inputs, *node.outputs):
        if value is None or value.dtype != ir.DataType.FLOAT:
            continue
        array = constant(value)
        if array is not None:
            yield from _constant_reasons(value, array, half, brought)
        elif (known := seen.of(value, statistics)) is not None:
            reached = max(known.maximum, 0.0) if value in brought else seen.largest(known)
            if reached * MARGIN > float(half.max):
                yield f"{value.name} reaches {reached:.6g}, and {limit}: new data may reach {MARGIN:g} times further"
    if (inside := _inside(node, statistics)) * MARGIN > float(half.max):
        yield f"it adds up to {inside:.6g} inside, and {limit}: new data may reach {MARGIN:g} times further"
    epsilon = node.attributes.get_float("epsilon")
    if node.op_type in _SQUARES and epsilon and _is_zero(epsilon, half):
        yield f"its epsilon, {epsilon:.3g}, " + _VANISHES.format(half.name)


def _inside(node: ir.Node, statistics: Mapping[str, Statistics]) -> float:
    """The largest sum that a kernel forms on its way to a result, where it is larger than what goes in and comes out; else 0."""
    read, wrote = seen.of(node.inputs[0] if node.inputs else None, statistics), seen.of(node.outputs[0], statistics)
    if node.op_type in _SQUARES and read is not None:
        return seen.largest(read) ** 2
    if node.op_type == "ReduceL2" and wrote is not None:
        return seen.largest(wrote) ** 2
    if node.op_type in _MEANS and wrote is not None and node.inputs[0] is not None:
        whole, left = elements(node.inputs[0]), elements(node.outputs[0])
        return seen.largest(wrote) * whole / left if whole and left else 0.0
    return 0.0


def _constant_reasons(value: ir.Value, array: NDArray[Any], half: ir.DataType, brought: frozenset[ir.Value]) -> Iterator[str]:
    if masks.beyond(value, half) and value not in brought:
        reached = np.abs(array[np.isfinite(array)]).max()
        yield f"the constant {value.name} reaches {reached:.6g}; {half.name} holds {float(half.max):.6g}"
    if array.size == 1 and array.item() != 0 and _is_zero(array.item(), half):
        yield f"the constant {value.name}, {array.item():.3g}, " + _VANISHES.format(half.name)


def _is_zero(number: float, half: ir.DataType) -> bool:
    return abs(number) < 1 and bool(np.float32(number).astype(half.numpy()) == 0)


def _masks(graph: ir.Graph, _statistics: Mapping[str, Statistics], half: ir.DataType) -> Iterator[Found]:
    """What hands a mask on that can't be brought within `half`: told from structure, because calibration data may hold no masked row."""
    brought = masks.masked(graph, half)
    for node in graph:
        if node.op_type not in masks.HANDS_ON or not any(masks.beyond(value, half) and value not in brought for value in node.inputs):
            continue
        for other in walks.behind(node.outputs[0], masks.HANDS_ON):
            if other.op_type in masks.HANDS_ON | {"LogSoftmax", "Softmax"}:
                yield (
                    other,
                    f"the mask of {node.name} passes through it, which is infinite in {half.name}: where all is masked that gives NaN",
                )


def _vanishing(graph: ir.Graph, statistics: Mapping[str, Statistics], half: ir.DataType) -> Iterator[Found]:
    """Layers that make much of little, and what writes for them, where numbers that they read are 0 in `half`."""
    for node in graph:
        if node.op_type not in _MAGNIFY or (node.op_type == "Pow" and not _magnifies(node)):
            continue
        value = node.inputs[1] if node.op_type == "Div" else node.inputs[0]
        known = seen.of(value, statistics)
        if value is None or known is None or not _is_zero(seen.smallest(known) / MARGIN, half):
            continue
        reason = (
            f"{value.name} gets as small as {seen.smallest(known):.3g}, which {half.name} takes for 0, and {node.op_type} makes much of it"
        )
        yield node, reason
        if (writer := value.producer()) is not None:
            yield writer, reason


def _magnifies(node: ir.Node) -> bool:
    """Whether a power is below 1, and so steep at 0."""
    exponent = constant(node.inputs[1])
    return exponent is not None and float(exponent.min()) < 1
