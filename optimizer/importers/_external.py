"""Weights outside the model's file: where they may lie, checked before anything reads them.

onnx-ir follows any path and takes short data as it comes, so a model could read files that are not its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx

from optimizer.errors import InputError

_REMEDY = "Keep a model's data files in its own folder, and save both anew with onnx.save(..., save_as_external_data=True)."
_BITS: Mapping[int, int] = {
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.FLOAT4E2M1: 4,
    onnx.TensorProto.INT2: 2,
    onnx.TensorProto.UINT2: 2,
}
"""Bits of one number where several share a byte."""


def check_external_data(proto: onnx.ModelProto, folder: Path) -> None:
    """Every external tensor lies whole in a plain file in the model's `folder` or below.

    Raises:
        InputError: absolute path, `..`, a symlink that leads out, a missing file, an offset or length beyond its end.
    """
    for tensor in tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check(tensor, folder.resolve())


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: of its graph, its subgraphs, its attributes and its functions."""
    yield from _of_graph(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _of_node(node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _of_node(node)


def _of_node(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        yield from _of_graph(attribute.g)
        for graph in attribute.graphs:
            yield from _of_graph(graph)


def _check(tensor: onnx.TensorProto, folder: Path) -> None:
    told = {entry.key: entry.value for entry in tensor.external_data}
    location = told.get("location", "")
    if not location or Path(location).is_absolute() or ".." in Path(location).parts:
        raise InputError(f"The data of tensor {tensor.name!r} is said to lie at {location!r}, outside the model's folder.", _REMEDY)
    file = (folder / location).resolve()
    if not file.is_relative_to(folder):
        raise InputError(f"The data file {location!r} is a link that leads out of the model's folder.", _REMEDY)
    if not file.is_file():
        raise InputError(f"The data file {location!r} of tensor {tensor.name!r} is not there.", "Put it beside the model.")
    size, wanted = file.stat().st_size, _bytes(tensor)
    try:
        offset, length = int(told.get("offset", "0")), int(told.get("length", str(wanted)))
    except ValueError:
        raise InputError(f"The data of tensor {tensor.name!r} has an offset or length that is no number.", _REMEDY) from None
    if offset < 0 or length < 0 or offset + length > size:
        raise InputError(f"The data of tensor {tensor.name!r} ends beyond the {size} bytes of {location!r}.", "Get the whole file.")
    if length != wanted:
        raise InputError(f"Tensor {tensor.name!r} needs {wanted} bytes, and {location!r} holds {length} for it.", "Get the whole file.")


def _bytes(tensor: onnx.TensorProto) -> int:
    if any(size < 0 for size in tensor.dims):
        raise InputError(f"Tensor {tensor.name!r} has a negative size.", _REMEDY)
    try:
        bits = _BITS.get(tensor.data_type, 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, ValueError):
        raise InputError(f"Tensor {tensor.name!r} has no known type.", _REMEDY) from None
    return int((math.prod(tensor.dims) * bits + 7) // 8)
