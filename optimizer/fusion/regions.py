"""Parts of a graph compute in another order of axes where that saves Transposes.

A converter from a framework that keeps channels last puts a Transpose before and behind each convolution.  Between them the
operators can work in either order (`axes`, `flattening`), so that the graph is parted into what computes in the one order and
what in the other, with a Transpose where a value crosses: as few as possible is a minimum cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.fusion import axes, flattening
from optimizer.fusion.axes import Layout, Order, Writer, inverse, is_identity
from optimizer.fusion.conditions import known
from optimizer.fusion.cut import SINK, SOURCE, cheapest_cut
from optimizer.fusion.transposition import permutation
from optimizer.graph import readers, unique
from optimizer.model import Fusion

LAYOUTS: Mapping[str, Layout] = {**axes.LAYOUTS, **flattening.LAYOUTS}


def move_transposes(model: ir.Model, taken: set[str]) -> list[Fusion]:
    """Let each part of the main graph compute in the order of axes that saves most Transposes, in place.

    The number of Transposes falls with each `Fusion` told, so that this comes to an end.
    """
    fusions = []
    tried: set[ir.Value] = set()
    while (found := _untried(model.graph, tried)) is not None:
        value, order = found
        tried.add(value)
        region = Region.around(value, order)
        if flipped := region.cheapest():
            fusions.append(_Flip(region, flipped, Writer(model.graph, taken)).run())
            tried.clear()
    return fusions


def _untried(graph: ir.Graph, tried: set[ir.Value]) -> tuple[ir.Value, Order] | None:
    """A value on one side of a Transpose, and the order that it has on the other."""
    for node in graph:
        order = permutation(node) if _transposes(node) else None
        if order is None or is_identity(order):
            continue
        x, y = node.inputs[0], node.outputs[0]
        if y not in tried:
            return y, inverse(order)
        if x is not None and x not in tried and known(x) is None:
            return x, order
    return None


def _transposes(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "Transpose" and not node.domain and permutation(node) is not None


@dataclass(frozen=True)
class Region:
    """What hangs together around one Transpose: the orders of values that would do without it, and the nodes that can have them."""

    orders: dict[ir.Value, Order] = field(default_factory=dict)
    nodes: dict[ir.Node, Mapping[ir.Value, Order]] = field(default_factory=dict)

    @classmethod
    def around(cls, start: ir.Value, order: Order) -> Region:
        """Grown from one value, as far as operators can tell what an order of theirs means for the others."""
        region = cls()
        refused: set[ir.Node] = set()
        waiting = region._told({start: order})
        while waiting:
            value = waiting.pop()
            for node in (value.producer(), *readers(value)):
                if node is None or node in region.nodes or node in refused or node.graph is not start.graph:
                    continue
                found = None if node.domain or node.op_type not in LAYOUTS else region._spread(node, value, matrices=len(order) == 2)
                if found is None:
                    refused.add(node)
                else:
                    region.nodes[node] = found
                    waiting += region._told(found)
        return region

    def _spread(self, node: ir.Node, value: ir.Value, matrices: bool) -> Mapping[ir.Value, Order] | None:
        """The orders around a node, where they are those that are known; matrices and images are not mixed in one region."""
        found = LAYOUTS[node.op_type].spread(node, value, self.orders[value])
        if found is None or any(self.orders.get(each, order) != order for each, order in found.items()):
            return None
        moved = [order for order in found.values() if not is_identity(order)]
        return found if all((len(order) == 2) == matrices for order in moved) else None

    def _told(self, found: Mapping[ir.Value, Order]) -> list[ir.Value]:
        fresh = [value for value, order in found.items() if value not in self.orders and not is_identity(order)]
        self.orders.update({value: found[value] for value in fresh})
        return fresh

    def cheapest(self) -> set[ir.Node]:
        """The nodes that are to compute in the region's orders, none where the graph has as few Transposes as it can have."""
        edges = [list(self._members(value)) for value in self.orders]
        now = sum(SOURCE in edge and any(member != SOURCE for member in edge) for edge in edges)
        cost, side = cheapest_cut(edges)
        return {node for node in self.nodes if node in side} if cost < now else set()

    def _members(self, value: ir.Value) -> Iterator[Any]:
        """What a value ties together: SOURCE has it in the region's order, SINK as the graph has it, a node as the node is put."""
        node = value.producer()
        made_here, given = self.has(node, value), self.gives(value)
        if made_here:
            yield node
        elif given or node is None or not self._outside(node):
            yield SOURCE if given else SINK
        if value.is_graph_output():
            yield SINK
        for reader in readers(value):
            if self.has(reader, value):
                yield reader
            elif self.takes(reader, value):
                yield SOURCE
            elif not (self.follows(reader, value) and (made_here or (given and reader.op_type == "Shape"))):
                yield SINK

    def has(self, node: ir.Node | None, value: ir.Value) -> bool:
        """Whether a node can make or read the value in the region's order."""
        return node in self.nodes and self.nodes[node].get(value) == self.orders[value]

    def gives(self, value: ir.Value) -> bool:
        """Whether a Transpose makes the value from one that is as the region wants it."""
        node = value.producer()
        return node is not None and self._outside(node) and permutation(node) == inverse(self.orders[value])

    def takes(self, reader: ir.Node, value: ir.Value) -> bool:
        """Whether a Transpose makes what the region wants from the value."""
        own = reader.graph is value.graph and not reader.outputs[0].is_graph_output()
        return own and self._outside(reader) and permutation(reader) == self.orders[value]

    def follows(self, reader: ir.Node, value: ir.Value) -> bool:
        """Whether a reader can do with any order at no cost: another Transpose, or a Shape."""
        return reader.graph is value.graph and (self._outside(reader) or (reader.op_type == "Shape" and not reader.domain))

    def _outside(self, node: ir.Node) -> bool:
        """Whether a node is a Transpose with one side in the region; one with both has to stay between them as it is."""
        return _transposes(node) and not (node.inputs[0] in self.orders and node.outputs[0] in self.orders)


