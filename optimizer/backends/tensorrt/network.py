"""The typed graph as a file that the builder reads, with names that its layer list can be read back by."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from optimizer.errors import InputError, UnavailableError
from optimizer.graph import clone, names, save, unique
from optimizer.model import FOR_LAYER, SHAPES, is_layer
from optimizer.plan import Shape

_FILE = "network.onnx"
_BRACKETS = str.maketrans({"[": "(", "]": ")"})


_LONGEST_NAME = 1000
"""TensorRT-RTX takes no input with a name of 10,000 letters; a thousand were taken everywhere."""


@dataclass(frozen=True)
class Network:
    """A written graph: its file and, by the name that a node has there, the user's layer that it is or serves ("" for none)."""

    file: Path
    layers: Mapping[str, str]


def written(graph: ir.Model, folder: Path) -> Network:
    """Write the graph into `folder`, weights beside it, and have ONNX's checker look at it.

    TensorRT-RTX brackets node names in its layer list, so brackets in a name become round ones there; nodes of a subgraph count
    for the node that holds it.

    Raises:
        UnavailableError: an input or output has a name that an engine can't have.
        InputError: the checker refuses the graph, which TensorRT's parser might have taken and understood in its own way.
    """
    copy = clone(graph)
    for value in (*copy.graph.inputs, *copy.graph.outputs):
        if not (value.name or "").isprintable() or len(value.name or "") > _LONGEST_NAME:
            raise UnavailableError(
                f"TensorRT takes no input or output called {(value.name or '')[:60]!r}: the name is too long or can't be printed.",
                f"Rename it: at most {_LONGEST_NAME:,} letters that can be printed.",
            )
    layers: dict[str, str] = {}
    taken = names(copy.graph)
    for node in copy.graph:
        layer = _layer(node)
        for inner in (node, *_inside(node)):
            name = plain(inner.name or "")
            if name != inner.name or name in layers or not name:
                inner.name = unique(name or inner.op_type, taken)
            layers[inner.name] = layer
            for value in inner.outputs:
                if (shown := plain(value.name or "")) != value.name and not value.is_graph_output():
                    value.name = unique(shown, taken)
    file = folder / _FILE
    save(copy, file, beside=f"{_FILE}.data")
    try:
        onnx.checker.check_model(file)
    except onnx.checker.ValidationError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"ONNX's checker refuses the typed graph: {reason[:400]}.", "Check the model with onnx.checker, or take --precision fp16."
        ) from None
    return Network(file, layers)


def plain(name: str) -> str:
    """A layer's name as its node has it in the network."""
    return "".join(letter if letter.isprintable() else " " for letter in name.translate(_BRACKETS))[:_LONGEST_NAME]


def shapes_of(graph: ir.Model) -> dict[str, Shape]:
    """The shapes of inputs with free dimensions, as the graph's metadata names them.

    Raises:
        InputError: an input has a free dimension and no shapes.
    """
    given = {name: Shape(*map(tuple, sizes)) for name, sizes in json.loads(graph.metadata_props.get(SHAPES, "{}")).items()}
    for value in graph.graph.inputs:
        free = [str(size) for size in value.shape or () if not isinstance(size, int)]
        if free and value.name not in given:
            raise InputError(
                f"Input {value.name!r} has free dimensions ({', '.join(free)}), and an engine needs to know how large they get.",
                f"Fix them with --shapes {value.name}=1x..., or give smallest, usual and largest with --shapes {value.name}=min:opt:max.",
            )
    return given


def _layer(node: ir.Node) -> str:
    if is_layer(node):
        return node.name or ""
    return node.metadata_props.get(FOR_LAYER, "")


def _inside(node: ir.Node) -> Iterable[ir.Node]:
    """The nodes of all subgraphs of a node (branches of If, body of Loop and Scan), at any depth."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                yield from graph.all_nodes()
