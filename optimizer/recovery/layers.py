"""Layers whose weight is known before the run: the weight as a matrix a group, the rows of data that it meets, and the bias."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.graph import constant, readers
from optimizer.model import Model, is_layer
from optimizer.plan import Capability, Plan
from optimizer.precision import settled, weights
from optimizer.precision.writer import Writer

Floats = NDArray[np.float64]


def in_int8(model: Model, plan: Plan, capability: Capability) -> Iterator[ir.Node]:
    """The layers that the plan has in INT8, static or dynamic, with a weight that has a scale an output channel."""
    plan = settled(model, plan, capability)
    for node in model.graph.graph:
        if is_layer(node) and plan.precision(node.name or "").startswith("int8") and has_matrix(node):
            yield node


def has_matrix(node: ir.Node) -> bool:
    """Whether a layer is a convolution, or a product with a matrix, whose weight is known."""
    if node.domain not in {"", "ai.onnx"} or node.op_type not in {"Conv", "Gemm", "MatMul"}:
        return False
    weight = constant(node.inputs[1])
    if weight is None or weight.dtype != np.float32 or not np.isfinite(weight).all():
        return False
    return weight.ndim > 2 if node.op_type == "Conv" else weight.ndim == 2 and not node.attributes.get_int("transA")


def groups(node: ir.Node) -> int:
    return node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1


def matrix(node: ir.Node) -> Floats:
    """The weight as float64 (groups, output channels of a group, inputs): of a convolution the inputs of one window."""
    weight = known(node, 1).astype(np.float64)
    if node.op_type == "Conv":
        return weight.reshape(groups(node), len(weight) // groups(node), -1)
    return (weight if node.attributes.get_int("transB") else weight.T)[None]


def laid_out(node: ir.Node, matrix: Floats) -> NDArray[np.float32]:
    """What `matrix` gave, as the layer's operator wants it."""
    if node.op_type == "Conv":
        return np.ascontiguousarray(matrix.reshape(known(node, 1).shape), np.float32)
    return np.ascontiguousarray(matrix[0] if node.attributes.get_int("transB") else matrix[0].T, np.float32)


def to_nearest(node: ir.Node, weight: Floats, limit: int) -> NDArray[np.float32]:
    """A layer's weight, as `matrix` gives it, as precision rounds it, in the layout of its operator."""
    by_output = weight.reshape(-1, weight.shape[2])
    integers, scales = weights.per_channel(by_output.astype(np.float32), 0, "minmax", limit)
    return laid_out(node, (integers * scales.astype(np.float64)[:, None]).reshape(weight.shape))


def known(node: ir.Node, place: int) -> NDArray[Any]:
    """An input that is constant."""
    array = constant(node.inputs[place])
    assert array is not None, f"input {place} of {node.name} is computed"
    return array


def reduced(node: ir.Node) -> tuple[int, ...] | None:
    """The axes of the layer's input and output beside the channels; None where channels are the last of any number of axes."""
    return (0, *range(2, known(node, 1).ndim)) if node.op_type == "Conv" else None


def rows(node: ir.Node, array: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """What the layer multiplies its weight with, for one input of its: float32 (groups, rows, inputs), at most `most` rows.

    Rows are spread evenly over the positions, so that the same input always gives the same ones.
    """
    if node.op_type != "Conv":
        flat = array.reshape(-1, array.shape[-1])
        return flat[_spread(len(flat), most)][None]
    windows = _windows(node, array)
    shape = windows.shape[: array.ndim - 1]  # samples and positions
    taken = windows[np.unravel_index(_spread(math.prod(shape), most), shape)]
    return np.ascontiguousarray(taken.reshape(len(taken), groups(node), -1).transpose(1, 0, 2))


def _windows(node: ir.Node, array: NDArray[np.float32]) -> NDArray[np.float32]:
    """All windows of a convolution, a view: (samples, positions of the output ..., channels, kernel ...)."""
    kernel = known(node, 1).shape[2:]
    rank = len(kernel)
    strides = node.attributes.get_ints("strides", [1] * rank)
    dilations = node.attributes.get_ints("dilations", [1] * rank)
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    padded = np.pad(array, [(0, 0), (0, 0), *_pads(node, array.shape[2:], spans, strides)])
    views = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + rank)))
    steps = tuple(slice(None, None, step) for step in (*strides, *dilations))
    return np.moveaxis(views[(slice(None), slice(None), *steps)], 1, 1 + rank)


