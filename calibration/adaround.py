"""AdaRound: whether each weight goes up or down is learnt, so that the layer's output stays nearest.

Nagel, Amjad, van Baalen, Louizos, Blankevoort, "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020.
A number between 0 and 1 a weight says how far up it goes; gradient descent on the layer's squared error moves it, and a
regularizer that grows sharper drives it to 0 or 1.  The paper descends on batches of activations; the mean squared error over
all of them is a quadratic form of the inputs' second moments, which is what is descended on here.

Weights are (groups, channels, inputs), as in `gptq`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEPS = 400
_RATE = 0.02
_BLUNT, _SHARP = 20.0, 2.0  # exponents of the regularizer at the first step and the last
_LOW, _HIGH = -0.1, 1.1  # the sigmoid is stretched to these ends and clipped, so that 0 and 1 are reached


def adaround(weight: Floats, moments: Floats, scale: Floats, limit: int, steps: int = STEPS) -> NDArray[np.int8]:
    """Integers in -limit..limit, int8 (groups, channels, inputs), each the floor of weight / scale or the one above.

    `moments` are mean products of inputs, float64 (groups, inputs, inputs); `scale` is (groups, channels).  Deterministic.
    """
    exact = weight / scale[:, :, None]
    floor = np.floor(exact)
    # In units of a channel's own step and of the data's own size, one rate and one regularizer serve every layer.
    size = np.trace(moments, axis1=1, axis2=2) / moments.shape[1]
    form = moments / np.where(size > 0, size, 1.0)[:, None, None]
    place = _inverse(exact - floor)
    first, second = np.zeros_like(place), np.zeros_like(place)
    for step in range(1, steps + 1):
        up, slope = _opened(place)
        gradient = 2 * (floor + up - exact) @ form
        sharpness = _SHARP + (_BLUNT - _SHARP) * (1 + np.cos(np.pi * step / steps)) / 2
        away = 2 * up - 1
        gradient -= 2 * sharpness * np.sign(away) * np.abs(away) ** (sharpness - 1)
        gradient *= slope
        # Adam (Kingma and Ba, 2014).
        first += 0.1 * (gradient - first)
        second += 0.001 * (gradient * gradient - second)
        place -= _RATE * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    integers: NDArray[np.int8] = np.clip(floor + (_opened(place)[0] >= 0.5), -limit, limit).astype(np.int8)
    return integers


def _opened(place: Floats) -> tuple[Floats, Floats]:
    """How far up each weight goes, 0 to 1, and how fast that changes with `place`."""
    sigmoid = 1 / (1 + np.exp(-place))
    stretched = _LOW + (_HIGH - _LOW) * sigmoid
    inside = (stretched > 0) & (stretched < 1)
    return np.clip(stretched, 0, 1), np.where(inside, (_HIGH - _LOW) * sigmoid * (1 - sigmoid), 0.0)


def _inverse(share: Floats) -> Floats:
    """The place at which a weight goes up by `share`."""
    sigmoid = (share - _LOW) / (_HIGH - _LOW)
    return np.log(sigmoid / (1 - sigmoid))
