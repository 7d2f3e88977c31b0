"""What an operator makes of every row of a table, computed in float64 and rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _gelu(x: NDArray[np.float64], node: ir.Node) -> NDArray[np.float64]:
    if node.attributes.get_string("approximate", "none") == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return np.asarray(0.5 * x * (1 + _erf(x / math.sqrt(2))))


EXACT: Mapping[str, Callable[[NDArray[np.float64], ir.Node], NDArray[np.float64]]] = {
    "Erf": lambda x, _node: np.asarray(_erf(x)),
    "Gelu": _gelu,
    "HardSwish": lambda x, _node: np.asarray(x * np.clip(x / 6 + 0.5, 0, 1)),
}
"""Operators that onnx.reference computes in float32 (`folding.ROUGH`), in the model's own type."""


def computed(node: ir.Node, operands: Sequence[NDArray[Any] | None]) -> NDArray[np.float64]:
    """The output of `node` for its inputs, tables of shape (rows, width) or constants; those of a float type in float64."""
    wide = [array.astype(np.float64) if array is not None and array.dtype.kind == "f" else array for array in operands]
    if node.op_type in EXACT and wide[0] is not None:
        return EXACT[node.op_type](wide[0], node)
    return _by_reference(node, wide)


def _by_reference(node: ir.Node, operands: Sequence[NDArray[Any] | None]) -> NDArray[np.float64]:
    inputs, feeds = list[ir.Value | None](), dict[str, NDArray[Any]]()
    for place, array in enumerate(operands):
        if array is None:
            inputs.append(None)
            continue
        # A constant row may have leading axes of size 1, as the rows that were looked up have; a table has none.
        feeds[f"operand{place}"] = flat = array.reshape(array.shape[max(0, array.ndim - 2) :])
        kind = ir.TensorType(ir.DataType.from_numpy(flat.dtype))
        inputs.append(ir.Value(name=f"operand{place}", type=kind, shape=ir.Shape(flat.shape)))
    attributes = [value for name, value in node.attributes.items() if name != "axis"]  # the last one, which is the standard
    alone = ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=1)
    alone.outputs[0].name = "result"
    given = [value for value in inputs if value is not None]
    graph = ir.Graph(given, alone.outputs, nodes=[alone], opset_imports={"": 20})
    (result,) = ReferenceEvaluator(ir.to_proto(ir.Model(graph, ir_version=10))).run(None, feeds)
    return np.asarray(result, np.float64)
