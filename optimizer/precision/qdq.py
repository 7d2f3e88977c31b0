"""Static INT8: QuantizeLinear and DequantizeLinear around activations, int8 weights, biases as the engine wants them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from calibration.grid import INT8, UINT8, Grid
from calibration.ranges import Range
from optimizer.graph import constant
from optimizer.model import is_layer
from optimizer.plan import Capability, Plan
from optimizer.precision import weights
from optimizer.precision.dynamic import integer_product
from optimizer.precision.placement import CARRIERS, HALF, WEIGHTED
from optimizer.precision.rounded import marked
from optimizer.precision.settle import base_of
from optimizer.precision.spots import Spots, common_range
from optimizer.precision.writer import Writer

_GRIDS = {"uint8": UINT8, "int8": INT8}
_FLOAT = ir.DataType.FLOAT


def quantize(graph: ir.Graph, plan: Plan, capability: Capability, places: Spots) -> None:
    """Writes the plan's static INT8 into `graph`, in place; the plan is settled, and `places` come from it.

    Raises:
        ValueError: the plan has no range for a tensor that needs one.
    """
    integers = [node for node in graph if is_layer(node) and plan.precision(node.name or "") == "int8"]
    writer = Writer(graph)
    grid = _GRIDS[capability.activation]
    scales = _scales(plan, grid, places)
    values = {value.name: value for value in (*graph.inputs, *(value for node in graph for value in node.outputs))}
    for name, scale in scales.items():
        _activation(writer, values[name], scale, places.readers[name], grid)
    for node in integers:
        if node.name in places.products:
            _product(writer, node, plan, capability)
        elif has_weight(node):
            _weight(writer, node, plan, capability)
        elif node.op_type not in CARRIERS:
            _constant_operands(writer, node, grid)


def has_weight(node: ir.Node) -> bool:
    """Whether the second input of a layer is a weight that is known before the run."""
    return node.op_type in WEIGHTED | {"MatMul"} and constant(node.inputs[1]) is not None


def _scales(plan: Plan, grid: Grid, places: Spots) -> dict[str, tuple[np.float32, int]]:
    """Scale and zero point by tensor, the same for all of a group."""
    missing = [name for name in places.groups if name not in plan.ranges]
    if missing:
        raise ValueError(f"the plan has no range for {', '.join(missing)}")
    members: dict[str, list[Range]] = {}
    for name, first in places.groups.items():
        members.setdefault(first, []).append(plan.ranges[name])
    common = {first: grid.quantization(common_range(ranges)) for first, ranges in members.items()}
    return {name: common[first] for name, first in places.groups.items()}


def _activation(writer: Writer, value: ir.Value, scale: tuple[np.float32, int], layers: frozenset[str] | None, grid: Grid) -> None:
    """One Q/DQ pair behind the tensor; `layers` read through it, or all readers and the caller where None."""
    name = value.name or ""
    through = [use for use in value.uses() if layers is None or use.node.name in layers]
    owner = next((use.node for use in through if is_layer(use.node)), value.producer())
    layer = (owner.name or "") if owner is not None else ""
    step = writer.constant(f"{name}/scale", scale[0])
    zero = writer.constant(f"{name}/zero_point", np.asarray(scale[1], grid.dtype))
    integers = ir.DataType.from_numpy(grid.dtype)
    down = writer.node("QuantizeLinear", [value, step, zero], f"{name}/quantize", layer, [(integers, value.shape)])
    up = writer.node("DequantizeLinear", [down.outputs[0], step, zero], f"{name}/dequantize", layer, [(_FLOAT, value.shape)])
    writer.place_behind(value, [down, up])
    if layers is None:
        writer.take_over(value, up.outputs[0], "float", through=down)
    for use in through if layers is not None else ():
        use.node.replace_input_with(use.idx, up.outputs[0])


def _product(writer: Writer, node: ir.Node, plan: Plan, capability: Capability) -> None:
    """A product that writes float: its kernel reads the activation's integers themselves."""
    read, step, zero = _dequantizer(node).inputs
    assert read is not None
    assert step is not None
    assert zero is not None
    integer_product(writer, node, read, step, zero, _method(plan, node), capability.weight_limit)


def _method(plan: Plan, node: ir.Node) -> str:
    """The range method of a layer's weight: that of its own range in the plan, where there is one."""
    known = plan.ranges.get(node.inputs[1].name or "") if node.inputs[1] is not None else None
    return known.method if known is not None else "minmax"


