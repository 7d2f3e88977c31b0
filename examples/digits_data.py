"""scikit-learn's 1,797 handwritten digits, split once for training, calibration and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits


class Part(NamedTuple):
    """uint8 images (n, 8, 8) with values 0 to 16, and int64 labels (n,)."""

    x: NDArray[np.uint8]
    y: NDArray[np.int64]


def split() -> tuple[Part, Part, Part]:
    """Training (797), calibration (100 of the training images) and evaluation (1,000) parts; the last is never trained on."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x, y = digits.images[order].astype(np.uint8), digits.target[order].astype(np.int64)
    return Part(x[:797], y[:797]), Part(x[:100], y[:100]), Part(x[797:], y[797:])


def write(part: Part, file: Path) -> None:
    """An .npz as `--calibration` and `--evaluation` take it: x (n, 1, 8, 8) uint8, y (n,)."""
    np.savez_compressed(file, x=part.x[:, None], y=part.y)
