"""What decides between candidates that the gate would pass: the time of a run, samples a second, or bytes of memory."""

from __future__ import annotations

import math

from optimizer.engine import Candidate
from optimizer.request import Objective


def objective_key(objective: Objective, candidate: Candidate) -> tuple[float, float]:
    """A key that sorts candidates from the best to the worst; those for which nothing was measured come last.

    By latency: the time of a run in the race, relative to its baseline.  By throughput: samples a second in the best of its load
    tests.  By size: bytes of weights and activations.  Equals are told apart by the time of a run.
    """
    time = 1 / candidate.timing.ratio if candidate.timing is not None else math.inf
    if objective == "throughput":
        return -max((load.throughput for load in candidate.loads), default=0.0), time
    if objective == "size":
        memory = candidate.built.memory if candidate.built is not None else {}
        held = memory.get("weights", memory.get("file", math.inf))
        return held + memory.get("activations", 0), time
    return time, time
