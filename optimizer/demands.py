"""What a build has to reach beside the gate's budget, and how it ends: the last word on the verdict, and its exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optimizer.climbing import fault_before_precision
from optimizer.engine import Candidate, Parity, Rung
from optimizer.report.headline import broken
from optimizer.request import Request

VERDICT_CODES = {"pass": 0, "fail": 3, "inconclusive": 4}

SHIPPED = (VERDICT_CODES["pass"], VERDICT_CODES["inconclusive"])
"""Exit codes with which an engine is written; its passport holds the verdict."""


def after_demands(request: Request, subject: Candidate, parity: Parity, ladder: Sequence[Rung]) -> tuple[Parity, int]:
    """The verdict after what was demanded beside the drop, and its exit code.

    A graph that is not its parent fails whatever the gate says, which holds engines against that graph.
    """
    timing = subject.timing
    if (wrong := fault_before_precision(ladder)) is not None:
        return replace(parity, verdict="fail", reason=broken(wrong)), VERDICT_CODES["fail"]
    if request.min_speedup is not None and parity.verdict != "fail":
        if timing is None:
            why = "a speed was demanded, and nothing can be timed: the target is not here"
            parity = replace(parity, verdict="inconclusive", reason=why)
        elif timing.ratio < request.min_speedup:
            why = f"{timing.ratio:.2f}x is less than the {request.min_speedup:g}x that was demanded"
            parity = replace(parity, verdict="fail", reason=why)
    if request.require_measured and parity.gated_on == "simulation" and parity.verdict != "fail":
        why = f"{parity.reason}; a measurement on the target was demanded"
        return replace(parity, verdict="inconclusive", reason=why), VERDICT_CODES["inconclusive"]
    if parity.verdict == "inconclusive" and request.on_inconclusive is not None:
        return parity, VERDICT_CODES[request.on_inconclusive]
    return parity, VERDICT_CODES[parity.verdict]
