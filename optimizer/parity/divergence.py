"""The layer at which two forms of a model part: each layer is fed what the form before gave, so that its own error alone shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.engine import Arrays
from optimizer.errors import InputError
from optimizer.graph import clone, infer_shapes, names, unique
from optimizer.model import FOR_LAYER, is_layer, joined
from optimizer.parity.difference import Difference, Layout, difference, layout, other_length, total
from optimizer.parity.rounding import planned, shaken
from optimizer.reference import Reference

TIMES = 3.0
"""How many times what rounding explains a difference must be to be a fault; benchmarks/ladder.md tells what this misses and finds."""

SEEDS = (1, 2)
"""Draws of the rounding that are run; their energies are averaged."""

_LEAST = float(np.finfo(np.float32).eps)
"""One float32 rounding step of the largest magnitude is always explained."""

_BESIDE = 10.0
"""A layer whose error is this many times less beyond rounding than another's is not the one that is looked for."""

_NAMED = 8
"""Layers up to which a divergence tells each."""

_WATCHED = 32
"""Tensors whose numbers are held at a time."""


class Running(Protocol):
    """A form of the model, opened: `run` gives every output, and of the tensors asked for those that it can show."""

    def run(self, feeds: Arrays) -> Mapping[str, NDArray[Any]]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Form:
    """One form of a model: the source framework's, a graph, an engine.

    `opened` takes the names of tensors to show beside the outputs.  `graph` has these tensors, as nodes that can be run one by one;
    `own` says that the form is that graph itself, rather than something that should give the same.
    """

    name: str
    graph: ir.Model
    opened: Callable[[Sequence[str]], Running]
    own: bool = True


def graph_form(name: str, graph: ir.Model, threads: int = 1) -> Form:
    """A graph as a form, run node by node as written."""
    return Form(name, graph, lambda watch: Reference(graph, watch, threads=threads))


@dataclass(frozen=True)
class Divergence:
    """A layer, its own error relative to its output when fed the other form's numbers, and how much of that rounding explains.

    `layers` are several where nothing between them could be compared.
    """

    layers: tuple[str, ...]
    error: float
    explained: float

    @property
    def ratio(self) -> float:
        return ratio(self.error, self.explained)

    @property
    def layer(self) -> str:
        """All of the layers in one name, of many the first and the last."""
        return joined(self.layers) if len(self.layers) <= _NAMED else f"{self.layers[0]} to {self.layers[-1]}"


def ratio(error: float, explained: float) -> float:
    """An error over what rounding explains of it: over 1 it is a fault. NaN or infinity in the explanation explains everything."""
    allowed = TIMES * max(explained, _LEAST)
    return 0.0 if error == 0.0 or not math.isfinite(allowed) else error / allowed


def explained(graph: ir.Model, precisions: Mapping[str, str], runs: Sequence[tuple[Arrays, Arrays]]) -> list[dict[str, Difference]]:
    """How far rounding at these precisions moves each output of `graph`, for each of `runs`: a feed and what the graph gives for it."""
    found: list[dict[str, Difference]] = [{} for _ in runs]
    for seed in SEEDS:
        with closing(Reference(shaken(graph, precisions, seed))) as reference:
            for parts, (feed, exact) in zip(found, runs, strict=True):
                moved = reference.run(feed)
                for name, array in exact.items():
                    if name in moved:
                        parts[name] = parts.get(name, Difference()) + difference(array, moved[name])
    return found


def first_divergence(before: Form, after: Form, feeds: Sequence[Arrays]) -> Divergence | None:
    """The first layer of `after`, in topological order, whose own error rounding does not explain.

    None where no single layer stands out.  Only tensors that both forms show are compared; what lies between two of them counts as
    one layer.  Where another layer's error is ten times as far beyond rounding, a small one before it is not what broke the model.
    """
    beyond = [one for one in divergences(before, after, feeds) if one.ratio > 1.0]
    worst = max((one.ratio for one in beyond), default=0.0)
    return next((one for one in beyond if one.ratio >= worst / _BESIDE), None)


def divergences(before: Form, after: Form, feeds: Sequence[Arrays]) -> Iterator[Divergence]:
    """The own error of each layer that can be compared, in topological order."""
    precisions = planned(after.graph) if after.own else {}
    known = _comparable(before, after, feeds[0])
    lost = {name for name, how in known.items() if how is None}
    layouts = {name: how for name, how in known.items() if how is not None}
    shows = before if after.own else after
    for batch in batched([*known], _WATCHED):
        for name in batch:
            if name in lost:
                yield Divergence(_layers(after.graph, name, known.keys()), math.inf, 0.0)
        here = [name for name in batch if name in layouts]
        if here:
            yield from _own_errors(here, layouts, shows, before.graph, after.graph, precisions, feeds)


def _own_errors(
    batch: Sequence[str],
    layouts: Mapping[str, Layout],
    shows: Form,
    before: ir.Model,
    after: ir.Model,
    precisions: Mapping[str, str],
    feeds: Sequence[Arrays],
) -> Iterator[Divergence]:
    part, sound = segment(after, batch, layouts.keys()), segment(before, batch, layouts.keys())
    needed = {name for one in (part, sound) for name in _given(one).values()}
    with closing(shows.opened(list(dict.fromkeys((*batch, *needed))))) as running:
        values = [_laid_out(running.run(feed), layouts) | {"": feed} for feed in feeds]
    try:
        with closing(Reference(part)) as reference:
            found = [reference.run(_fed(part, one)) for one in values]
    except InputError:
        if len(batch) > 1:
            for name in batch:
                yield from _own_errors([name], layouts, shows, before, after, precisions, feeds)
        else:
            yield Divergence(_layers(after, batch[0], layouts.keys()), math.inf, 0.0)
        return
    sensed = explained(sound, precisions, _exactly(sound, [_fed(sound, one) for one in values]))
    for name in batch:
        gaps = [difference(one[name], other[name]) for one, other in zip(values, found, strict=True)]
        yield Divergence(_layers(after, name, layouts.keys()), total(gaps).relative, total(one[name] for one in sensed).relative)


