"""Engine by layer: stretches of layers that one backend runs faster than another, as one plan with a region for each."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from calibration.ranges import Range
from optimizer.engine import Candidate
from optimizer.graph import elements
from optimizer.model import Model
from optimizer.plan import Plan, Precision, Region, Rewrite
from optimizer.planner.engines import parts
from optimizer.planner.plans import ranged
from optimizer.planner.problem import Problem
from optimizer.planner.repairs import method_of
from optimizer.planner.state import Proposal, State, speed
from optimizer.precision import settled

HAND_OVER_MS = 0.04
"""What it costs to leave one engine and enter another: the calls."""

COPY_MS = 0.08
"""What it costs to hand a megabyte over."""

MOST = 3
"""Regions of a plan."""

WORTH = 0.97
"""Of the fastest plan's time, what the times by layer must promise at most: they come from different engines' own clocks."""

_EACH = 3
"""Candidates of a backend that stretches are taken from, the fastest first."""


@dataclass(frozen=True)
class Timed:
    """A candidate with the milliseconds of its layers, which add up to what a run takes; those inside another's kernel have none."""

    candidate: Candidate
    ms: Mapping[str, float]


@dataclass(frozen=True)
class Stretch:
    """Consecutive layers as one candidate has them."""

    of: Candidate
    layers: tuple[str, ...]


def by_engine(state: State) -> Generator[Proposal, Candidate, None]:
    """Plans that take each stretch of layers from the backend, and in the precision, in which it ran fastest of what loses little."""
    if not state.timeable or len(state.able) < 2:
        return
    honest = [one for one in state.candidates if state.honest(one) and not one.plan.regions and not one.plan.recovery]
    milliseconds = [one.timing.milliseconds * one.timing.ratio for one in honest if one.timing is not None]
    if not milliseconds:
        return
    first = median(milliseconds)
    best = min((first / speed(one) for one in honest if state.may_ship(one)), default=math.inf)
    for rewrites in dict.fromkeys(one.plan.rewrites for one in honest):
        forms = _forms(state, rewrites)
        timed = [found for name in forms for found in _fastest(honest, name, rewrites, first)]
        if len({one.candidate.plan.backend for one in timed}) < 2:
            continue
        order = carried(next(iter(forms.values())).model)
        # What a cut truly costs is told by a run, so that fewer cuts are tried, too.
        for most in range(2, MOST + 1):
            promised, path = cheapest(timed, order, most)
            if len(path) > 1 and promised < WORTH * best:
                proposal = _proposal(forms, path, f"{promised:.3g} ms by the times of the layers, {best:.3g} ms in one engine")
                if not any(replace(one.plan, reason="") == replace(proposal.plan, reason="") for one in state.candidates):
                    yield proposal


def _forms(state: State, rewrites: tuple[Rewrite, ...]) -> dict[str, Problem]:
    """The form of the model with these rewrites by backend, of those that have the same layers in it as the first."""
    found = [one for one in state.problems if one.rewrites == rewrites]
    return {one.backend: one for one in found if one.model.layers == found[0].model.layers}


def _fastest(candidates: Sequence[Candidate], backend: str, rewrites: tuple[Rewrite, ...], first: float) -> Iterator[Timed]:
    """The fastest candidates of a backend and a form, with times by layer; `first` is what a run of the first of all takes."""
    own = [one for one in candidates if (one.plan.backend, one.plan.rewrites) == (backend, rewrites)]
    for one in sorted(own, key=speed, reverse=True)[:_EACH]:
        told = {layer.layer: layer.ms for layer in one.built.realised if layer.ms} if one.built is not None else {}
        if told:
            # An engine's own clock sees neither its overhead nor what watching costs: what was timed from outside is shared out.
            scale = first / speed(one) / sum(told.values())
            yield Timed(one, {layer: scale * ms for layer, ms in told.items()})


def carried(model: Model) -> dict[str, float]:
    """The layers in the order of a run, each with the megabytes that would be handed over in a cut before it, as far as sizes are known."""
    layers, megabytes = model.layers, dict[str, float]()
    for node in model.graph.graph:
        megabytes |= {value.name: (elements(value) or 0) * 4 / 1e6 for value in node.outputs if value.name}
    last = {name: place for place, layer in enumerate(layers) for name in layer.inputs}
    alive, found = dict[str, float](), dict[str, float]()
    for place, layer in enumerate(layers):
        found[layer.name] = sum(size for name, size in alive.items() if last[name] >= place)
        alive |= {name: megabytes.get(name, 0.0) for name in layer.outputs if name in last}
    return found


