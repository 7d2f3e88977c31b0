"""Regions: a model cut where a plan says, so that each part is built by another backend; and graphs of such parts put together again.

Regions follow each other in topological order, so a part reads only what the caller gives and what parts before it have made.
Tensors keep their names across a cut: what is an output of one part is an input of every later one that reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from optimizer.errors import InputError
from optimizer.graph import clone, names, unique
from optimizer.model import SHAPES, Model, is_layer
from optimizer.plan import Plan, Region

_CUT_ELSEWHERE = "Cut the model elsewhere, or leave it whole."


@dataclass(frozen=True)
class Part:
    """One region of a model: a model of its own, and the plan for it, which has no regions."""

    model: Model
    plan: Plan


def split(model: Model, plan: Plan) -> tuple[Part, ...]:
    """The parts of a model, one for each region of the plan, in the order in which they run. Weights are shared with the model.

    Raises:
        InputError: the regions do not hold every layer once, one reads what a later one makes, or a tensor that would be handed
            over is none (a sequence) or has no known type and rank.
    """
    places = _places(model.graph.graph, plan.regions)
    return tuple(_part(model, plan, region, *_ends(model.graph.graph, places, number)) for number, region in enumerate(plan.regions))


def _places(graph: ir.Graph, regions: Sequence[Region]) -> dict[ir.Node, int]:
    """The region of each node; what only carries numbers belongs where it can run first, constants to all that read them."""
    layers = {node.name or "" for node in graph if is_layer(node)}
    of: dict[str, int] = {}
    for number, region in enumerate(regions):
        for layer in region.layers:
            if layer not in layers:
                raise InputError(f"A region of the plan names a layer {layer!r}, which this model does not have.", _CUT_ELSEWHERE)
            if layer in of:
                raise InputError(f"The plan has the layer {layer!r} in two places of its regions.", "Give each layer one region.")
            of[layer] = number
    if missing := sorted(layers - of.keys()):
        raise InputError(f"The layer {missing[0]!r} is in no region of the plan.", "Give each layer one region.")
    places: dict[ir.Node, int] = {}
    for node in graph:
        before = [(places[maker], maker) for value in _reads(node) if (maker := value.producer()) in places]
        place = of[node.name or ""] if is_layer(node) else max((number for number, _ in before), default=0)
        for number, maker in before:
            if number > place:
                reason = f"{node.name!r} in region {place + 1} of the plan reads what {maker.name!r} makes, in region {number + 1}."
                raise InputError(reason, "Regions have to follow each other in the order of a run.")
        if node.op_type != "Constant":
            places[node] = place
    return places


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads of its own graph, its subgraphs included."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        for body in _bodies(attribute):
            for inner in body.all_nodes():
                yield from (value for value in inner.inputs if value is not None and value.graph is node.graph)


def _bodies(attribute: ir.Attr) -> Sequence[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else ()


def _ends(graph: ir.Graph, places: Mapping[ir.Node, int], number: int) -> tuple[list[ir.Value], list[ir.Value]]:
    """What one region takes and what it gives: to later regions, and to the caller."""
    taken, given = dict[ir.Value, None](), dict[ir.Value, None]()
    for node, place in places.items():
        for value in _reads(node):
            made = places.get(producer) if (producer := value.producer()) is not None else None
            if place == number and (value.is_graph_input() or (made is not None and made < number)):
                taken[value] = None
            if made == number and place > number:
                given[value] = None
    for value in graph.outputs:
        # An output that is a constant is the first region's; one that is an input needs nobody.
        maker = value.producer()
        if (places.get(maker, 0) if maker is not None else 0) == number and not value.is_graph_input():
            given[value] = None
    if not given:
        raise InputError(f"Region {number + 1} of the plan makes nothing that is read.", _CUT_ELSEWHERE)
    for value in (*taken, *given):
        if not isinstance(value.type, ir.TensorType) or value.shape is None:
            raise InputError(f"{value.name!r} can't be handed over: its type and rank are not known.", _CUT_ELSEWHERE)
    return list(taken), list(given)


def _part(model: Model, plan: Plan, region: Region, taken: Sequence[ir.Value], given: Sequence[ir.Value]) -> Part:
    graph = ir.Model(
        ir.convenience.extract(model.graph.graph, taken, given),
        ir_version=model.graph.ir_version,
        functions=list(model.graph.functions.values()),
        metadata_props=dict(model.graph.metadata_props),
    )
    if SHAPES in graph.metadata_props:
        graph.metadata_props[SHAPES] = json.dumps(_sizes(model.graph, graph.graph))
    own, tensors = set(region.layers), names(graph.graph)
    inputs = {value.name for value in graph.graph.inputs}
    return Part(
        replace(model, graph=graph, fusions=()),
        replace(
            plan,
            backend=region.backend,
            regions=(),
            precisions={layer: how for layer, how in plan.precisions.items() if layer in own},
            reasons={layer: why for layer, why in plan.reasons.items() if layer in own},
            ranges={tensor: found for tensor, found in plan.ranges.items() if tensor in tensors},
            rewrites=(),
            shapes={name: shape for name, shape in plan.shapes.items() if name in inputs},
        ),
    )


def _sizes(whole: ir.Model, part: ir.Graph) -> dict[str, list[list[int]]]:
    """Smallest, usual and largest sizes of a part's inputs, as far as they follow from those of the whole by the names of dimensions."""
    known: dict[str, list[list[int]]] = json.loads(whole.metadata_props[SHAPES])
    free: dict[object, list[int]] = {}
    for value in whole.graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and size.value is not None and value.name in known:
                free[size.value] = [shape[axis] for shape in known[value.name]]
    found = {value.name or "": known[value.name or ""] for value in part.inputs if value.name in known}
    for value in part.inputs:
        sizes = [[size] * 3 if isinstance(size, int) else free.get(size.value) for size in value.shape or ()]
        if value.name not in found and all(size is not None for size in sizes):
            found[value.name or ""] = [list(shape) for shape in zip(*(size for size in sizes if size is not None), strict=True)] or [[]] * 3
    return found


