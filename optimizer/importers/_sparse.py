"""Sparse initializers, which onnx-ir drops without a word, written out as the dense weights that they mean."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx

from optimizer.errors import InputError

_LARGEST = 1 << 31
"""Bytes that a weight may have in a protobuf: a few bytes of a sparse one can claim any size."""


def make_dense(proto: onnx.ModelProto, folder: Path) -> tuple[str, ...]:
    """Turn the sparse initializers of the main graph into plain ones, in place; a note where there were any.

    Raises:
        InputError: one would be larger than a model's file may be.
    """
    names = []
    for sparse in proto.graph.sparse_initializer:
        values = onnx.numpy_helper.to_array(sparse.values, str(folder))
        indices = onnx.numpy_helper.to_array(sparse.indices, str(folder))
        shape = tuple(sparse.dims)
        if math.prod(shape) * values.itemsize > _LARGEST:
            raise InputError(f"The sparse weight {sparse.values.name!r} is larger than 2 GB once written out.", "Export it as a dense one.")
        dense = np.zeros(shape, values.dtype)
        places = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
        dense.reshape(-1)[places] = values
        proto.graph.initializer.append(onnx.numpy_helper.from_array(dense, sparse.values.name))
        names.append(sparse.values.name)
    del proto.graph.sparse_initializer[:]
    return (f"{len(names)} sparse weights were written out as dense ones.",) if names else ()
