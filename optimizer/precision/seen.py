"""What statistics of a tensor say about its numbers: size, smallness, and what an 8-bit grid would make of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from calibration.observers import Statistics

STEPS = 255
"""Steps of an 8-bit grid from its lowest to its highest number."""


def of(value: ir.Value | None, statistics: Mapping[str, Statistics]) -> Statistics | None:
    """What was seen of a value, None where nothing finite was."""
    found = statistics.get(value.name or "") if value is not None else None
    return found if found is not None and found.count else None


def largest(seen: Statistics) -> float:
    """The largest magnitude."""
    return max(abs(seen.minimum), abs(seen.maximum))


def smallest(seen: Statistics) -> float:
    """The smallest magnitude that is not 0, as the lower end of its bucket; inf where all was 0."""
    buckets = seen.away_from_zero().magnitudes().buckets
    return float((buckets[:1].astype(np.uint32) << 16).view(np.float32)[0]) if len(buckets) else math.inf


def rms(seen: Statistics) -> float:
    """The root of the mean square, from the middles of the buckets."""
    low, high, counts = seen.intervals()
    with np.errstate(over="ignore"):
        return float(np.sqrt((counts * np.square((low + high) / 2)).sum() / counts.sum()))


def step(seen: Statistics) -> float:
    """The distance between two numbers of an 8-bit grid over everything that was seen, and 0."""
    return (max(seen.maximum, 0.0) - min(seen.minimum, 0.0)) / STEPS


def lost(seen: Statistics) -> tuple[float, float]:
    """What such a grid rounds to 0: its share of the numbers that are not 0, and of the sum of the roots of their magnitudes.

    The second lies between counting numbers and adding them up, where one that is a thousand times the others outweighs them all.
    """
    low, high, counts = seen.away_from_zero().intervals()
    size = np.abs(low + high) / 2
    gone, weights = size < step(seen) / 2, counts * np.sqrt(size)
    return (float(counts[gone].sum() / counts.sum()), float(weights[gone].sum() / weights.sum())) if len(size) else (0.0, 0.0)
