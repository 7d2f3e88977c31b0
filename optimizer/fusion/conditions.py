"""What rules ask before they apply, and how they read what they found."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.graph import constant, readers

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def known(value: ir.Value | None) -> NDArray[Any] | None:
    """The numbers of a constant that no caller can replace: an initializer that is also a graph input is not one."""
    return None if value is None or value.is_graph_input() else constant(value)


def owned(value: ir.Value | None) -> bool:
    """Whether a value is a constant that one node alone reads, so that replacing it costs no second copy of the weight."""
    return value is not None and known(value) is not None and not value.is_graph_output() and len(readers(value)) == 1


def number(value: ir.Value | None) -> float | None:
    """The one number of a constant of one element, of any shape."""
    array = known(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def integers(value: ir.Value | None) -> tuple[int, ...] | None:
    """The integers of a constant, flattened."""
    array = known(value)
    return tuple(int(each) for each in array.reshape(-1)) if array is not None and array.dtype.kind in "iu" else None


def near(value: ir.Value | None, wanted: float) -> bool:
    """Whether a constant of one element is `wanted` as its own type rounds it."""
    array = known(value)
    if array is None or array.size != 1:
        return False
    found = float(array.reshape(()))
    if array.dtype.kind in "iu":
        return found == wanted
    return math.isclose(found, wanted, rel_tol=epsilon(array.dtype)) or found == float(np.asarray(wanted).astype(array.dtype))


def epsilon(dtype: np.dtype[Any]) -> float:
    """The distance from 1 to the next number of a float type, bfloat16 too."""
    return {"bfloat16": 2.0**-7}.get(dtype.name) or float(np.finfo(dtype).eps)


def rank(value: ir.Value | None) -> int | None:
    """The number of dimensions, where it is known."""
    return None if value is None or value.shape is None else len(value.shape)


def size(value: ir.Value | None, axis: int) -> int | None:
    """The size along `axis`, where it is known."""
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    found = value.shape[axis]
    return found if isinstance(found, int) else None


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """An input that may be left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def producer(value: ir.Value) -> ir.Node:
    """The node that a pattern has bound to `value`."""
    node = value.producer()
    assert node is not None, "a pattern binds outputs of nodes"
    return node


def stands_for(value: ir.Value | None, replaced: ir.Value) -> bool:
    """Whether `value` can take the place of `replaced`: an output of the graph keeps its name, so one of the two gives way."""
    if value is None:
        return False
    if not replaced.is_graph_output():
        return True
    return value.producer() is not None and not value.is_graph_output() and value.graph is replaced.graph


def along_channel(array: NDArray[Any], *, rank: int | None, axis: int, channels: int) -> NDArray[np.float64] | None:
    """A constant as one number a channel, float64 of shape (channels,), or None where broadcasting it would do more.

    `rank` is that of the tensor it is combined with, `axis` its channel axis (negative counts from the end).
    """
    if array.size == 1 and (array.ndim <= 1 or (rank is not None and array.ndim <= rank)):
        return np.full(channels, array.reshape(()), np.float64)
    if rank is None:
        return np.asarray(array, np.float64) if axis == -1 and array.shape == (channels,) else None
    shape = [1] * rank
    shape[axis] = channels
    aligned = array.reshape((1,) * (rank - array.ndim) + array.shape)
    return np.asarray(aligned, np.float64).reshape(-1) if aligned.shape == tuple(shape) else None


def fits(array: NDArray[np.float64], dtype: np.dtype[Any]) -> bool:
    """Whether every number stays finite when it is rounded to the type of the weights."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(array.astype(dtype).astype(np.float64)).all())
