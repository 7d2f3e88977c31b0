"""How much each layer has to multiply: what a share of a model's work is a share of."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import onnx_ir as ir

from optimizer.engine import Realised
from optimizer.graph import clone, constant_nodes, fixed, infer_shapes, static_shape
from optimizer.model import SHAPES, is_layer

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "ConvInteger"})
_PRODUCTS = frozenset({"Gemm", "MatMul", "MatMulInteger", "MatMulIntegerToFloat"})
_RECURRENT = frozenset({"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"})

_BETWEEN = frozenset({"DequantizeLinear", "QuantizeLinear", "Cast", "Identity", "Transpose", "Reshape"})
"""What may stand between a weight and the layer that multiplies by it."""


def counted(layers: Iterable[Realised], model: ir.Model) -> tuple[Realised, ...]:
    """What was read back of the layers of a typed graph, with how often each multiplies by a weight in a run."""
    work = multiplications(model)
    return tuple(replace(layer, multiplications=work.get(layer.layer)) for layer in layers)


def multiplications(model: ir.Model) -> Mapping[str, int]:
    """How often each layer with weights multiplies by one in a run: convolutions, products and recurrent layers.

    Free dimensions have their usual sizes where the graph's metadata tells them; where a size is not known, each weight counts once.
    """
    sized = _sized(model)
    before = constant_nodes(sized.graph)
    return {node.name or "": count for node in sized.graph if is_layer(node) and node not in before and (count := _count(node))}


def _sized(model: ir.Model) -> ir.Model:
    """The model with the sizes that count, if it is not as it stands."""
    usual = {name: sizes[1] for name, sizes in json.loads(model.metadata_props.get(SHAPES, "{}")).items()}
    if usual:
        return fixed(model, usual)
    if all(static_shape(value) is not None for node in model.graph for value in node.outputs):
        return model
    copy = clone(model)
    infer_shapes(copy)
    return copy


def _count(node: ir.Node) -> int:
    weights = [_weight(value) for value in node.inputs]
    if node.op_type in _CONVOLUTIONS and weights[1]:
        positions = _known(node.inputs[0] if node.op_type == "ConvTranspose" else node.outputs[0])
        return math.prod(weights[1]) * (positions[0] * math.prod(positions[2:]) if positions else 1)
    if node.op_type in _RECURRENT and weights[1] and weights[2]:
        steps = _known(node.inputs[0])
        return (math.prod(weights[1]) + math.prod(weights[2])) * (steps[0] * steps[1] if steps else 1)
    if node.op_type in _PRODUCTS and (weights[0] or weights[1]):
        return _product(node, weights[0], weights[1])
    return 0


def _product(node: ir.Node, left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Numbers of the output times the length of the sums that each of them is; a matrix on the left is (rows, sum)."""
    turned = node.op_type == "Gemm" and bool(node.attributes.get_int("transB" if right else "transA", 0))
    length = (right[-1] if turned else right[-2]) if right else (left[-2] if turned else left[-1])
    output = _known(node.outputs[0])
    return math.prod(output) * length if output else math.prod(right or left)


def _weight(value: ir.Value | None) -> tuple[int, ...]:
    """The sizes of a constant of two dimensions or more, seen through what only changes its form; () for anything else."""
    while value is not None and value.const_value is None and (node := value.producer()) is not None and node.op_type in _BETWEEN:
        value = node.inputs[0]
    if value is None or value.const_value is None:
        return ()
    sizes = tuple(value.const_value.shape.numpy())
    return sizes if len(sizes) > 1 else ()


def _known(value: ir.Value | None) -> tuple[int, ...]:
    return (static_shape(value) or ()) if value is not None else ()