def _weight(writer: Writer, node: ir.Node, plan: Plan, capability: Capability) -> None:
    """The weight of a layer as int8 behind a DequantizeLinear, its bias beside it."""
    value = node.inputs[1]
    known = constant(value)
    assert value is not None
    assert known is not None
    array = known.astype(np.float32)
    method = _method(plan, node)
    axis = _output_axis(node, array.ndim)
    if axis is None:
        integers, scales = weights.per_channel(array.reshape(1, -1), 0, method, capability.weight_limit)
        _read_integers(writer, node, 1, integers.reshape(array.shape), scales[0])
    elif capability.scalar_weight_scale:
        base = base_of(plan, capability)
        integers, scale, ratios = weights.with_ratios(
            array, axis, method, capability.weight_limit, HALF[base].numpy() if base in HALF else np.float32, marked(value)
        )
        _read_integers(writer, node, 1, integers, scale)
        _ratio_behind(writer, node, ratios)
    else:
        bias = None if capability.float_bias else _bias(node, array.shape[axis])
        activation = np.float32(constant(_dequantizer(node).inputs[1]))
        smallest = weights.smallest_scale(bias, activation) if bias is not None else None
        integers, scales = weights.per_channel(array, axis, method, capability.weight_limit, smallest, marked(value))
        _read_integers(writer, node, 1, integers, scales, axis)
        if bias is not None:
            step = (scales * activation).astype(np.float32)
            _read_integers(writer, node, 2, weights.integer_bias(bias, step), step, 0)


def _output_axis(node: ir.Node, rank: int) -> int | None:
    """The axis of the output channels in a weight; None where one scale serves all (batches of matrices, ConvTranspose)."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB") else 1
    return 1 if node.op_type == "MatMul" and rank == 2 else None


def _bias(node: ir.Node, channels: int) -> weights.Floats | None:
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return None if bias is None else np.broadcast_to(bias.astype(np.float32).reshape(-1), (channels,))


def _dequantizer(node: ir.Node) -> ir.Node:
    """What an INT8 layer reads its activation through."""
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    assert producer is not None
    assert producer.op_type == "DequantizeLinear", f"{node.name} reads a float"
    return producer


def _read_integers(
    writer: Writer, node: ir.Node, place: int, integers: weights.Integers, scale: weights.Floats | np.float32, axis: int | None = None
) -> None:
    """Input `place` of the layer becomes these integers behind a DequantizeLinear, zero point 0."""
    value = node.inputs[place]
    assert value is not None
    name, layer = value.name or "", node.name or ""
    stored = writer.constant(f"{name}/integers", integers)
    step = writer.constant(f"{name}/scale", scale)
    inputs: list[ir.Value] = [stored, step]
    if integers.dtype == np.int8:
        inputs.append(writer.constant(f"{name}/zero_point", np.zeros(np.shape(scale), np.int8)))
    attributes = [] if axis is None else [ir.AttrInt64("axis", axis)]
    up = writer.node("DequantizeLinear", inputs, f"{name}/dequantize", layer, [(_FLOAT, stored.shape)], attributes=attributes)
    node.replace_input_with(place, up.outputs[0])
    writer.graph.insert_before(node, up)


def _ratio_behind(writer: Writer, node: ir.Node, ratios: weights.Floats) -> None:
    """Mul by the channels' ratios, then the layer's bias: both run in the epilogue of the layer's kernel."""
    output, layer = node.outputs[0], node.name or ""
    bias = _bias(node, len(ratios))
    if bias is not None:
        node.resize_inputs(2)
    spread = (-1, *[1] * (_spatial_rank(node))) if node.op_type == "Conv" else (-1,)
    added: list[ir.Node] = []
    last = output
    for operator, what, operand in (("Mul", "ratio", ratios), ("Add", "bias", bias)):
        if operand is not None:
            number = writer.constant(f"{layer}/{what}", operand.reshape(spread))
            added.append(writer.node(operator, [last, number], f"{layer}/{what}", layer, [(_FLOAT, output.shape)]))
            last = added[-1].outputs[0]
    writer.graph.insert_after(node, added)
    writer.take_over(output, last, "unscaled", through=added[0])


def _spatial_rank(node: ir.Node) -> int:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    return weight.shape.rank() - 2


def _constant_operands(writer: Writer, node: ir.Node, grid: Grid) -> None:
    """Constant operands of a layer whose other operands are quantized activations, by their own minimum and maximum."""
    for place, value in enumerate(node.inputs):
        array = constant(value)
        if value is None or array is None or array.dtype != np.float32:
            continue
        scale, zero_point = grid.quantization(Range("minmax", float(array.min()), float(array.max())))
        name = value.name or ""
        stored = writer.constant(f"{name}/integers", grid.quantize(array, scale, zero_point))
        step, zero = writer.constant(f"{name}/scale", scale), writer.constant(f"{name}/zero_point", np.asarray(zero_point, grid.dtype))
        up = writer.node("DequantizeLinear", [stored, step, zero], f"{name}/dequantize", node.name or "", [(_FLOAT, stored.shape)])
        node.replace_input_with(place, up.outputs[0])
        writer.graph.insert_before(node, up)