def joined(whole: ir.Model, parts: Sequence[ir.Model]) -> ir.Model:
    """Graphs of the parts of `whole`, whatever was done inside them, as one graph that takes and gives what `whole` does."""
    model = ir.Model(
        ir.Graph([], [], nodes=[], name=whole.graph.name, opset_imports={}),
        ir_version=max(part.ir_version for part in parts),
        metadata_props=dict(whole.metadata_props),
    )
    graph, known = model.graph, dict[str, ir.Value]()
    for value in clone(whole).graph.inputs:
        known[value.name or ""] = given = ir.Value(name=value.name, shape=value.shape, type=value.type)
        graph.inputs.append(given)
    tensors, nodes = set(known) | {value.name or "" for part in parts for value in part.graph.outputs}, set[str]()
    for part in parts:
        _append(graph, clone(part).graph, known, tensors, nodes)
    graph.outputs.extend(known[value.name or ""] for value in whole.graph.outputs)
    return model


def _append(graph: ir.Graph, part: ir.Graph, known: dict[str, ir.Value], tensors: set[str], named: set[str]) -> None:
    """Move all that is in a part behind what `graph` has, under names that are free; `known` are tensors that may cross a cut."""
    outputs, nodes = list(part.outputs), list(part)
    part.outputs.clear()
    for value in part.inputs:
        value.replace_all_uses_with(known[value.name or ""])
    kept = {value.name for value in outputs}
    for value in list(part.initializers.values()):
        del part.initializers[value.name or ""]
        value.name = value.name if value.name in kept else unique(value.name or "", tensors)
        graph.register_initializer(value)
    for node in part.all_nodes():
        node.name = unique(node.name or "", named)
        for value in node.outputs:
            if value.name and value.name not in kept:
                value.name = unique(value.name, tensors)
    part.remove(nodes)
    graph.extend(nodes)
    for domain, version in part.opset_imports.items():
        graph.opset_imports[domain] = max(version, graph.opset_imports.get(domain, 0))
    known |= {value.name or "": value for value in outputs}
