"""Range methods: from what was seen of a tensor to the interval that the integers will cover."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """The interval that is represented; what lies outside is clipped. `method` is a key of METHODS."""

    method: str
    low: float
    high: float
