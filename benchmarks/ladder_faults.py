"""What can be wrong with a layer, for benchmarks/ladder.py: each fault changes a graph in place at one node, or tells that it does not
apply there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.ladder_models import TRACED, Array, Draw, feeds_of
from optimizer.graph import add_initializer, constant, names, unique
from optimizer.model import FOR_LAYER
from optimizer.reference import Reference

Fault = Callable[[ir.Model, ir.Node, Draw], bool]


def _replace_weight(graph: ir.Model, node: ir.Node, place: int, change: Callable[[Array], Array | None]) -> bool:
    """Gives a node a changed copy of one of its constants; the others that read it keep theirs."""
    value = node.inputs[place] if place < len(node.inputs) else None
    known = constant(value)
    if value is None or known is None or known.dtype.kind not in "fi" or (changed := change(known.copy())) is None:
        return False
    name = unique(f"{value.name}/wrong", names(graph.graph))
    node.replace_input_with(place, add_initializer(graph.graph, name, np.ascontiguousarray(changed, known.dtype)))
    return True


def _behind(graph: ir.Model, node: ir.Node, *make: Callable[[ir.Value], tuple[ir.Node, ...]]) -> bool:
    """Puts nodes behind a layer's result, which they take over with its name, as parts of that layer."""
    result = node.outputs[0]
    taken = names(graph.graph)
    uses = list(result.uses())
    added: list[ir.Node] = []
    last = result
    for one in make:
        added += one(last)
        last = added[-1].outputs[0]
    for new in added:
        new.name = unique(f"{node.name}/wrong/{new.op_type}", taken)
        new.metadata_props[FOR_LAYER] = node.name or ""
        for value in new.outputs:
            value.name = unique(new.name, taken)
    for use in uses:
        use.node.replace_input_with(use.idx, last)
    last.type, last.shape = result.type, None
    name = result.name or ""
    for index, output in enumerate(graph.graph.outputs):
        if output is result:
            last.shape = result.shape
            graph.graph.outputs[index] = last
    result.name, last.name = unique(f"{name}/right", taken), name
    graph.graph.insert_after(node, added)
    return True


def _number(graph: ir.Model, array: Any, dtype: Any = np.int64) -> ir.Value:
    return add_initializer(graph.graph, unique("wrong", names(graph.graph)), np.asarray(array, dtype))


def wrong_epsilon(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:  # noqa: ARG001
    if node.op_type not in {"BatchNormalization", "LayerNormalization"}:
        return False
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-3)
    return True


