"""The method of choosing a range, tensor by tensor: by what it does to the layers that read the tensor, and then to the outputs.

What a range does to its readers is measured for all tensors in one run a method.  That proposes a method for each; whether the
outputs come nearer with it too is then asked for many tensors at once, and for fewer where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibration.ranges import METHODS, Range
from optimizer.engine import Arrays
from optimizer.graph import readers
from optimizer.plan import Capability, Plan
from optimizer.precision import settled, typed
from optimizer.precision.placement import CARRIERS
from optimizer.precision.spots import common_range, spots
from optimizer.recovery.form import Form, Recovered, few, grid_of, noted
from optimizer.recovery.twins import Twins
from optimizer.reference import Reference, simulated

_SAMPLES = 8
"""Samples that methods are compared on: between them are tens of percent, not thousandths."""

_WORTH = 0.97
"""Share of the outputs' squared error that may be left for a proposal to be taken: less is chance on so few samples."""

_TRIES = 24
"""Sets of proposals whose effect on the outputs is measured."""

Groups = Mapping[str, Sequence[str]]
"""Tensors that have one scale, by the first of them."""

Ranges = Mapping[str, Range]


def ranges(form: Form, plan: Plan, capability: Capability, feeds: Sequence[Arrays]) -> Recovered | None:
    """Gives tensors another range method where their readers and the outputs are less off with it.

    Tensors of one group, which have one scale, are chosen for together.
    """
    members = _members(form, plan, capability)
    feeds = few(feeds, _SAMPLES)
    if not members or not feeds:
        return None
    best = _best_for_readers(form, plan, capability, members, feeds)
    proposed = [first for first in members if any(best[name] != plan.ranges[name] for name in members[first])]
    if not proposed:
        return None
    with closing(_Dials(form, plan, capability, members, feeds)) as dials:
        chosen, taken = _nearer(dict(plan.ranges), best, proposed, members, dials.error)
    if not taken:
        return None
    methods = [chosen[first].method for first in taken]
    told = ", ".join(f"{method} for {methods.count(method)}" for method in METHODS if method in methods)
    note = f"ranges: {told} of {len(members)} tensors, counting those of one scale as one"
    return Recovered(form, replace(noted(plan, "ranges"), ranges=chosen), note)


def _members(form: Form, plan: Plan, capability: Capability) -> Groups:
    members: dict[str, list[str]] = {}
    for name, first in spots(form.model.graph.graph, settled(form.model, plan, capability), capability).groups.items():
        members.setdefault(first, []).append(name)
    return members


