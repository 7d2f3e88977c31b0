"""Factors a channel moved from an activation into the weights that read it: what smoothing and equalization share.

(x / s) (s W) = x W.  A place knows the tensor, its readers, and how 1 / s comes in: that is what the two steps differ in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibration.ranges import Range
from optimizer.engine import Arrays
from optimizer.graph import clone, readers
from optimizer.plan import Capability, Plan
from optimizer.precision.writer import Writer
from optimizer.recovery.form import Form, Recovered, few, grid_of, listed, noted, rewritten, seen_anew
from optimizer.recovery.layers import Floats, groups, in_int8, known, matrix, set_weight, to_nearest
from optimizer.recovery.twins import Twins

_SAMPLES = 8
"""Samples that strengths are compared on."""

_BYTES = 512 << 20
"""What the rounded weights of the layers that are compared in one graph may hold."""


Divide = Callable[[Mapping[str, ir.Node], Writer, Floats], Mapping[str, str]]
"""Brings 1 / s into a graph, given its nodes by name, its writer and s.

Returns the tensors that then hold other numbers, and those that are new, each with the one whose method of ranging it takes over.
"""


@dataclass(frozen=True)
class Place:
    """A tensor whose channels may be scaled, and the layers in INT8 that multiply a weight with it.

    At most the share `worth` of the readers' error may be left for the factors to be worth it.
    """

    tensor: str
    readers: tuple[str, ...]
    divide: Divide
    worth: float


@dataclass(frozen=True)
class Channels:
    """The lowest and highest numbers of a tensor by channel, and the readers' weights beside them: float64 (channels,)."""

    low: Floats
    high: Floats
    weight: Floats

    @property
    def activation(self) -> Floats:
        """The largest magnitudes."""
        return np.maximum(-self.low, self.high)


Strength = Callable[[Channels], Floats]
"""Factors s for what is known of the channels."""