class _Flip:
    """The change of a graph where the nodes of one side of a cut get the region's orders."""

    def __init__(self, region: Region, flipped: set[ir.Node], writer: Writer) -> None:
        self.region, self.flipped, self.writer = region, flipped, writer
        self.made: list[ir.Node] = []
        self.gone: list[ir.Node] = []

    def run(self) -> Fusion:
        """Constants and attributes first, which speak of the values as they are; then who reads what."""
        made_here = [value for value in self.region.orders if value.producer() in self.flipped and self.region.has(value.producer(), value)]
        for node in self.flipped:
            LAYOUTS[node.op_type].write(node, self.region.nodes[node], self.writer)
        for value in self.region.orders:
            if value in made_here:
                self._turned(value)
            else:
                self._turn_for_readers(value)
        for node in self.gone:
            self.writer.graph.remove(node, safe=True)
        names = [node.name or "" for node in self.gone]
        self.writer.taken.difference_update(names)
        for node, name in zip(self.made, [*names, *("Transpose" for _ in self.made)], strict=False):
            node.name = unique(name, self.writer.taken)
        return Fusion("Transposes moved together", tuple(names), self.made[0].name or "" if self.made else "")

    def _reads_turned(self, reader: ir.Node, value: ir.Value) -> bool:
        return reader in self.flipped and self.region.has(reader, value)

    def _turned(self, value: ir.Value) -> None:
        """A value that its node now makes in the region's order: who wants it as it was reads a Transpose of it."""
        order = self.region.orders[value]
        before, shape = value.is_graph_output(), value.shape
        value.shape = None if shape is None else ir.Shape([shape[axis] for axis in order])
        plain: ir.Value | None = None
        for reader in readers(value):
            if self._reads_turned(reader, value):
                continue
            if self.region.takes(reader, value):
                reader.outputs[0].replace_all_uses_with(value)
                self.gone.append(reader)
            elif self.region.follows(reader, value):
                self._follow(reader, inverse(order))
            else:
                plain = plain or self._transpose(value, inverse(order), value.producer(), shape)
                _reread(reader, value, plain)
        if before:
            plain = plain or self._transpose(value, inverse(order), value.producer(), shape)
            value.name, plain.name = plain.name, value.name
            for index, output in enumerate(self.writer.graph.outputs):
                if output is value:
                    self.writer.graph.outputs[index] = plain

    def _turn_for_readers(self, value: ir.Value) -> None:
        """A value that is made as it was: who wants it in the region's order reads the source of its Transpose, or a new one."""
        order, shape = self.region.orders[value], value.shape
        wanting = [reader for reader in readers(value) if self._reads_turned(reader, value)]
        if not wanting:
            return
        node, given = value.producer(), self.region.gives(value)
        taking = next((reader for reader in readers(value) if self.region.takes(reader, value)), None)
        if given and node is not None:
            turned = node.inputs[0]
            for reader in readers(value):
                if reader.op_type == "Shape" and self.region.follows(reader, value):
                    _reread(reader, value, turned)
                    self._follow(reader, inverse(order))
        elif taking is not None:
            self.writer.graph.remove(taking)
            self._put(taking, node)  # a reader may stand before it
            turned = taking.outputs[0]
        else:
            turned_shape = None if shape is None else ir.Shape([shape[axis] for axis in order])
            turned = self._transpose(value, order, node, turned_shape)
        assert turned is not None
        for reader in wanting:
            _reread(reader, value, turned)
        if given and node is not None and not value.uses() and not value.is_graph_output():
            self.gone.append(node)

    def _follow(self, reader: ir.Node, back: Order) -> None:
        """Let a Transpose or a Shape that now reads a value in the region's order give what it gave."""
        if reader.op_type == "Transpose":
            order = permutation(reader)
            assert order is not None
            reader.attributes["perm"] = ir.AttrInt64s("perm", [back[axis] for axis in order])
            return
        start, end = reader.attributes.get_int("start", 0), reader.attributes.get_int("end", len(back))
        reader.attributes.clear()
        indices = self.writer.put(f"{reader.name}.axes", np.array(back[start:end], np.int64))
        sizes = reader.outputs[0]
        gather = ir.node("Gather", [sizes, indices], {"axis": 0}, name=unique(f"{reader.name}/Gather", self.writer.taken))
        gather.outputs[0].type, gather.outputs[0].shape = sizes.type, sizes.shape
        uses = [(use.node, use.idx) for use in sizes.uses() if use.node is not gather]
        for node, index in uses:
            node.replace_input_with(index, gather.outputs[0])
        gather.outputs[0].name = unique(f"{sizes.name}.as_was", self.writer.taken)
        if sizes.is_graph_output():
            sizes.name, gather.outputs[0].name = gather.outputs[0].name, sizes.name
            self.writer.graph.outputs[list(self.writer.graph.outputs).index(sizes)] = gather.outputs[0]
        sizes.shape = ir.Shape([len(back)])
        self.writer.graph.insert_after(reader, gather)

    def _transpose(self, value: ir.Value, order: Order, place: ir.Node | None, shape: ir.Shape | None) -> ir.Value:
        node = ir.node("Transpose", [value], {"perm": list(order)})
        new = node.outputs[0]
        new.name, new.type, new.shape = unique(f"{value.name}.transposed", self.writer.taken), value.type, shape
        self._put(node, place)
        self.made.append(node)
        return new

    def _put(self, node: ir.Node, place: ir.Node | None) -> None:
        """Right behind what it reads: another node, or an input of the graph."""
        if place is not None:
            self.writer.graph.insert_after(place, node)
        else:
            self.writer.graph.insert_before(self.writer.graph[0], node)


def _reread(reader: ir.Node, old: ir.Value, new: ir.Value | None) -> None:
    for index, value in enumerate(reader.inputs):
        if value is old:
            reader.replace_input_with(index, new)
