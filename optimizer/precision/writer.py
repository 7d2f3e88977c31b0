"""Puts helper nodes and constants into one graph under free names, each marked with the layer that it is for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.graph import add_initializer, names, unique
from optimizer.model import FOR_LAYER, is_layer


class Writer:
    """Knows the names that are taken; lives as long as one step that changes `graph` in place."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._taken = names(graph)

    def free(self, name: str) -> str:
        """This name, or one like it that nothing in the graph has."""
        return unique(name, self._taken)

    def constant(self, name: str, array: NDArray[Any] | np.generic) -> ir.Value:
        return add_initializer(self.graph, unique(name, self._taken), np.asarray(array))

    def node(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        layer: str,
        outputs: Sequence[tuple[ir.DataType, ir.Shape | None]],
        domain: str = "",
        attributes: Iterable[ir.Attr] = (),
    ) -> ir.Node:
        """A node that is not yet in the graph, with outputs of these types and shapes, for `layer`."""
        node = ir.Node(domain, operator, inputs, attributes, num_outputs=len(outputs), name=unique(name, self._taken))
        node.metadata_props[FOR_LAYER] = layer
        for index, (value, (dtype, shape)) in enumerate(zip(node.outputs, outputs, strict=True)):
            value.name = unique(f"{name}/out" if len(outputs) == 1 else f"{name}/out{index}", self._taken)
            value.shape, value.type = shape, ir.TensorType(dtype)
        return node

    def place_behind(self, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
        """Right behind what makes the value; at the head of the graph where it is an input."""
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, nodes)
        else:
            self.graph.insert_before(self.graph[0], nodes)

    def take_over(self, value: ir.Value, successor: ir.Value, suffix: str, through: ir.Node) -> None:
        """All that reads `value`, the caller too, reads `successor`, which takes its name; `through` alone still reads `value`."""
        name = value.name or ""
        value.replace_all_uses_with(successor, replace_graph_outputs=True)
        through.replace_input_with(0, value)
        value.name = unique(f"{name}/{suffix}", self._taken)
        successor.name = name

    def replace(
        self, node: ir.Node, domain: str, operator: str, inputs: Sequence[ir.Value | None], attributes: Iterable[ir.Attr] = ()
    ) -> None:
        """Another form of a layer in its place, under its name, writing the same values."""
        new = ir.Node(domain, operator, inputs, attributes, num_outputs=len(node.outputs), name=node.name)
        new.metadata_props.update(node.metadata_props)
        for old, value in zip(node.outputs, new.outputs, strict=True):
            value.shape, value.type = old.shape, old.type
            old.replace_all_uses_with(value, replace_graph_outputs=True)
            value.name = old.name
        self.graph.insert_before(node, new)
        self.graph.remove(node, safe=True)
        self.graph.opset_imports.setdefault(domain, 1)


def layer_of(value: ir.Value) -> str:
    """The layer that makes a value, or else the first that reads it: whom a helper on that value is for."""
    producer = value.producer()
    nodes = [*([] if producer is None else [producer]), *(use.node for use in value.uses())]
    named = (node.metadata_props.get(FOR_LAYER) or (node.name if is_layer(node) else None) for node in nodes)
    return next((name for name in named if name), "")
