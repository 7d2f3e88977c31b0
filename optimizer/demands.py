"""What a build has to reach beside the gate's budget, and how it ends: the last word on the verdict, and its exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kernels.load import Load
from optimizer.climbing import fault_before_precision
from optimizer.engine import Candidate, Parity, Rung, Verdict
from optimizer.latency import held
from optimizer.report.coverage import coverage
from optimizer.report.headline import broken
from optimizer.request import Request

VERDICT_CODES = {"pass": 0, "fail": 3, "inconclusive": 4}

_WORST: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")

_FEW = 5
"""Layers that a reason names."""

SHIPPED = (VERDICT_CODES["pass"], VERDICT_CODES["inconclusive"])
"""Exit codes with which an engine is written; its passport holds the verdict."""


def after_demands(
    request: Request,
    subject: Candidate,
    parity: Parity,
    ladder: Sequence[Rung],
    load: Load | None = None,
    candidates: Sequence[Candidate] = (),
) -> tuple[Parity, int]:
    """The verdict after what was demanded beside the drop, and its exit code.

    `load` is the load test at the load of `request.max_latency`, None where the target is not here; `candidates` are all that were
    tried, of which the closest is named where a demand is missed.  A graph that is not its parent fails whatever the gate says, which
    holds engines against that graph.
    """
    if (wrong := fault_before_precision(ladder)) is not None:
        return replace(parity, verdict="fail", reason=broken(wrong)), VERDICT_CODES["fail"]
    if (missed := int8_missed(request, subject)) is not None and parity.verdict != "fail":
        parity = replace(parity, verdict="fail", reason=missed)
    for demand in (_speed(request, subject), _latency(request, load)):
        if demand is not None and _WORST.index(demand[0]) < _WORST.index(parity.verdict):
            verdict, why = demand
            parity = replace(parity, verdict=verdict, reason=f"{why}{_closest(subject, candidates)}" if verdict == "fail" else why)
    if request.require_measured and parity.gated_on == "simulation" and parity.verdict != "fail":
        why = f"{parity.reason}; a measurement on the target was demanded"
        return replace(parity, verdict="inconclusive", reason=why), VERDICT_CODES["inconclusive"]
    if parity.verdict == "inconclusive" and request.on_inconclusive is not None:
        return parity, VERDICT_CODES[request.on_inconclusive]
    return parity, VERDICT_CODES[parity.verdict]


def int8_missed(request: Request, subject: Candidate) -> str | None:
    """How far an engine stays behind --min-int8-coverage, with the layers that are not in INT8; None where it does not."""
    wanted, built = request.min_int8_coverage, subject.built
    if wanted is None:
        return None
    found = coverage(built.realised, subject.plan.reasons) if built is not None else None
    if found is None:
        return f"INT8 was demanded for {wanted:.0%} of the multiplications by weights, and no built engine tells what it has"
    if found.share is None or found.share >= wanted:
        return None if found.share is not None else "INT8 was demanded, and no layer of this model holds weights to multiply by"
    left = sorted((one for one in found.missing if one.share), key=lambda one: -one.share)
    named = "; ".join(f"{one.layer} has {one.share:.1%} ({one.reason})" for one in left[:_FEW])
    more = f"; and {len(left) - _FEW} more layers" if len(left) > _FEW else ""
    return f"{found.share:.1%} of the multiplications by weights are in INT8, and {wanted:.0%} were demanded: {named}{more}"


def _speed(request: Request, subject: Candidate) -> tuple[Verdict, str] | None:
    """What became of --min-speedup; None where nothing was demanded."""
    timing = subject.timing
    if request.min_speedup is None:
        return None
    if timing is None:
        return "inconclusive", "a speed was demanded, and nothing can be timed: the target is not here"
    if timing.ratio < request.min_speedup:
        return "fail", f"{timing.ratio:.2f}x is less than the {request.min_speedup:g}x that was demanded"
    return "pass", ""


def _latency(request: Request, load: Load | None) -> tuple[Verdict, str] | None:
    """What became of --max-latency; None where nothing was demanded."""
    if request.max_latency is None:
        return None
    if load is None:
        return "inconclusive", "a latency was demanded, and nothing can be timed: the target is not here"
    return held(request.max_latency, load)


def _closest(subject: Candidate, candidates: Sequence[Candidate]) -> str:
    """The plan that comes closest to a speed that nothing reached: the one the verdict is about, and a faster one that may not ship."""
    if subject.timing is None:
        return ""
    told = f"; closest is {subject.name}, {subject.timing.milliseconds:.3g} ms a run"
    faster = [one for one in candidates if one.timing is not None and one.timing.ratio > subject.timing.ratio and one.name != subject.name]
    best = max(faster, key=lambda one: one.timing.ratio if one.timing is not None else 0.0, default=None)
    if best is None or best.timing is None:
        return f"{told}, the fastest of all that were tried" * bool(candidates)
    why = f" ({best.reason})" if best.reason else ""
    return f"{told}; {best.name} takes {best.timing.milliseconds:.3g} ms and was {best.outcome}{why}"
