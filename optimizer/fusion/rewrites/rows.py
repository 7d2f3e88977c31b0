"""What an operator makes of every row of a table, computed in float64 and rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from optimizer.fusion.conditions import input_of, known

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


def computed(node: ir.Node, table: NDArray[Any]) -> NDArray[Any]:
    """The output of `node`, whose first input is `table` and whose others are constants; in the table's type."""
    wide = table.astype(np.float64)
    result = EXACT[node.op_type](wide, node) if node.op_type in EXACT else _by_reference(node, wide)
    return result.astype(table.dtype)


def _by_reference(node: ir.Node, table: NDArray[np.float64]) -> NDArray[Any]:
    first = ir.Value(name="rows", type=ir.TensorType(ir.DataType.DOUBLE), shape=ir.Shape(table.shape))
    operands, constants = list[ir.Value | None]([first]), list[ir.Value]()
    for place in range(1, len(node.inputs)):
        array = known(input_of(node, place))
        if array is None:
            operands.append(None)
            continue
        numbers = array.astype(np.float64) if array.dtype.kind == "f" else array
        # A row may have leading axes of size 1, as the rows that were looked up have; the table has none.
        numbers = numbers.reshape(numbers.shape[max(0, numbers.ndim - 2) :])
        constants.append(ir.Value(name=f"operand{place}", const_value=ir.tensor(numbers, name=f"operand{place}")))
        operands.append(constants[-1])
    attributes = [value for name, value in node.attributes.items() if name != "axis"]  # the last one, which is the standard
    alone = ir.Node(node.domain, node.op_type, operands, attributes, num_outputs=1)
    alone.outputs[0].name = "result"
    graph = ir.Graph([first], alone.outputs, nodes=[alone], initializers=constants, opset_imports={"": 20})
    (result,) = ReferenceEvaluator(ir.to_proto(ir.Model(graph, ir_version=10))).run(None, {"rows": table})
    return np.asarray(result)
