"""Layers whose numbers half precision can't hold: told from what calibration saw, before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibration.observers import Statistics
from optimizer.graph import constant, readers
from optimizer.model import Model, is_layer
from optimizer.plan import Precision
from optimizer.precision.placement import HALF

MARGIN = 2.0
"""Data to come may reach further than the calibration data did."""

_VANISHES = "is 0 in {}"
_MAGNIFY = frozenset({"Div", "Log", "Pow", "Reciprocal", "Sqrt"})


def overflowing(model: Model, statistics: Mapping[str, Statistics], precision: Precision) -> dict[str, str]:
    """Layers that must stay FP32, with the reason: a tensor that they read or write reaches, times MARGIN, beyond what

    `precision` holds; a constant lies beyond it; or a lone constant (the epsilon of a normalization) would become 0.  BF16
    has float32's exponents, so that nothing of FP16's troubles occurs there.
    """
    half = HALF.get(precision)
    if half is None:
        return {}
    found: dict[str, str] = {}
    for node in model.graph.graph:
        reason = next(_reasons(node, statistics, half), None) if is_layer(node) else None
        if reason is not None:
            found[node.name or ""] = reason
            if reason.endswith(_VANISHES.format(half.name)):
                found.update(_magnifiers(node, half))
    return found


def _magnifiers(node: ir.Node, half: ir.DataType) -> dict[str, str]:
    """The layers behind a small constant that make much of little: what it keeps from 0 in FP32 must not be 0 when they read it."""
    found: dict[str, str] = {}
    waiting = [node]
    while waiting:
        before = waiting.pop()
        for reader in (reader for value in before.outputs for reader in readers(value)):
            if reader.op_type in _MAGNIFY and reader.name not in found:
                found[reader.name or ""] = f"what it reads from {before.name} may be 0 in {half.name}"
                waiting.append(reader)
    return found


def _reasons(node: ir.Node, statistics: Mapping[str, Statistics], half: ir.DataType) -> Iterator[str]:
    largest = float(half.max)
    for value in (*node.inputs, *node.outputs):
        if value is None or value.dtype != ir.DataType.FLOAT:
            continue
        array = constant(value)
        if array is not None:
            yield from _constant_reasons(value.name or "", array, half)
        elif (seen := statistics.get(value.name or "")) is not None:
            reached = max(abs(seen.minimum), abs(seen.maximum))
            if reached * MARGIN > largest:
                limit = f"{half.name} holds {largest:.6g}"
                yield f"{value.name} reaches {reached:.6g}, and {limit}: new data may reach {MARGIN:g} times further"


def _constant_reasons(name: str, array: NDArray[Any], half: ir.DataType) -> Iterator[str]:
    magnitudes = np.abs(array[np.isfinite(array)])
    if magnitudes.size and float(magnitudes.max()) > float(half.max):
        yield f"the constant {name} reaches {magnitudes.max():.6g}; {half.name} holds {float(half.max):.6g}"
    if array.size == 1 and magnitudes.size and magnitudes.item() > 0 and array.astype(half.numpy()).item() == 0:
        yield f"the constant {name}, {array.item():.3g}, " + _VANISHES.format(half.name)
