"""Grids: the integers a range is mapped to, and the float arithmetic of QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

_SMALLEST_SCALE = np.finfo(np.float32).tiny
"""Engines divide by the scale, and flush what is smaller to zero."""


class Interval(Protocol):
    """Anything with two ends; a Range is one."""

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


@dataclass(frozen=True)
class Grid:
    """Evenly spaced integers of a width; a symmetric grid has zero point 0 and covers both sides equally."""

    bits: int
    signed: bool
    symmetric: bool

    @property
    def lowest(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"{'' if self.signed else 'u'}int{self.bits}")

    def quantization(self, range: Interval) -> tuple[np.float32, int]:
        """Scale and zero point that cover a range; widened where needed so that 0 is a point of the grid.

        A range that holds nothing but 0 gets scale 1.
        """
        scales, zero_points = self.quantizations(np.array([range.low]), np.array([range.high]))
        return scales[0], int(zero_points[0])

    def quantizations(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """`quantization` of many ranges at once: float64 (n,) and (n,) -> float32 (n,) and int64 (n,)."""
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        if self.symmetric:
            width, steps = np.maximum(-low, high), self.highest
        else:
            width, steps = high - low, self.highest - self.lowest
        scale = np.where(width > 0, np.maximum(width / steps, _SMALLEST_SCALE), 1.0).astype(np.float32)
        if self.symmetric:
            return scale, np.zeros(len(scale), np.int64)
        zero_point = self.lowest + np.rint(-low / scale)
        return scale, np.clip(zero_point, self.lowest, self.highest).astype(np.int64)

    def levels(self, scale: NDArray[np.float32], zero_point: NDArray[np.int64]) -> NDArray[np.float64]:
        """The numbers that can be represented, ascending: (n,) and (n,) -> float64 (n, 2**bits)."""
        integers = np.arange(self.lowest, self.highest + 1)
        return (integers - zero_point[:, None]) * scale.astype(np.float64)[:, None]

    def quantize(self, array: NDArray[np.float32], scale: NDArray[np.float32] | np.float32, zero_point: int = 0) -> NDArray[Any]:
        """QuantizeLinear: divide, round half to even, shift, saturate. `scale` broadcasts against `array`."""
        rounded = np.rint(array / scale) + np.float32(zero_point)
        return np.asarray(np.clip(rounded, self.lowest, self.highest), self.dtype)

    def dequantize(self, integers: NDArray[Any], scale: NDArray[np.float32] | np.float32, zero_point: int = 0) -> NDArray[np.float32]:
        """DequantizeLinear: float32, the shape of `integers`."""
        return np.asarray((integers.astype(np.int32) - np.int32(zero_point)) * np.asarray(scale, np.float32), np.float32)


UINT8 = Grid(8, signed=False, symmetric=False)
"""What ONNX Runtime's CPU kernels want of activations."""

INT8 = Grid(8, signed=True, symmetric=True)
"""What TensorRT takes for activations, and both take for weights."""
