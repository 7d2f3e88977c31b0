"""What decides between candidates that the gate would pass: the time of a run, samples a second, or bytes of memory."""

from __future__ import annotations

import math

from optimizer.engine import Candidate
from optimizer.planner.pareto import Speed, by_time, faster
from optimizer.request import Objective


def worth(objective: Objective) -> Speed:
    """How good a candidate is by what is sought: larger is better, 0 where it was not measured.

    By latency and throughput it is how many times as fast as the baseline of the race it is, which for throughput is run with all
    streams busy; by size one over its bytes.
    """
    return _lightness if objective == "size" else by_time


def held(candidate: Candidate) -> float:
    """Bytes that an engine holds while it runs: weights and the activations that are alive at once; inf where nobody tells."""
    memory = candidate.built.memory if candidate.built is not None else {}
    return memory.get("weights", memory.get("file", math.inf)) + memory.get("activations", 0)


def better(objective: Objective, candidate: Candidate, baseline: Candidate) -> bool:
    """Whether a candidate is better than the baseline for sure: faster by the lower bound of its ratio, or smaller."""
    if objective == "size":
        return held(candidate) < held(baseline)
    return faster(candidate, baseline)


def _lightness(candidate: Candidate) -> float:
    return 1.0 / held(candidate)
