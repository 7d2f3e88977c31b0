"""What calibration saw of a tensor, small enough for a report: a histogram of equal steps with the range that was chosen."""

from __future__ import annotations

import numpy as np

from calibration.density import Density
from calibration.observers import Statistics
from calibration.ranges import Range
from optimizer.report.report import TensorReport

_BINS = 48


def tensor_report_from(name: str, layer: str, seen: Statistics, chosen: Range) -> TensorReport:
    """The TensorReport of a tensor with at least one finite value; shares are of its finite values, rounded to 1e-6."""
    density = Density.of(seen)
    inner = density.below(np.linspace(seen.minimum, seen.maximum, _BINS + 1)[1:-1])
    shares = np.diff(np.concatenate([[0.0], inner, [density.total]])) / density.total
    ends = density.below(np.array([chosen.low, chosen.high]))
    return TensorReport(
        name=name,
        method=chosen.method,
        low=chosen.low,
        high=chosen.high,
        minimum=seen.minimum,
        maximum=seen.maximum,
        bins=tuple(float(share) for share in np.round(shares, 6)),
        clipped=_outside(float(ends[0]), float(ends[1]), density.total, seen, chosen),
        layer=layer,
    )


def _outside(below: float, up_to: float, total: float, seen: Statistics, chosen: Range) -> float:
    """The share of values outside a range; an end that nothing lies beyond clips nothing, whatever the buckets say."""
    left = 0.0 if chosen.low <= seen.minimum else below
    right = 0.0 if chosen.high >= seen.maximum else total - up_to
    return round((left + right) / total, 9)