def read_in_int8(form: Form, plan: Plan, capability: Capability) -> Iterator[tuple[ir.Value, tuple[ir.Node, ...]]]:
    """Tensors that layers in INT8 multiply a weight with, in the graph's order, and those layers."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in in_int8(form.model, plan, capability):
        value = node.inputs[0]
        if value is not None:
            found.setdefault(value, []).append(node)
    for value, nodes in found.items():
        if len({channels(node) for node in nodes}) == 1 and len({node.op_type == "Conv" for node in nodes}) == 1:
            yield value, tuple(nodes)


def only_read_by(value: ir.Value, nodes: Sequence[ir.Node]) -> bool:
    """Whether a tensor goes to the first input of these layers and nowhere else."""
    uses = list(value.uses())
    return not value.is_graph_output() and len(uses) == len(nodes) and set(readers(value)) == set(nodes)


def channels(node: ir.Node) -> int:
    """How many channels a layer reads."""
    return groups(node) * known(node, 1).shape[1] if node.op_type == "Conv" else int(matrix(node).shape[2])


def scaled(node: ir.Node, factors: Floats) -> Floats:
    """The weight of a layer with the inputs of each channel times its factor, as `matrix` gives it."""
    weight = matrix(node)
    parts, outputs, _ = weight.shape
    by_channel = weight.reshape(parts, outputs, len(factors) // parts, -1)
    return (by_channel * factors.reshape(parts, 1, -1, 1)).reshape(weight.shape)


def shares(node: ir.Node) -> Floats:
    """How much of an output channel's range each input channel takes, where it takes most: 0 to 1, float64 (channels,)."""
    weight = np.abs(matrix(node))
    parts, outputs, _ = weight.shape
    largest = weight.max(axis=2, keepdims=True)
    relative = weight / np.where(largest > 0, largest, 1.0)
    return np.asarray(relative.reshape(parts, outputs, channels(node) // parts, -1).max(axis=(1, 3)).reshape(-1))


def with_factors(
    step: str,
    form: Form,
    plan: Plan,
    capability: Capability,
    feeds: Sequence[Arrays],
    places: Sequence[Place],
    strengths: Sequence[Strength],
) -> Recovered | None:
    """The form with the factors at each place that leave the least error at its readers, where that is less than without."""
    if not places or not feeds:
        return None
    seen = _channels(form, places, feeds)
    plain = _errors(form, capability, places, seen, {name: np.ones(len(channel.low)) for name, channel in seen.items()}, feeds)
    best: dict[str, tuple[float, Floats]] = {}
    for strength in strengths:
        tried = {name: strength(channel) for name, channel in seen.items()}
        for name, error in _errors(form, capability, places, seen, tried, feeds).items():
            if name not in best or error < best[name][0]:
                best[name] = (error, tried[name])
    taken = [place for place in places if best[place.tensor][0] < place.worth * plain[place.tensor]]
    if not taken:
        return None
    graph = clone(form.model.graph)
    writer = Writer(graph.graph)
    nodes = {node.name or "": node for node in graph.graph}
    tensors: dict[str, str] = {}
    for place in taken:
        factors = best[place.tensor][1]
        for reader in place.readers:
            set_weight(writer, nodes[reader], scaled(nodes[reader], factors), step)
        tensors.update(place.divide(nodes, writer, factors))
    form, plan = seen_anew(rewritten(form, graph), noted(plan, step), capability, feeds, tensors)
    share = sum(best[place.tensor][0] / plain[place.tensor] for place in taken) / len(taken)
    names = listed(reader for place in taken for reader in place.readers)
    note = f"{step}: {share:.0%} of the error that rounding causes is left at {names}, on average"
    return Recovered(form, plan, note)


def _channels(form: Form, places: Sequence[Place], feeds: Sequence[Arrays]) -> dict[str, Channels]:
    """What is known of the channels of each place's tensor."""
    twins = Twins(form.model.graph)
    for place in places:
        node = twins.nodes[place.readers[0]]
        for operator in ("ReduceMin", "ReduceMax"):
            twins.keep(f"{operator} {place.tensor}", twins.reduce(operator, twins.values[place.tensor], node, channels(node)))
    low: dict[str, Floats] = {}
    high: dict[str, Floats] = {}
    for found in twins.runs(feeds):
        for name in (place.tensor for place in places):
            least, most = (found[f"{operator} {name}"].astype(np.float64) for operator in ("ReduceMin", "ReduceMax"))
            low[name], high[name] = np.minimum(low.get(name, least), least), np.maximum(high.get(name, most), most)
    weight = {place.tensor: np.max([shares(twins.nodes[reader]) for reader in place.readers], axis=0) for place in places}
    return {name: Channels(low[name], high[name], weight[name]) for name in weight}


def _errors(
    form: Form,
    capability: Capability,
    places: Sequence[Place],
    seen: Mapping[str, Channels],
    factors: Mapping[str, Floats],
    feeds: Sequence[Arrays],
) -> dict[str, float]:
    """By tensor, the error of its readers with these factors: it and their weights rounded, and nothing else."""
    nodes = {node.name or "": node for node in form.model.graph.graph}
    found: dict[str, float] = {}
    for part in _parts(places, nodes):
        twins = Twins(form.model.graph)
        for place in part:
            _add_readers(twins, place, seen[place.tensor], factors[place.tensor], capability)
        errors = twins.errors(few(feeds, _SAMPLES))
        found.update({place.tensor: sum(errors[f"{place.tensor} {reader}"] for reader in place.readers) for place in part})
    return found


def _add_readers(twins: Twins, place: Place, channel: Channels, factor: Floats, capability: Capability) -> None:
    """The readers once more, on the rounded tensor with their weights rounded, compared with themselves."""
    value, first = twins.values[place.tensor], twins.nodes[place.readers[0]]
    divided = twins.add("Mul", [value, twins.constant(along_channels(first, 1 / factor))])
    range = Range("minmax", float((channel.low / factor).min()), float((channel.high / factor).max()))
    rounded = twins.quantized(divided, range, grid_of(capability))
    for reader in place.readers:
        node = twins.nodes[reader]
        weight = twins.constant(to_nearest(node, scaled(node, factor), capability.weight_limit))
        twin = twins.beside(node, {0: rounded, 1: weight})
        twins.compare(f"{place.tensor} {reader}", node.outputs[0], twin.outputs[0])


def _parts(places: Sequence[Place], nodes: Mapping[str, ir.Node]) -> list[list[Place]]:
    """The places in their order, cut where their weights would pass what one graph may hold of them a second time."""
    parts: list[list[Place]] = [[]]
    filled = 0
    for place in places:
        size = sum(known(nodes[reader], 1).nbytes for reader in place.readers)
        if parts[-1] and filled + size > _BYTES:
            parts.append([])
            filled = 0
        parts[-1].append(place)
        filled += size
    return parts


def along_channels(node: ir.Node, numbers: Floats) -> NDArray[np.float32]:
    """(channels,) as it broadcasts against what the layer reads."""
    spread = (-1, *[1] * (known(node, 1).ndim - 2)) if node.op_type == "Conv" else (-1,)
    return numbers.astype(np.float32).reshape(spread)
