"""Weights that lie on an integer grid before precision comes to them: their scales travel with them, so that the grid stays theirs."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

SCALES = "optimize.scales"
"""Metadata key of an initializer: JSON, the scale of each output channel of which its numbers are whole multiples."""


def mark(value: ir.Value, scales: NDArray[np.float32]) -> None:
    """Note the scales, float32 (channels,), of a weight that was rounded to them."""
    value.metadata_props[SCALES] = json.dumps([float(scale) for scale in scales])


def marked(value: ir.Value | None) -> NDArray[np.float32] | None:
    """The scales that a weight was rounded to, float32 (channels,), or None."""
    text = None if value is None else value.metadata_props.get(SCALES)
    return None if text is None else np.array(json.loads(text), np.float32)
