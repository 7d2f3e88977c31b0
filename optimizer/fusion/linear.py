"""Nodes that are linear in their first input, with a constant weight: how a scale and a shift of a channel enter the weight.

Computed in float64 and rounded once to the weight's own type.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.fusion.channels import Affine
from optimizer.fusion.conditions import fits, input_of, known, owned, rank

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Linear:
    """`node` read as operator(x, weight) + bias; weight of any float type, bias float64 of shape (channels,) or None.

    `axis` and `rank` are those of the output; a MatMul's rank may be unknown.
    """

    node: ir.Node
    weight: NDArray[Any]
    bias: NDArray[np.float64] | None
    channels: int
    axis: int
    rank: int | None

    @property
    def group(self) -> int:
        return self.node.attributes.get_int("group", 1)

    @property
    def inputs(self) -> int:
        """The number of input channels."""
        if self.node.op_type == "Conv":
            return int(self.weight.shape[1]) * self.group
        return int(self.weight.shape[1 if self._transposed else 0])

    @property
    def _transposed(self) -> bool:
        return bool(self.node.attributes.get_int("transB", 0))

    @property
    def _gain(self) -> float:
        """What a Gemm multiplies the product by."""
        return self.node.attributes.get_float("alpha", 1.0)

    def before(self, change: Affine) -> Linear:
        """The same function of x * scale + shift, as a function of x; a shift is exact only where nothing is padded."""
        bias = self.bias
        if change.shifts:
            moved = self._spread(change.shift, of_input=True)
            axes = tuple(axis for axis in range(moved.ndim) if axis != self._output_axis)
            bias = (0.0 if bias is None else bias) + self._gain * moved.sum(axis=axes)
        return replace(self, weight=self._spread(change.scale, of_input=True) if change.scales else self.weight, bias=bias)

    def after(self, change: Affine) -> Linear:
        """The function that gives y * scale + shift where this one gives y."""
        bias = None if self.bias is None else self.bias * change.scale
        if change.shifts:
            bias = change.shift if bias is None else bias + change.shift
        return replace(self, weight=self._spread(change.scale, of_input=False) if change.scales else self.weight, bias=bias)

    @property
    def _output_axis(self) -> int:
        """The axis of the weight that runs over output channels (of one group, in a ConvTranspose)."""
        return {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if self._transposed else 1, "MatMul": 1}[self.node.op_type]

    def _spread(self, numbers: NDArray[np.float64], *, of_input: bool) -> NDArray[np.float64]:
        """The weight times one number an input (or output) channel; groups hold their share of the channels each."""
        weight = self.weight.astype(np.float64)
        if (self.node.op_type, of_input) in {("Conv", True), ("ConvTranspose", False)}:
            rows, columns, *kernel = weight.shape
            by_group = np.broadcast_to(numbers.reshape(self.group, 1, columns), (self.group, rows // self.group, columns))
            return weight * by_group.reshape(rows, columns, *(1 for _ in kernel))
        shape = [1] * weight.ndim
        shape[1 - self._output_axis if of_input else self._output_axis] = -1
        return weight * numbers.reshape(shape)


def linear(node: ir.Node) -> Linear | str:
    """The node as a linear function, or why its weight or bias can't be changed."""
    weight = known(input_of(node, 1))
    if weight is None:
        return "the weight is computed, or open to the caller"
    if weight.dtype.name not in {"float16", "float32", "float64", "bfloat16"}:
        return "the weight is not of a float type"
    if node.op_type == "MatMul":
        output_rank = rank(node.outputs[0])
        return Linear(node, weight, None, int(weight.shape[-1]), -1, output_rank) if weight.ndim == 2 else "the weight is not a matrix"
    axis = 0 if node.op_type == "Conv" or bool(node.attributes.get_int("transB", 0)) else 1
    channels = int(weight.shape[axis]) * (node.attributes.get_int("group", 1) if node.op_type == "ConvTranspose" else 1)
    bias = _bias(node, channels)
    return bias if isinstance(bias, str) else Linear(node, weight, bias, channels, 1, weight.ndim)


def _bias(node: ir.Node, channels: int) -> NDArray[np.float64] | str | None:
    value = input_of(node, 2)
    if value is None:
        return None
    array = known(value)
    if array is None:
        return "the bias is computed, or open to the caller"
    if array.shape not in {(), (1,), (channels,), (1, channels), (1, 1)}:
        return "the bias is not one number a channel"
    numbers = np.broadcast_to(np.asarray(array, np.float64).reshape(-1), (channels,))
    return numbers * node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else numbers


def changed(layer: Linear, change: Affine, *, ahead: bool) -> Linear | str:
    """The layer with a change of its output (`ahead`: of its input) taken in, or why that can't be written."""
    if change.scales and not owned(layer.node.inputs[1]):
        return "the weight has another reader"
    if layer.node.op_type == "MatMul" and change.shifts and layer.rank != 2:
        return "a product of more than two dimensions takes no bias"
    result = layer.before(change) if ahead else layer.after(change)
    numbers = [array for array in (result.weight, result.bias) if array is not None and array is not layer.weight]
    if not all(fits(array, layer.weight.dtype) for array in numbers):
        return "the new weight leaves the range of its type"
    return result


def write(op: Any, x: ir.Value, before: Linear, after: Linear, source: str) -> ir.Value:
    """The node of `before` with the numbers of `after`; `source` names the node that went in, in the new constants' names."""
    node, dtype = before.node, before.weight.dtype
    weight = node.inputs[1]
    assert weight is not None
    if after.weight is not before.weight:
        weight = op.initializer(ir.tensor(after.weight.astype(dtype)), name=f"{weight.name}*{source}")
    attributes = {name: attribute for name, attribute in node.attributes.items() if name != "beta"}
    operator = "Gemm" if node.op_type == "MatMul" and after.bias is not None else node.op_type
    if after.bias is None:
        return op.op(operator, x, weight, **attributes)  # type: ignore[no-any-return]
    bias = op.initializer(ir.tensor(after.bias.astype(dtype)), name=f"{node.name}.bias+{source}")
    return op.op(operator, x, weight, bias, **attributes)  # type: ignore[no-any-return]
