"""Nodes that scale and shift each channel by constants: x * scale + shift, one number of each a channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.fusion.conditions import along_channel, known

OPERATORS = ("BatchNormalization", "Mul", "Div", "Add", "Sub")


@dataclass(frozen=True)
class Affine:
    """x * scale + shift along one axis; both float64 of shape (channels,)."""

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]

    @property
    def scales(self) -> bool:
        return bool((self.scale != 1).any())

    @property
    def shifts(self) -> bool:
        return bool(self.shift.any())


def affine(node: ir.Node, x: ir.Value, *, rank: int | None, axis: int, channels: int) -> Affine | str:
    """What `node` does to each channel of `x`, or why it is not one scale and shift a channel."""
    if node.op_type == "BatchNormalization":
        return _normalization(node, rank=rank, axis=axis, channels=channels)
    position = list(node.inputs).index(x)
    array = known(node.inputs[1 - position])
    if array is None:
        return "the other operand is computed, or open to the caller"
    numbers = along_channel(array, rank=rank, axis=axis, channels=channels)
    if numbers is None:
        return "the constant is not one number a channel"
    if position == 1 and node.op_type in {"Sub", "Div"}:
        return "the constant stands on the left"
    ones, zeros = np.ones(channels), np.zeros(channels)
    if node.op_type == "Mul":
        return Affine(numbers, zeros)
    if node.op_type == "Div":
        return Affine(1 / numbers, zeros) if numbers.all() else "a channel is divided by zero"
    return Affine(ones, numbers if node.op_type == "Add" else -numbers)


def _normalization(node: ir.Node, *, rank: int | None, axis: int, channels: int) -> Affine | str:
    """(x - mean) / sqrt(var + epsilon) * gamma + beta, as a scale and a shift (Ioffe and Szegedy 2015, at inference)."""
    if node.attributes.get_int("training_mode", 0):
        return "the normalization is in training mode"
    if rank is None or axis % rank != 1:
        return "the normalization's channels are not the layer's"
    arrays = [known(value) for value in node.inputs[1:5]]
    if any(array is None for array in arrays):
        return "a parameter of the normalization is computed, or open to the caller"
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    if gamma.shape != (channels,):
        return "the normalization has another number of channels"
    scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    if not np.isfinite(scale).all():
        return "a channel's variance is not positive"
    return Affine(scale, beta - mean * scale)