def cheapest(timed: Sequence[Timed], order: Mapping[str, float], most: int = MOST) -> tuple[float, tuple[Stretch, ...]]:
    """The stretches, at most `most`, that the layers in `order` run fastest in, and the milliseconds of that, hand-overs included.

    `order` tells with each layer the megabytes that a cut before it hands over.

    By dynamic programming over the layers: what counts of the past is the candidate that runs now and how many stretches there were.
    A stretch begins with a layer that its engine has a kernel for, so that none is torn out of the kernel of the one before.
    """
    ways: dict[tuple[int, int], tuple[float, tuple[tuple[int, int], ...]]] = {
        (number, 1): (0.0, ((number, 0),)) for number in range(len(timed))
    }
    for place, (layer, megabytes) in enumerate(order.items()):
        hand_over = HAND_OVER_MS + COPY_MS * megabytes
        further = {}
        for number, one in enumerate(timed):
            for count in range(1, most + 1):
                come = [ways[number, count]] if (number, count) in ways else []
                if place and layer in one.ms:
                    come += [
                        (cost + hand_over, (*path, (number, place)))
                        for (other, before), (cost, path) in ways.items()
                        if before == count - 1 and timed[other].candidate.plan.backend != one.candidate.plan.backend
                    ]
                if come:
                    cost, path = min(come)
                    further[number, count] = (cost + one.ms.get(layer, 0.0), path)
        ways = further
    cost, path = min(ways.values())
    layers, ends = tuple(order), [*(start for _, start in path[1:]), len(order)]
    return cost, tuple(Stretch(timed[number].candidate, layers[start:end]) for (number, start), end in zip(path, ends, strict=True))


def _proposal(forms: Mapping[str, Problem], path: Sequence[Stretch], promise: str) -> Proposal:
    home = forms[path[0].of.plan.backend]
    name = " then ".join(stretch.of.name for stretch in path).removeprefix(f"{home.backend} ")
    return Proposal(home, name, _composed(forms, path, promise))


def _composed(forms: Mapping[str, Problem], path: Sequence[Stretch], promise: str) -> Plan:
    """The plan with a region for each stretch, its layers in the precisions and its tensors in the ranges that they had there."""
    home = forms[path[0].of.plan.backend]
    precisions, reasons = dict[str, Precision](), dict[str, str]()
    for stretch in path:
        form = forms[stretch.of.plan.backend]
        own = settled(form.model, stretch.of.plan, form.capability)
        precisions |= {layer: own.precision(layer) for layer in stretch.layers if own.precision(layer) != "fp32"}
        reasons |= {layer: own.reasons[layer] for layer in stretch.layers if layer in own.reasons}
    longest = max(path, key=lambda stretch: len(stretch.layers)).of.plan
    knobs = {**{knob: value for stretch in path for knob, value in stretch.of.plan.knobs.items()}, **longest.knobs}
    if int(knobs.get("threads", 1)) != 1 and "spinning" in knobs:
        knobs["spinning"] = False  # threads that wait busily for their engine's next turn take the cores of the other's
    told = ", then ".join(f"{stretch.of.plan.backend} from {stretch.layers[0]} on" for stretch in path)
    plan = replace(
        home.plan("fp32", f"engine by layer: {told}; {promise}"),
        precisions=precisions,
        reasons=reasons,
        regions=tuple(Region(stretch.of.plan.backend, stretch.layers) for stretch in path),
        knobs=knobs,
    )
    return replace(plan, ranges=_ranges(home, path, plan))


def _ranges(home: Problem, path: Sequence[Stretch], plan: Plan) -> dict[str, Range]:
    """The ranges of each stretch's tensors; what the cut alone makes one to quantize gets its range by the same method."""
    found = dict[str, Range]()
    for stretch, (part, own) in zip(path, parts(home, plan), strict=True):
        known = stretch.of.plan.ranges
        found |= {tensor: known.get(tensor, one) for tensor, one in ranged(part, own, method_of(stretch.of.plan)).ranges.items()}
    return found
