"""Constants computed ahead: nodes whose inputs are all known become initializers, where that does not blow the model up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import known
from optimizer.fusion.duplicates import RANDOM
from optimizer.fusion.rule import refused
from optimizer.graph import readers, static_shape
from optimizer.model import Fusion

QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
"""A quantized weight stays one: what it dequantizes to is four times as large."""

COMMUTATIVE = frozenset({"Add", "Mul"})

ROUGH = frozenset({"Erf", "Gelu", "HardSwish"})
"""Operators that onnx.reference computes in float32 whatever the model's type."""

GROWTH = 1 << 16
"""Bytes by which one folded node may make the model larger; a Transpose of a weight that nobody else reads costs none."""


def lift_constants(model: ir.Model) -> None:
    """Turn the Constant nodes of the main graph into initializers of the same name, in place."""
    graph = model.graph
    for node in list(graph):
        value = node.outputs[0]
        if node.op_type != "Constant" or node.domain or value.is_graph_output() or "sparse_value" in node.attributes:
            continue
        if (tensor := ir.convenience.get_const_tensor(value)) is not None:
            put_constants(graph, node, [tensor])


def constants_right(model: ir.Model, _taken: set[str]) -> list[Fusion]:
    """Let the constant operand of Add and Mul stand on the right, in place; nothing to tell, since no layer changes."""
    for node in model.graph:
        if node.op_type in COMMUTATIVE and not node.domain:
            left, right = node.inputs
            if known(left) is not None and known(right) is None:
                node.replace_input_with(0, right)
                node.replace_input_with(1, left)
    return []


def fold_constants(model: ir.Model, taken: set[str]) -> list[Fusion]:
    """Compute every foldable node of the main graph by onnx.reference and put its outputs in as initializers, in place."""
    fusions = []
    for node in model.graph:
        if foldable(node) and (tensors := _computed(model, node)) is not None:
            fusions.append(Fusion("constant folding", (node.name or "",), ""))
            put_constants(model.graph, node, tensors)
            taken.discard(node.name or "")
    return fusions


def foldable(node: ir.Node) -> MatchResult:
    """Whether a node can be computed ahead, with the reason where it can't."""
    if node.domain or node.op_type in RANDOM | QUANTIZED | ROUGH:
        return refused("the operator is random, quantizes, is computed roughly, or is not ONNX's own", node)
    if any(attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS} for attribute in node.attributes.values()):
        return refused("the operator has a graph inside", node)
    inputs = [value for value in node.inputs if value is not None]
    if any(known(value) is None for value in inputs):
        return refused("an input is computed, or open to the caller", node)
    if any(value.is_graph_output() for value in node.outputs):
        return refused("the result is an output of the graph", node)
    if any(value.dtype is None or value.dtype == ir.DataType.STRING or static_shape(value) is None for value in node.outputs):
        return refused("size or type of the result are not known", node)
    freed = sum(value.const_value.nbytes for value in inputs if value.const_value is not None and readers(value) == [node])
    if sum(_bytes(value) for value in node.outputs) > freed + GROWTH:
        return refused(f"the result is more than {GROWTH} bytes larger than what it replaces", node)
    return MatchResult()


def _bytes(value: ir.Value) -> float:
    assert value.dtype is not None
    return math.prod(static_shape(value) or ()) * value.dtype.itemsize


def _computed(model: ir.Model, node: ir.Node) -> list[ir.TensorProtocol] | None:
    """The outputs of a node whose inputs are constants, by the standard's own reference in the model's own types.

    None where the reference can't compute this operator in this type, or gives another type or shape than was inferred:
    the node then stays for the engine to compute, which is what the model said.
    """
    evaluator = ReferenceEvaluator(ir.to_proto(node), opsets=dict(model.graph.opset_imports))
    try:
        outputs = evaluator.run(None, {value.name or "": known(value) for value in node.inputs if value is not None})
    except Exception:  # the reference raises whatever its numpy code happens to raise
        return None
    arrays = [np.asarray(output) for output in outputs]
    wanted = [(value.dtype.numpy() if value.dtype is not None else None, static_shape(value)) for value in node.outputs]
    if [(array.dtype, array.shape) for array in arrays] != wanted:
        return None
    return [ir.tensor(array, dtype=value.dtype) for array, value in zip(arrays, node.outputs, strict=True)]


def put_constants(graph: ir.Graph, node: ir.Node, tensors: Sequence[ir.TensorProtocol]) -> None:
    """Put initializers of the same names in the place of a node and its outputs."""
    for value, tensor in zip(node.outputs, tensors, strict=True):
        constant = ir.Value(name=value.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor)
        value.replace_all_uses_with(constant)
        graph.register_initializer(constant)
    graph.remove(node, safe=True)
