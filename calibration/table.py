"""The table: the statistics of every tensor, and in clear what they were made from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.observers import BUCKETS, Statistics
from optimizer.errors import InputError

_FORMAT = 1


@dataclass(frozen=True)
class Table:
    """Statistics by tensor from `samples` samples; `key` says by field what they depend on (model, data, preprocessing ...)."""

    key: Mapping[str, str]
    statistics: Mapping[str, Statistics]
    samples: int

    def merge(self, other: Table) -> Table:
        """The table of both tables' samples together, as if one pass had seen them all.

        Raises:
            InputError: the keys differ, or the tables are of different tensors.
        """
        if fields := self.differs(other.key):
            raise InputError(f"Two calibrations differ in {', '.join(fields)}.", "Merge tables that were made alike.")
        if self.statistics.keys() != other.statistics.keys():
            raise InputError("Two calibrations are of different tensors.", "Merge tables that were made of the same graph.")
        merged = {name: seen.merge(other.statistics[name]) for name, seen in self.statistics.items()}
        return Table(self.key, merged, self.samples + other.samples)

    def differs(self, key: Mapping[str, str]) -> tuple[str, ...]:
        """The fields of the key that are not as in `key`, or stand in one of the two only; empty where the table may be used."""
        return tuple(field for field in sorted({*self.key, *key}) if self.key.get(field) != key.get(field))

    def to_json(self) -> bytes:
        """Compact JSON: of each tensor the buckets that are not empty, as steps from one to the next, and their counts."""
        statistics = {name: _plain(seen) for name, seen in sorted(self.statistics.items())}
        document = {"format": _FORMAT, "key": dict(sorted(self.key.items())), "samples": self.samples, "statistics": statistics}
        return json.dumps(document, separators=(",", ":"), allow_nan=False).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, what: str = "The calibration table") -> Table:
        """The table that `to_json` wrote; `what` names the file in the message.

        Raises:
            InputError: the bytes are something else.
        """
        try:
            document = json.loads(data)
            if document["format"] != _FORMAT:
                raise ValueError(f"its format is {document['format']}, not {_FORMAT}")
            key = {str(field): str(value) for field, value in document["key"].items()}
            statistics = {str(name): _statistics(plain) for name, plain in document["statistics"].items()}
            return cls(key, statistics, int(document["samples"]))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            reason = f"no {error.args[0]!r} in it" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{what} can't be read: {reason}.", "Delete it; the next build makes it anew.") from None


def _plain(seen: Statistics) -> dict[str, Any]:
    return {
        "minimum": _or_none(seen.minimum),
        "maximum": _or_none(seen.maximum),
        "nans": seen.nans,
        "infs": seen.infs,
        "steps": np.diff(seen.buckets, prepend=0).tolist(),
        "counts": seen.counts.tolist(),
    }


def _or_none(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _statistics(plain: Mapping[str, Any]) -> Statistics:
    counts = np.array(plain["counts"], np.int64)
    steps = np.array(plain["steps"], np.int64)
    buckets = np.cumsum(steps)
    minimum, maximum = plain["minimum"], plain["maximum"]
    sound = (
        counts.ndim == 1
        and counts.shape == steps.shape
        and (counts > 0).all()
        and (steps[1:] > 0).all()
        and ((buckets >= 0) & (buckets < BUCKETS)).all()
        and (minimum is None) == (maximum is None) == (counts.size == 0)
    )
    if not sound:
        raise ValueError("the buckets of a tensor are not in order")
    return Statistics(
        math.inf if minimum is None else float(minimum),
        -math.inf if maximum is None else float(maximum),
        int(counts.sum()),
        int(plain["nans"]),
        int(plain["infs"]),
        buckets.astype(np.int32),
        counts,
    )
