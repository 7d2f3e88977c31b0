"""Small tools on a graph that importers, fusion, precision, the reference and backends share."""

from __future__ import annotations

import gc
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from optimizer.model import CUSTOM_OPS

LARGE = 64 << 20
"""Bytes of weights from which on they are saved beside a graph: a session maps them there, and copies what is inside twice."""

_SMALL_BYTES = 256
"""Weights up to this size travel inside a graph's own file."""


_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"})


def clone(model: ir.Model) -> ir.Model:
    """A copy whose nodes can be changed; the weights are shared, so a copy costs nothing."""
    return model.clone()


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The numbers of a value that is known before the run (initializer or Constant node), else None."""
    if value is None:
        return None
    tensor = value.const_value
    if tensor is None:
        node = value.producer()
        if node is None or node.op_type != "Constant":
            return None
        tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def constant_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Nodes that depend on no input of the graph, so that they can be computed before any run."""
    found: set[ir.Node] = set()
    for node in graph:
        if all(_known(value, found) for value in node.inputs) and not _has_subgraph(node):
            found.add(node)
    return found


def _known(value: ir.Value | None, constants: set[ir.Node]) -> bool:
    return value is None or value.const_value is not None or value.is_initializer() or value.producer() in constants


def _has_subgraph(node: ir.Node) -> bool:
    return any(attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS} for attribute in node.attributes.values())


def names(graph: ir.Graph) -> set[str]:
    """Every value and node name of the main graph and its subgraphs."""
    found = {value.name or "" for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph.all_nodes():
        found.add(node.name or "")
        found.update(value.name or "" for value in node.outputs)
    return found


def unique(wanted: str, taken: set[str]) -> str:
    """`wanted`, or the first of `wanted#2`, `wanted#3` ... that is free; it is then taken."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}#{number}"
    taken.add(name)
    return name


def add_initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """A new initializer; the caller brings a unique name, since a used one would be overwritten in silence."""
    if name in graph.initializers:
        raise ValueError(f"initializer {name!r} exists")
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def quantized(model: ir.Model) -> int:
    """How many operators convert to 8-bit integers or compute with them: more than 0 in a model that another tool has quantized."""
    kinds = [node.op_type for node in model.graph.all_nodes()]
    return sum(kind in _QUANTIZED or kind.startswith("QLinear") for kind in kinds)


HEAVY = 1 << 28
"""Bytes of weights above which memory is freed at once where it costs time, rather than when there happens to be some."""


def free(weights: int) -> None:
    """Free what graphs held that nobody reads any more, if there are so many bytes of weights in it that it counts.

    Nodes and values know each other, so that they and their weights stay until Python looks for cycles, which it seldom does.
    """
    if weights > HEAVY:
        gc.collect()


def infer_shapes(model: ir.Model) -> None:
    """Write the shapes and types that follow from the inputs onto every value, in place.

    Not strict: an operator that can't be inferred, or an untrue declaration, leaves its own values as they are and no others.
    """
    passes.ShapeInferencePass(strict_mode=False)(model)


def weights_bytes(model: ir.Model) -> int:
    """Bytes of all initializers."""
    return sum(tensor.nbytes for value in model.graph.initializers.values() if (tensor := value.const_value) is not None)


def static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """The shape where every size is known, else None."""
    if value.shape is None or not all(isinstance(size, int) for size in value.shape):
        return None
    return tuple(int(size) for size in value.shape)  # type: ignore[arg-type]


def elements(value: ir.Value) -> int | None:
    """How many numbers a value of known shape holds."""
    shape = static_shape(value)
    return None if shape is None else math.prod(shape)


def readers(value: ir.Value) -> Sequence[ir.Node]:
    """The nodes that read a value, each once."""
    return list(dict.fromkeys(use.node for use in value.uses()))


def floats(graph: ir.Graph) -> Iterator[ir.Value]:
    """Inputs and node outputs of the main graph that hold float32 and are computed at every run."""
    for value in graph.inputs:
        if value.dtype == ir.DataType.FLOAT:
            yield value
    for node in graph:
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT and value.name:
                yield value


def sha256(model: ir.Model) -> str:
    """Hex SHA-256 of what a graph computes: operators, connections, attributes, weights; names of its making included."""
    digest = hashlib.sha256()
    graph = model.graph
    digest.update(repr(sorted(graph.opset_imports.items())).encode())
    digest.update(repr([(value.name, str(value.dtype), str(value.shape)) for value in (*graph.inputs, *graph.outputs)]).encode())
    for node in graph.all_nodes():
        attributes = {name: _text(attribute) for name, attribute in sorted(node.attributes.items())}
        inputs = [value.name if value is not None else None for value in node.inputs]
        digest.update(repr((node.domain, node.op_type, inputs, [value.name for value in node.outputs], attributes)).encode())
    for name, value in sorted(graph.initializers.items()):
        if value.const_value is not None:
            digest.update(name.encode())
            digest.update(_numbers(value.const_value.numpy()))
    return digest.hexdigest()


def _numbers(array: NDArray[Any]) -> memoryview:
    """What an array holds, without a copy: the largest weights are mapped from a file. Of text its representation."""
    if array.dtype.hasobject:
        return memoryview(repr(array.tolist()).encode())
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _text(attribute: ir.Attr) -> str:
    if attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
        return "graph"
    if attribute.type == ir.AttributeType.TENSOR:
        return hashlib.sha256(attribute.as_tensor().tobytes()).hexdigest()
    return repr(attribute.value)


def fixed(model: ir.Model, sizes: Mapping[str, Sequence[int]]) -> ir.Model:
    """A copy whose inputs have these sizes, with the shapes that follow from them; inputs not named stay as they are."""
    copy = clone(model)
    for value in copy.graph.inputs:
        if (size := sizes.get(value.name or "")) is not None:
            value.shape = ir.Shape(size)
    before = {value: value.shape for value in copy.graph.outputs}
    for value in (*copy.graph.outputs, *(output for node in copy.graph.all_nodes() for output in node.outputs)):
        # What was inferred for free dimensions would stand in the way of what follows from the sizes.
        value.shape = None
    infer_shapes(copy)
    for value, shape in before.items():
        if value.shape is None:  # nothing follows, as behind an If: an output must still say how many dimensions it has
            value.shape = shape
    return copy


def save(model: ir.Model, file: Path, beside: str | None = None) -> None:
    """Write a graph as one file, or with its weights in a file `beside` it; weights that lie elsewhere are copied in."""
    largest = None if beside is None else _SMALL_BYTES
    copy = held(clone(model), largest)
    copy.metadata_props.pop(CUSTOM_OPS, None)  # a place on this machine
    ir.save(copy, file, external_data=beside, size_threshold_bytes=_SMALL_BYTES)


def held(model: ir.Model, largest: int | None = None) -> ir.Model:
    """The model with those of its weights in memory that lie in files, only those of at most `largest` bytes if given; in place."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor) and (largest is None or value.const_value.nbytes <= largest):
                value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    return model
