"""Bias correction: what quantizing shifts a layer's output by on average is taken out of its bias.

Nagel, van Baalen, Blankevoort, Welling, "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section
4.2: E[W' x] - E[W x] = (W' - W) E[x], and in its appendix the same from means of outputs that were seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def shift(difference: Floats, mean: Floats) -> Floats:
    """The mean output error by channel, float64 (groups, channels), of a weight that is off by `difference`.

    `difference` is (groups, channels, inputs); `mean` is that of the inputs, (groups, inputs).
    """
    return np.asarray(np.matmul(difference, mean[:, :, None])[:, :, 0])


@dataclass(frozen=True)
class Shift:
    """The mean output error by channel over all that was seen: float64 (channels,) summed over `count` samples."""

    total: Floats
    count: int

    @classmethod
    def of(cls, mean: NDArray[np.float32]) -> Shift:
        """The shift of one sample."""
        return cls(mean.astype(np.float64).reshape(-1), 1)

    def merge(self, other: Shift) -> Shift:
        return Shift(self.total + other.total, self.count + other.count)

    @property
    def square(self) -> float:
        """The squares of the channels' mean errors, summed up."""
        return float(np.square(self.total / self.count).sum())

    def corrected(self, bias: Floats) -> NDArray[np.float32]:
        """The bias without the shift: float32 (channels,)."""
        return (bias - self.total / self.count).astype(np.float32)