def dropped_bias(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:  # noqa: ARG001
    places = {"Conv": (2,), "Gemm": (2,), "LSTM": (3,), "LayerNormalization": (2,), "BatchNormalization": (2,), "Add": (1,)}
    place = places.get(node.op_type, (None,))[0]
    return place is not None and _replace_weight(graph, node, place, np.zeros_like)


def swapped_channels(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:
    axis = {"Conv": 0, "Gemm": 0 if node.attributes.get_int("transB", 0) else 1, "MatMul": 1}.get(node.op_type)

    def swapped(weight: Array) -> Array | None:
        if axis is None or weight.ndim <= axis or weight.shape[axis] < 4:
            return None
        one, other = draw.choice(weight.shape[axis], 2, replace=False)
        order = np.arange(weight.shape[axis])
        order[[one, other]] = order[[other, one]]
        return weight.take(order, axis=axis)

    return axis is not None and _replace_weight(graph, node, 1, swapped)


def transposed_weight(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:  # noqa: ARG001
    square = node.op_type in {"MatMul", "Gemm"}
    return square and _replace_weight(graph, node, 1, lambda weight: weight.T if weight.shape[0] == weight.shape[-1] else None)


def half_weights(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:  # noqa: ARG001
    weighted = node.op_type in {"Conv", "Gemm", "MatMul", "LSTM"}
    return weighted and _replace_weight(graph, node, 1, lambda w: w.astype(np.float16).astype(w.dtype) if w.dtype.kind == "f" else None)


def wrong_padding(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:  # noqa: ARG001
    pads = node.attributes.get_ints("pads", ())
    if node.op_type != "Conv" or len(pads) != 4 or not all(pads):
        return False
    node.attributes["pads"] = ir.AttrInt64s("pads", [pads[0] + 1, pads[1] + 1, pads[2] - 1, pads[3] - 1])
    return True


def wrong_slope(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:  # noqa: ARG001
    if node.op_type == "LeakyRelu":
        node.attributes["alpha"] = ir.AttrFloat32("alpha", 0.01)
    elif node.op_type == "Gelu":
        node.attributes["approximate"] = ir.AttrString("approximate", "tanh")
    elif node.op_type == "Relu":
        return _in_place(graph, node, "LeakyRelu", alpha=0.01)
    else:
        return False
    return True


def _in_place(graph: ir.Model, node: ir.Node, operator: str, **attributes: Any) -> bool:
    """Another operator for a node's own, on the same tensors."""
    new = ir.node(operator, node.inputs, attributes, name=node.name)
    new.metadata_props.update(node.metadata_props)
    value, old = new.outputs[0], node.outputs[0]
    value.type, value.shape = old.type, old.shape
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    value.name = old.name
    graph.graph.insert_before(node, new)
    graph.graph.remove(node, safe=True)
    return True


def wrong_axis(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:  # noqa: ARG001
    value = node.inputs[0]
    if node.op_type != "Softmax" or value is None or value.shape is None or len(value.shape) < 3:
        return False
    node.attributes["axis"] = ir.AttrInt64("axis", 1)
    return True


def wrong_factor(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:  # noqa: ARG001
    return node.op_type == "Mul" and _replace_weight(graph, node, 1, lambda factor: factor**2)


def swapped_gates(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:  # noqa: ARG001
    def swapped(weight: Array) -> Array:
        one, two, *others = np.split(weight, 4, axis=1)
        return np.concatenate([two, one, *others], axis=1)

    return node.op_type == "LSTM" and _replace_weight(graph, node, 1, swapped)


def lost_state(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:  # noqa: ARG001
    if node.op_type != "LSTM" or len(node.inputs) < 6 or node.inputs[5] is None:
        return False
    node.replace_input_with(5, None)
    return True


def off_by_one(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:  # noqa: ARG001
    """The result moved by one along its last axis but channels, its edge repeated: a crop that starts one too late."""
    shape = node.outputs[0].shape
    if shape is None or len(shape) < 3 or node.outputs[0].dtype != ir.DataType.FLOAT:
        return False
    axis = len(shape) - 1 if len(shape) == 4 else 1
    if shape[axis] == 1:
        return False
    one, last, end, along = (_number(graph, [number]) for number in (1, -1, np.iinfo(np.int64).max, axis))

    def crop(x: ir.Value) -> tuple[ir.Node, ...]:
        moved, edge = ir.node("Slice", [x, one, end, along]), ir.node("Slice", [x, last, end, along])
        return moved, edge, ir.node("Concat", [moved.outputs[0], edge.outputs[0]], {"axis": axis})

    return _behind(graph, node, crop)


def frozen_length(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:  # noqa: ARG001
    """The result cut to the length that was traced."""
    shape = node.outputs[0].shape
    free = [axis for axis, size in enumerate(shape or ()) if getattr(size, "value", None) == "time"]
    if not free or node.outputs[0].dtype != ir.DataType.FLOAT:
        return False
    start, end, along = (_number(graph, [number]) for number in (0, TRACED, free[0]))
    return _behind(graph, node, lambda x: (ir.node("Slice", [x, start, end, along]),))


def clipped(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:
    """The result cut off at a third of what it reaches on data."""
    if node.outputs[0].dtype != ir.DataType.FLOAT:
        return False
    feed = feeds_of(graph, draw, 1)[0]
    with closing(Reference(graph, [node.outputs[0].name or ""])) as reference:
        reached = float(np.abs(reference.run(feed)[node.outputs[0].name or ""]).max())
    low, high = (_number(graph, sign * reached / 3, np.float32) for sign in (-1, 1))
    return _behind(graph, node, lambda x: (ir.node("Clip", [x, low, high]),))


FLOAT_FAULTS: tuple[Fault, ...] = (
    wrong_epsilon,
    dropped_bias,
    swapped_channels,
    transposed_weight,
    half_weights,
    wrong_padding,
    wrong_slope,
    wrong_axis,
    wrong_factor,
    swapped_gates,
    lost_state,
    off_by_one,
    frozen_length,
    clipped,
)


def _activation_scale(node: ir.Node) -> bool:
    """Whether a node quantizes an activation by a scale that calibration gave."""
    return node.op_type == "QuantizeLinear" and constant(node.inputs[1]) is not None


def _rescaled(graph: ir.Model, node: ir.Node, scale: Callable[[Array], Array]) -> bool:
    """Changes the scale of an activation, where it is quantized and where it is read back."""
    back = [use.node for use in node.outputs[0].uses() if use.node.op_type == "DequantizeLinear"]
    return _activation_scale(node) and all(_replace_weight(graph, one, 1, scale) for one in (node, *back))


def stale_scale_of_smaller_data(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:
    factor = draw.uniform(3, 8)
    return _rescaled(graph, node, lambda scale: scale / factor)


def stale_scale_of_larger_data(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:
    factor = draw.uniform(12, 40)
    return _rescaled(graph, node, lambda scale: scale * factor)


def scale_of_another_layer(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:
    scales = [
        known
        for other in graph.graph
        if other is not node and _activation_scale(other) and (known := constant(other.inputs[1])) is not None
    ]
    if not scales:
        return False
    chosen = scales[draw.integers(len(scales))]
    return _rescaled(graph, node, lambda _: chosen)


def wrong_zero_point(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:  # noqa: ARG001
    if not _activation_scale(node) or len(node.inputs) < 3 or (zero := constant(node.inputs[2])) is None or zero.dtype != np.uint8:
        return False
    wrong = _number(graph, int(zero) - 64 if zero >= 64 else int(zero) + 64, np.uint8)
    node.replace_input_with(2, wrong)
    return True


def _integer_weight(node: ir.Node) -> bool:
    known = constant(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
    return known is not None and known.dtype == np.int8


def clipped_weight(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:  # noqa: ARG001
    return _integer_weight(node) and _replace_weight(graph, node, 0, lambda weight: weight.clip(-24, 24))


def scales_of_other_channels(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:
    return _integer_weight(node) and _replace_weight(graph, node, 1, lambda s: draw.permutation(s) if s.ndim and s.size > 3 else None)


def dropped_integer_bias(graph: ir.Model, node: ir.Node, draw: Draw) -> bool:  # noqa: ARG001
    known = constant(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
    return known is not None and known.dtype == np.int32 and _replace_weight(graph, node, 0, np.zeros_like)


INTEGER_FAULTS: tuple[Fault, ...] = (
    stale_scale_of_smaller_data,
    stale_scale_of_larger_data,
    scale_of_another_layer,
    wrong_zero_point,
    clipped_weight,
    scales_of_other_channels,
    dropped_integer_bias,
)
