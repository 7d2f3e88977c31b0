"""Cross-layer equalization: two layers share out the ranges of the channels between them.

Nagel, van Baalen, Blankevoort, Welling, "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019.
f(s x) = s f(x) for s > 0 where f is a Relu, so that the first layer's output channels can be divided by s and the second's input
channels multiplied.  The paper balances two weights that have one scale each: with s = sqrt(first / second) both ranges
of a channel become sqrt(first * second).  Where weights have a scale a channel, it is the activation in between that has one for
all, so that its ranges stand for the first's, and the second's count as parts of the range of the channel that reads them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SHARES = (0.5, 0.75, 1.0)
"""How much of the first's spread is taken out: 0.5 in the paper; all of it where the second has a scale a channel anyway."""

_WIDEST = 2.0**16


def factors(first: Floats, second: Floats, share: float = 0.5) -> Floats:
    """What the first layer's channels are divided by and the second's multiplied: float64 (channels,), geometric mean 1.

    `first` and `second` are the ranges of a channel on both sides, float64 (channels,).  A channel that is zero on either side
    keeps factor 1.
    """
    used = (first > 0) & (second > 0)
    if not used.any():
        return np.ones(len(first))
    ratio = first[used] ** share * second[used] ** (share - 1)
    ratio /= np.exp(np.log(ratio).mean())
    found = np.ones(len(first))
    found[used] = np.clip(ratio, 1 / _WIDEST, _WIDEST)
    return found
