"""The sentence that a build ends in: how fast, how much was lost and how surely, where that was found out, what was refused."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kernels.target import Target
from optimizer.engine import Candidate, Parity, Rung, Verdict

_RATES = ("top1", "top5", "agreement", "recall@")
NUMERIC = "max_abs"
"""The metric of a gate without a lossy step: the largest difference, which is no drop of anything that users measure."""

_SIMULATION = "simulation"
_PRECISION = re.compile(r"\b(int8|fp16|bf16|fp32)\b")


def headline_from(
    subject: Candidate, candidates: Sequence[Candidate], parity: Parity, target: Target, requested: str, quantized: bool = False
) -> str:
    """One line of plain text about `subject`, the candidate that ships or that the verdict is about.

    `requested` is a precision; `quantized` says that the model came with INT8 of another tool's, which no plan names.
    """
    parts = [_fast(subject, requested, quantized), _lost(parity), _where(parity, target), *_refused(subject, candidates)]
    return "; ".join(part for part in parts if part)


def broken(rung: Rung) -> str:
    """What a rung that breaks says: which step, first at which layer, by how much."""
    where = f", first at {rung.worst_layer}" if rung.worst_layer else ""
    return f"{rung.rung} is not the same as {rung.against}{where} ({rung.note})"


def is_rate(metric: str) -> bool:
    """Whether a metric is a share of answers, told in percent and points."""
    return metric.startswith(_RATES)


def score(value: float | None, metric: str) -> str:
    """A metric's value for people: `81.95 %`, or four digits where it is no rate."""
    if value is None:
        return "none"
    return f"{100 * value:.2f} %" if is_rate(metric) else f"{value:.4g}"


def required(metric: str, threshold: float, parent: float) -> str:
    """What an engine must reach, in absolute numbers: `top1 of the engine must be over 81.13 % (parent 81.95 %)`."""
    side = "over" if threshold <= parent else "under"
    return f"{metric} of the engine must be {side} {score(threshold, metric)} (parent {score(parent, metric)})"


def points(value: float | None, metric: str) -> str:
    """A difference of a metric for people: `0.15 pp`, or three digits where it is no rate."""
    if value is None:
        return "unknown"
    # Adding 0 turns -0.0 into 0.0, which would read as a gain.
    return f"{round(100 * value, 2) + 0:.2f} pp" if is_rate(metric) else f"{value + 0:.3g}"


def dropped(drop: float | None, low: float | None, high: float | None, metric: str) -> str:
    """A drop with its bounds for people: `0.15 pp [-0.20, 0.52]`."""
    if drop is None:
        return "unknown"
    if metric == NUMERIC:
        return f"largest difference {drop:.2g}"
    bounds = ", ".join(points(bound, metric).removesuffix(" pp") for bound in (low, high))
    return f"{points(drop, metric)} [{bounds}]"


def predicted(one: Candidate) -> str:
    """What a candidate was predicted to lose, by calibration samples, with one-sided 95 % bounds: `0.6 % flip [0.3, 1.1]`."""
    if one.plan.lossless and one.loss == 0.0:
        return "nothing"
    if one.flip_rate is not None and one.flip_low is not None and one.flip_high is not None:
        return f"{100 * one.flip_rate:.2g} % flip [{100 * one.flip_low:.2g}, {100 * one.flip_high:.2g}]"
    return f"error {one.distance:.2g}" if one.distance is not None else ""


def chance(loss: float, decides: bool) -> str:
    """A predicted loss for people: `0.62 % of the answers`, or `0.0012 of the cosine`."""
    if not loss:
        return "nothing"
    return f"{100 * loss:.2g} % of the answers" if decides else f"{loss:.2g} of the cosine"


def _fast(subject: Candidate, requested: str, quantized: bool) -> str:
    name, timing = titled(subject.name) + (" beside the INT8 that it came with" if quantized else ""), subject.timing
    if timing is None:
        return f"{name}, not timed"
    if timing.versus == subject.name:
        return f"{name} {timing.milliseconds:.3g} ms" + (", nothing lower was faster and good enough" if requested == "auto" else "")
    bounds = f"[{timing.low:.2f}, {timing.high:.2f}]"
    if timing.ratio < 1:
        return f"{name} {timing.ratio:.2f}x as fast as {titled(timing.versus)} {bounds}, slower"
    return f"{name} {timing.ratio:.2f}x faster than {titled(timing.versus)} {bounds}"


def titled(name: str) -> str:
    """A candidate's name with its precisions as people write them: `INT8 without 3 layers`."""
    return _PRECISION.sub(lambda found: found[0].upper(), name)


def _lost(parity: Parity) -> str:
    metric = parity.metric
    if parity.drop is None or metric == NUMERIC:
        return parity.reason.rstrip(".")
    text = f"{metric} {score(parity.parent, metric)} -> {score(parity.engine, metric)}, " if parity.parent is not None else f"{metric}: "
    text += f"drop {dropped(parity.drop, parity.low, parity.high, metric)}"
    if parity.budget is not None:
        text += f" of {points(parity.budget, metric)} allowed"
    if parity.verdict != _by_bounds(parity):
        return f"{text}; {parity.reason.rstrip('.')}"
    if parity.verdict == "inconclusive":
        text += f" ({needed(parity)})"
    return text


def _by_bounds(parity: Parity) -> Verdict:
    """What the bounds of the drop alone would say; a demand beside the drop can say otherwise."""
    if parity.budget is None or parity.low is None or parity.high is None:
        return parity.verdict
    return "pass" if parity.high < parity.budget else "fail" if parity.low > parity.budget else "inconclusive"


def needed(parity: Parity) -> str:
    if parity.samples_needed is None:
        return "more samples would not help" if parity.samples else "no evaluation data"
    return f"about {max(parity.samples_needed - parity.samples, 1):,} more samples would decide"


def _where(parity: Parity, target: Target) -> str:
    if parity.gated_on != _SIMULATION:
        return ""
    return f"simulated on the CPU, never run on {_with_article(target.device or target.name)}"


def _with_article(device: str) -> str:
    """`an L4`, `a T4`: letters that are spoken with a vowel first take `an`."""
    word = device.removeprefix("NVIDIA ")
    spelled = len(word) > 1 and (word[1].isupper() or word[1].isdigit())
    return f"{'an' if word[0] in ('AEFHILMNORSX' if spelled else 'AEIO') else 'a'} {word}"


def _refused(subject: Candidate, candidates: Sequence[Candidate]) -> list[str]:
    """The fastest candidate that the gate held back, where it was faster than what ships."""
    own = subject.timing.ratio if subject.timing is not None else 0.0
    faster = [
        one
        for one in candidates
        if one.timing is not None
        and one.timing.ratio > own
        and one.parity is not None
        and one.parity.verdict != "pass"
        and one.name != subject.name
    ]
    if not faster:
        return []
    best = max(faster, key=lambda one: one.timing.ratio if one.timing is not None else 0.0)
    assert best.timing is not None
    assert best.parity is not None
    parity = best.parity
    if parity.verdict == "inconclusive":
        why = needed(parity)
    elif parity.metric == NUMERIC or parity.drop is None:
        why = parity.reason.rstrip(".")
    else:
        why = f"it would lose {points(parity.drop, parity.metric)}"
    return [f"{titled(best.name)} {best.timing.ratio:.2f}x held back: {why}"]