def _pads(node: ir.Node, sizes: tuple[int, ...], spans: list[int], strides: Any) -> list[tuple[int, int]]:
    kind = node.attributes.get_string("auto_pad", "NOTSET")
    if kind in {"SAME_UPPER", "SAME_LOWER"}:
        wanted = zip(sizes, spans, strides, strict=True)
        missing = [max((math.ceil(size / stride) - 1) * stride + span - size, 0) for size, span, stride in wanted]
        return [(one // 2, one - one // 2) if kind == "SAME_UPPER" else (one - one // 2, one // 2) for one in missing]
    given = node.attributes.get_ints("pads", [0] * (2 * len(spans))) if kind == "NOTSET" else [0] * (2 * len(spans))
    return list(zip(given[: len(spans)], given[len(spans) :], strict=True))


def _spread(count: int, most: int) -> NDArray[np.intp]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.intp))


def bias_place(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Where a layer's bias stands or could stand, as a node and the place among its inputs.

    That of a MatMul is a row that an Add alone puts on it; None where there is none, since an Add of its own would cost time.
    """
    if node.op_type != "MatMul":
        given = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        free = len(node.inputs) < 3 or node.inputs[2] is None
        plain = node.op_type == "Conv" or node.attributes.get_float("beta", 1.0) == node.attributes.get_float("alpha", 1.0) == 1.0
        return (node, 2) if plain and (free or (given is not None and given.size in {1, _channels(node)})) else None
    after = readers(node.outputs[0])
    if len(after) != 1 or after[0].op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    place = 1 if after[0].inputs[0] is node.outputs[0] else 0
    row = constant(after[0].inputs[place])
    is_row = row is not None and row.ndim > 0 and row.dtype == np.float32 and row.size == row.shape[-1] == _channels(node)
    return (after[0], place) if is_row else None


def _channels(node: ir.Node) -> int:
    weight = known(node, 1)
    return int(weight.shape[0] if node.op_type == "Conv" or node.attributes.get_int("transB") else weight.shape[1])


def bias(node: ir.Node) -> Floats:
    """The bias of a layer that has a place for one: float64 (channels,), zeros where nothing stands there."""
    place = bias_place(node)
    assert place is not None
    holder, index = place
    array = constant(holder.inputs[index]) if index < len(holder.inputs) else None
    return np.zeros(_channels(node)) if array is None else np.broadcast_to(array.astype(np.float64).reshape(-1), (_channels(node),)).copy()


def set_bias(writer: Writer, node: ir.Node, numbers: NDArray[Any], what: str) -> None:
    """Another bias, (channels,), in a constant of its own: others may read the old one."""
    place = bias_place(node)
    assert place is not None
    holder, index = place
    array = constant(holder.inputs[index]) if index < len(holder.inputs) else None
    shape = array.shape if array is not None and holder is not node else numbers.shape
    value = writer.constant(f"{node.name}/bias {what}", np.asarray(numbers, np.float32).reshape(shape))
    if index >= len(holder.inputs):
        holder.resize_inputs(index + 1)
    holder.replace_input_with(index, value)


def set_weight(writer: Writer, node: ir.Node, numbers: Floats, what: str) -> ir.Value:
    """Another weight, as `matrix` gives it, in a constant of its own: others may read the old one."""
    before = node.inputs[1]
    assert before is not None
    value = writer.constant(f"{before.name}/{what}", laid_out(node, numbers))
    node.replace_input_with(1, value)
    return value