def _nearer(
    ranges: dict[str, Range], best: Ranges, proposed: Sequence[str], members: Groups, error: Callable[[Ranges], float]
) -> tuple[dict[str, Range], list[str]]:
    """The ranges with those proposals that lower the error of the outputs, and the groups that these are for.

    All proposals are tried together; a set that does not help is halved, as long as there are tries left.
    """
    taken: list[str] = []
    least, waiting = error(ranges), [list(proposed)]
    for _ in range(_TRIES):
        if not waiting:
            break
        part = waiting.pop(0)
        tried = {**ranges, **{name: best[name] for first in part for name in members[first]}}
        if (found := error(tried)) < _WORTH * least:
            ranges, least = tried, found
            taken.extend(part)
        elif len(part) > 1:
            waiting += [part[: len(part) // 2], part[len(part) // 2 :]]
    return ranges, taken


def _best_for_readers(form: Form, plan: Plan, capability: Capability, members: Groups, feeds: Sequence[Arrays]) -> Ranges:
    """By tensor, the range whose method leaves the least error at the readers of its group; the plan's own where all are alike."""
    chosen: dict[str, Ranges] = {}
    errors: dict[str, dict[str, float]] = {}
    for method, of in METHODS.items():
        chosen[method] = {name: of(form.table.statistics[name], grid_of(capability)) for names in members.values() for name in names}
        errors[method] = _errors(form, capability, members, chosen[method], feeds)
    best = dict(plan.ranges)
    for first, names in members.items():
        method = min(METHODS, key=lambda method: errors[method][first])
        if errors[method][first] < errors[plan.ranges[first].method][first]:
            best.update({name: chosen[method][name] for name in names})
    return best


def _errors(form: Form, capability: Capability, members: Groups, ranges: Ranges, feeds: Sequence[Arrays]) -> dict[str, float]:
    """By group, the error that its range alone puts on all that read its tensors, each as a part of what the reader gives."""
    twins = Twins(form.model.graph)
    keys: dict[str, str] = {}
    for first, names in members.items():
        common = common_range(ranges[name] for name in names)
        pairs = [pair for name in names for pair in _pairs(twins, name, common, capability)]
        for number, (exact, other) in enumerate(pairs):
            keys[f"{first}#{number}"] = first
            twins.compare(f"{first}#{number}", exact, other)
    found = dict.fromkeys(members, 0.0)
    for key, error in twins.errors(feeds).items():
        found[keys[key]] += error
    return found


def _pairs(twins: Twins, name: str, range: Range, capability: Capability) -> Iterator[tuple[ir.Value, ir.Value]]:
    """The outputs of the layers that compute with a tensor, exact and with it rounded; an output of the model as it is."""
    value = twins.values[name]
    rounded = twins.quantized(value, range, grid_of(capability))
    for node in readers(value):
        if twins.nodes.get(node.name or "") is node and node.op_type not in CARRIERS:
            twin = twins.beside(node, {place: rounded for place, read in enumerate(node.inputs) if read is value})
            both = zip(node.outputs, twin.outputs, strict=True)
            yield from ((exact, other) for exact, other in both if exact.name and exact.dtype == ir.DataType.FLOAT)
    if value.is_graph_output():
        yield value, rounded


class _Dials:
    """The typed graph with its activations' scales and zero points as inputs: one session serves all ranges that are tried."""

    def __init__(self, form: Form, plan: Plan, capability: Capability, members: Groups, feeds: Sequence[Arrays]) -> None:
        self._grid, self._members, self._feeds = grid_of(capability), members, feeds
        with closing(Reference(form.model.graph)) as parent:
            self._exact = [parent.run(feed) for feed in feeds]
        graph = simulated(typed(form.model, plan, capability))
        self._inputs = _as_inputs(graph.graph, members)
        self._engine = Reference(graph)

    def close(self) -> None:
        self._engine.close()

    def error(self, ranges: Ranges) -> float:
        """The squared error of the outputs under these ranges, each output's as a part of its square, summed up."""
        dials: dict[str, NDArray[Any]] = {}
        for names in self._members.values():
            scale, zero_point = self._grid.quantization(common_range(ranges[name] for name in names))
            for step, zero in (self._inputs[name] for name in names if name in self._inputs):
                dials |= {step: np.asarray(scale), zero: np.asarray(zero_point, self._grid.dtype)}
        off: dict[str, float] = {}
        size: dict[str, float] = {}
        for feed, exact in zip(self._feeds, self._exact, strict=True):
            found = self._engine.run({**feed, **dials})
            for name, array in exact.items():
                if array.dtype.kind == "f":
                    wanted = array.astype(np.float64)
                    off[name] = off.get(name, 0.0) + float(np.square(found[name] - wanted).sum())
                    size[name] = size.get(name, 0.0) + float(np.square(wanted).sum())
        return sum(off[name] / size[name] if size[name] > 0 else off[name] for name in off)


def _as_inputs(graph: ir.Graph, members: Groups) -> dict[str, tuple[str, str]]:
    """Makes the scales and zero points of these tensors inputs of a typed graph; their names by tensor."""
    quantizers = {node.name: node for node in graph if node.op_type == "QuantizeLinear"}
    found: dict[str, tuple[str, str]] = {}
    for name in (name for names in members.values() for name in names):
        node = quantizers.get(f"{name}/quantize")
        if node is None:
            continue
        step, zero = node.inputs[1:3]
        assert step is not None
        assert zero is not None
        for value in (step, zero):
            del graph.initializers[value.name or ""]
            value.const_value = None
            graph.inputs.append(value)
        found[name] = (step.name or "", zero.name or "")
    return found
