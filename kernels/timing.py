"""Which of several things is faster, and how surely."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Time of one contender in a paired race. `ratio` is time of `versus` over its own time: above 1 is faster.

    `low` and `high` are a 95 % interval of the ratio; `stopped` says why the race ended; `timed_on` names the machine.
    """

    milliseconds: float
    p90: float
    p99: float
    versus: str
    ratio: float
    low: float
    high: float
    runs: int
    stopped: str
    timed_on: str
