"""SmoothQuant: outliers of an activation's channels are handed over to the weights that read them.

Xiao, Lin, Seznec, Wu, Demouth, Han, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
2022.  (X / s) (s W) = X W for a factor a channel; the strength alpha says how much of the spread the weights take over.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.85)
"""Values of alpha that are worth trying; the paper's are 0.5 to 0.8."""

_WIDEST = 2.0**16
"""Largest ratio of a factor to their geometric mean: beyond it a weight of normal size would leave what FP16 holds."""


def factors(activation: Floats, weight: Floats, alpha: float) -> Floats:
    """s = activation ** alpha / weight ** (1 - alpha), with a geometric mean of 1: float64 (channels,).

    Both hold the largest magnitudes by channel, float64 (channels,).  A channel that either never uses keeps factor 1.
    """
    used = (activation > 0) & (weight > 0)
    if not used.any():
        return np.ones(len(activation))
    logarithms = alpha * np.log(activation[used]) - (1 - alpha) * np.log(weight[used])
    found = np.ones(len(activation))
    found[used] = np.clip(np.exp(logarithms - logarithms.mean()), 1 / _WIDEST, _WIDEST)
    return found