def _exactly(graph: ir.Model, feeds: Sequence[Arrays]) -> list[tuple[Arrays, Arrays]]:
    with closing(Reference(graph)) as reference:
        return [(feed, reference.run(feed)) for feed in feeds]


def _comparable(before: Form, after: Form, feed: Arrays) -> dict[str, Layout | None]:
    """The tensors that both forms show, in topological order, with the layout that turns the one into the other.

    None stands for a result that one form has in another length: nothing makes the two equal.  Tensors whose shapes have nothing to
    do with each other are no counterparts, and left out.
    """
    there = {value.name for node in before.graph.graph for value in node.outputs if value.name and _is_float(value)}
    common = [value.name or "" for node in after.graph.graph for value in node.outputs if value.name in there and _is_float(value)]
    shows = before if after.own else after
    found: dict[str, Layout | None] = {}
    for batch in batched(common, _WATCHED):
        with closing(shows.opened(batch)) as one:
            shown = one.run(feed)
        computed = _computed(after.graph, batch, feed)
        for name in batch:
            if name not in shown:
                continue
            wanted = computed.get(name, shown[name])
            how = layout(shown[name], wanted)
            if how is not None or other_length(shown[name].shape, wanted.shape):
                found[name] = how
    return found


def _computed(graph: ir.Model, batch: Sequence[str], feed: Arrays) -> Mapping[str, NDArray[Any]]:
    """The tensors as the graph itself computes them; nothing where it can't run this feed, which is then the fault looked for."""
    try:
        with closing(Reference(graph, batch)) as reference:
            return reference.run(feed)
    except InputError:
        return {}


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, None)


def _laid_out(values: Mapping[str, NDArray[Any]], layouts: Mapping[str, Layout]) -> dict[str, Any]:
    return {name: layouts[name].of(array) if name in layouts else array for name, array in values.items()}


GIVEN = "/given"
"""Ends the name of a segment's input that stands for a tensor of the whole graph."""


def segment(graph: ir.Model, wanted: Sequence[str], cuts: Set[str]) -> ir.Model:
    """The nodes of `graph` that compute the tensors `wanted` from the nearest tensors in `cuts`, which become inputs `NAME/given`."""
    copy = clone(graph)
    main = copy.graph
    if any(value.dtype is None for node in main for value in node.outputs):
        infer_shapes(copy)
    taken = names(main)
    values = {value.name: value for node in main for value in node.outputs}
    main.outputs.clear()
    for name in cuts:
        given = ir.Value(name=unique(f"{name}{GIVEN}", taken), type=values[name].type)
        values[name].replace_all_uses_with(given)
        given.metadata_props[GIVEN] = name
        main.inputs.append(given)
    main.outputs.extend(values[name] for name in wanted)
    inside = _between(wanted, main, frozenset())
    main.remove([node for node in main if node not in inside])
    used = {value for node in main for value in _read(node)} | set(main.outputs)
    main.inputs[:] = [value for value in main.inputs if value in used]
    for name, value in list(main.initializers.items()):
        if value not in used:
            del main.initializers[name]
    return copy


def _between(wanted: Sequence[str], graph: ir.Graph, cuts: Set[str]) -> set[ir.Node]:
    """The nodes between the tensors `wanted` and the nearest ones in `cuts`."""
    inside: set[ir.Node] = set()
    ahead = [node for node in graph if any(value.name in wanted for value in node.outputs)]
    while ahead:
        node = ahead.pop()
        inside.add(node)
        makers = (value.producer() for value in _read(node) if value.name not in cuts)
        ahead += [maker for maker in makers if maker is not None and maker.graph is graph and maker not in inside]
    return inside


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, what the graphs inside it read from around them included."""
    graphs = [one for attribute in node.attributes.values() for one in _graphs(attribute)]
    for graph in graphs:
        yield from graph.outputs
    for reader in (node, *(inner for graph in graphs for inner in graph.all_nodes())):
        yield from (value for value in reader.inputs if value is not None)


def _graphs(attribute: ir.Attr) -> Sequence[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else []


def _given(part: ir.Model) -> dict[str, str]:
    """The inputs of a segment that stand for tensors, each with the tensor's name."""
    return {value.name or "": value.metadata_props[GIVEN] for value in part.graph.inputs if GIVEN in value.metadata_props}


def _fed(part: ir.Model, values: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """What a segment takes, out of the tensors of a run and of the run's own inputs (under the name "")."""
    given = _given(part)
    return {name: values[given[name]] if name in given else values[""][name] for name in (value.name or "" for value in part.graph.inputs)}


def _layers(graph: ir.Model, tensor: str, cuts: Set[str]) -> tuple[str, ...]:
    """The layers that lie between a tensor and the nearest tensors in `cuts`, in topological order; of helpers alone, whom they are for."""
    inside = _between([tensor], graph.graph, cuts)
    layers = [node.name or tensor for node in graph.graph if node in inside and is_layer(node)]
    helped = [node.metadata_props.get(FOR_LAYER, tensor) for node in graph.graph if node in inside]
    return tuple(dict.fromkeys(layers or helped))


def batched(found: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    """Runs of `size` names, the last one perhaps shorter."""
    left = iter(found)
    while part := tuple(islice(left, size)):
        yield part
