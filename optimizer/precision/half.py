"""FP16 and BF16: types of nodes, weights and constants changed, Casts where the types of two layers differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnxscript import version_converter

from optimizer.errors import InputError, UnavailableError
from optimizer.graph import constant
from optimizer.model import FOR_LAYER, PLANNED
from optimizer.plan import Precision
from optimizer.precision.placement import HALF
from optimizer.precision.writer import Writer, layer_of

_FLOAT = ir.DataType.FLOAT
_NEEDED_IR_VERSION = {21: 10, 22: 10, 23: 11, 24: 11, 25: 12}
_TYPE_ATTRIBUTES = frozenset({"dtype", "to"})
_TAKES_ANY = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear", "Shape", "Size"})
_FLOAT_STATISTICS = frozenset({"LayerNormalization"})
"""Operators whose further outputs (mean, inverse deviation) stay float32, as their `stash_type` says."""


def raise_opset(model: ir.Model, opset: int) -> None:
    """Raises the main opset to at least `opset`, in place, names and metadata kept.

    Below 23 a DequantizeLinear with float32 scales can't write FP16, below 22 a Conv knows no BF16.

    Raises:
        UnavailableError: an operator of the model has no form in that opset.
    """
    if model.opset_imports.get("", 0) >= opset:
        return
    version_converter.convert_version(model, opset, fallback=False)
    if model.opset_imports.get("", 0) < opset:
        raise UnavailableError(f"The model can't be raised to opset {opset}, which this precision needs.", "Export it in a newer opset.")
    model.ir_version = max(model.ir_version, _NEEDED_IR_VERSION.get(opset, 10))


def halve(model: ir.Model, base: Precision, exact: frozenset[str]) -> None:
    """Gives every node of the main graph the type of its layer's PLANNED precision, in place; helpers have that of `base`.

    Inputs and outputs of the model stay float32, and so do subgraphs, the scales of Q/DQ, and the tensors named in `exact`
    with the helpers that make them.  Every value's type must be known.

    Raises:
        InputError: a constant lies beyond what the type of its layer holds.
    """
    graph = model.graph
    opset = model.opset_imports[""]
    types = _types(graph, HALF.get(base, _FLOAT), exact)
    wanted = {node: [*_inputs(node, types[node], opset), *_captured(node)] for node in graph}
    for node in graph:
        if types[node] != _FLOAT:
            _type_outputs(node, types[node], opset)
    writer = Writer(graph)
    converted: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node, reads in wanted.items():
        for reader, place, value, dtype in reads:
            if value.dtype != dtype:
                key = (value, dtype)
                if key not in converted:
                    converted[key] = _converted(writer, value, dtype, _owner(node))
                reader.replace_input_with(place, converted[key])
    for output in list(graph.outputs):
        if output.dtype in HALF.values():
            widened = _cast(writer, output, _FLOAT, layer_of(output))
            writer.take_over(output, widened.outputs[0], "half", through=widened)


Read = tuple[ir.Node, int, ir.Value, ir.DataType]
"""A node reads a value at a place and wants it in a type."""


def _owner(node: ir.Node) -> str:
    return node.metadata_props.get(FOR_LAYER) or node.name or ""


def _types(graph: ir.Graph, base: ir.DataType, exact: frozenset[str]) -> dict[ir.Node, ir.DataType]:
    """The float type in which each node computes: of its own layer, or of the layer that it was put in for, or `base`."""
    by_layer = {node.name: node.metadata_props[PLANNED] for node in graph if PLANNED in node.metadata_props}
    found: dict[ir.Node, ir.DataType] = {}
    for node in graph:
        planned = by_layer.get(_owner(node), "")
        type_of_plan = base if planned in {"", "int8"} else HALF.get(planned, _FLOAT)
        found[node] = _FLOAT if any(value.name in exact for value in node.outputs) else type_of_plan
    return found


def _inputs(node: ir.Node, dtype: ir.DataType, opset: int) -> Iterator[Read]:
    """Float inputs with the type wanted; operators that take any type take what comes."""
    if node.op_type in _TAKES_ANY:
        return
    schema = onnx.defs.get_schema(node.op_type, opset, "") if dtype != _FLOAT else None
    for place, value in enumerate(node.inputs):
        if value is not None and value.dtype == _FLOAT:
            fits = schema is not None and _word(dtype) in schema.inputs[min(place, len(schema.inputs) - 1)].types
            yield node, place, value, dtype if fits else _FLOAT


def _captured(node: ir.Node) -> Iterator[Read]:
    """What the subgraphs of a node read of the main graph: they stay in float32."""
    for attribute in node.attributes.values():
        bodies: Sequence[ir.Graph] = ()
        if attribute.type == ir.AttributeType.GRAPH:
            bodies = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            bodies = attribute.as_graphs()
        for inner in (inner for body in bodies for inner in body.all_nodes()):
            for place, value in enumerate(inner.inputs):
                if value is not None and value.dtype == _FLOAT and value.graph is node.graph:
                    yield inner, place, value, _FLOAT


def _type_outputs(node: ir.Node, dtype: ir.DataType, opset: int) -> None:
    """Float outputs become `dtype` where the operator is defined so; attributes that name or hold the type follow."""
    if node.op_type == "Constant":
        return
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    for place, value in enumerate(node.outputs):
        fits = _word(dtype) in schema.outputs[min(place, len(schema.outputs) - 1)].types
        if value.dtype == _FLOAT and fits and not (node.op_type in _FLOAT_STATISTICS and place > 0):
            value.type = ir.TensorType(dtype)
    if node.op_type == "DequantizeLinear":
        node.attributes["output_dtype"] = ir.AttrInt64("output_dtype", int(dtype))
    for name in _TYPE_ATTRIBUTES & node.attributes.keys():
        if node.attributes[name].as_int() == int(_FLOAT):
            node.attributes[name] = ir.AttrInt64(name, int(dtype))
    if node.op_type == "ConstantOfShape":
        filled = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, np.float32)
        if filled.dtype == np.float32:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(filled.astype(dtype.numpy())))


def _word(dtype: ir.DataType) -> str:
    return f"tensor({dtype.name.lower()})"


def _converted(writer: Writer, value: ir.Value, dtype: ir.DataType, layer: str) -> ir.Value:
    """The value in another float type: a constant's numbers once and for all, anything else through a Cast at run time."""
    array = constant(value)
    if array is None:
        return _cast(writer, value, dtype, layer).outputs[0]
    with np.errstate(over="ignore"):
        numbers = array.astype(dtype.numpy())
    if not np.isfinite(numbers.astype(np.float32)[np.isfinite(array)]).all():
        largest = np.abs(array[np.isfinite(array)]).max()
        reason = f"{layer} has a constant of {largest:.3g}, and {_word(dtype)} holds no number as large."
        raise InputError(reason, "Leave this layer in fp32 in the plan.")
    return writer.constant(f"{value.name}/{dtype.name.lower()}", numbers)


def _cast(writer: Writer, value: ir.Value, dtype: ir.DataType, layer: str) -> ir.Node:
    to = ir.AttrInt64("to", int(dtype))
    node = writer.node("Cast", [value], f"{value.name}/{dtype.name.lower()}", layer, [(dtype, value.shape)], attributes=[to])
    writer.place_behind(value, [node])
    return node
