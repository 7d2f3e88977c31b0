"""Layers by the names that a TensorFlow user knows: Keras's layer names, or the scopes of the graph.

A tensor is called after the scopes that its operator was made in: `StatefulPartitionedCall/functional_1/stem_bn_1/batchnorm/mul_1:0`
belongs to the layer `stem_bn`.  What saving and calling put around the user's scopes (calls of functions, the model's own name, a
number at the end of each) is taken away, and so are the scopes inside TensorFlow's own functions.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence

import onnx_ir as ir

from optimizer.graph import unique

_WORKERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Loop", "BatchNormalization"})
"""Operators that are what their layer is about."""

_CARRIERS = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Identity", "Slice", "Expand", "Concat", "Gather"})
"""Operators that a converter puts around the one that a layer is about."""

_CALL = re.compile(r"(Stateful|Stateless)?PartitionedCall(_\d+)?|Func|jit_.*|\w*while_(cond|body)_\w*")
_CONVERTERS = re.compile(r"[A-Za-z0-9]+__\d+")
"""A name that the converter made up."""

_INSIDE = frozenset({"batchnorm", "Gelu", "Tensordot", "moments", "dropout", "zeros", "zeros_1", "while", "BiasAdd", "TensorArrayUnstack"})
"""Scopes that TensorFlow's own functions open."""


def name_layers(model: ir.Model, layers: Collection[str]) -> dict[str, str]:
    """Name the nodes of the main graph, in place; tells what they were called before. `layers` are paths known to be layers.

    The node that does a layer's work, else the one that gives its result, has the layer's name; the others add their operator.
    """
    paths = {node: _path(node) for node in model.graph}
    common = _common(path for path in paths.values() if len(path) > 1)
    scopes = {path[len(common)] for path in paths.values() if len(path) > len(common) + 1 and path[: len(common)] == common}
    numbered = _numbered(scopes, layers)
    named: dict[ir.Node, str] = {}
    for node, path in paths.items():
        if path:
            inner = path[len(common) :] if path[: len(common)] == common and len(path) > len(common) else path
            named[node] = _layer([re.sub(r"_\d+$", "", part) if numbered else part for part in inner[:1]] + list(inner[1:]), layers)
    for node in model.graph:
        if node not in named:
            named[node] = _beside(node, named) or node.op_type
    return _write(model, named)


def _write(model: ir.Model, named: dict[ir.Node, str]) -> dict[str, str]:
    workers = {named[node] for node in model.graph if node.op_type in _WORKERS}
    last = {named[node]: node for node in model.graph} | {named[node]: node for node in model.graph if node.op_type not in _CARRIERS}
    taken: set[str] = set()
    before: dict[str, str] = {}
    for node in model.graph:
        base = named[node]
        plain = node.op_type in _WORKERS or (base not in workers and last[base] is node)
        name = unique(base if plain else f"{base}/{node.op_type}", taken)
        before[node.name or ""] = name
        node.name = name
    return before


def _path(node: ir.Node) -> list[str]:
    """The scopes of a node and the name of its operator; empty where the converter made the name up."""
    for name in filter(None, (node.name, *(value.name for value in node.outputs))):  # a node that took in a bias goes by the tensor
        made_of = name.split(";")  # TensorFlow Lite names an operator after all that it was made of, the last first
        name = made_of[-1] if node.op_type in _WORKERS else made_of[0]
        plain = re.sub(r"__\d+$", "", name.split(":")[0]) if "/" in name else name.split(":")[0]
        parts = [part for part in plain.split("/") if not _CALL.fullmatch(part)]
        if parts and not _CONVERTERS.fullmatch(plain):
            return parts
    return []


def _common(paths: Iterable[Sequence[str]]) -> Sequence[str]:
    """The scope that everything lies in: the model's own name."""
    tops = [path[0] for path in paths if len(path) > 2]
    return tops[:1] if tops and len(set(tops)) == 1 else []


def _numbered(scopes: Collection[str], layers: Collection[str]) -> bool:
    """Whether all scopes end in a number: Keras 3 gives them one when it calls a model for the second time."""
    told = len(scopes) > 1 or all(scope not in layers and scope[:-2] in layers for scope in scopes)
    return told and all(scope.endswith("_1") for scope in scopes)


def _layer(path: Sequence[str], layers: Collection[str]) -> str:
    """The longest beginning of a path that is known to be a layer, else its scopes up to the first of TensorFlow's own."""
    for end in range(len(path), 0, -1):
        if "/".join(path[:end]) in layers:
            return "/".join(path[:end])
    scopes = list(path[:-1]) or list(path)
    inside = next((place for place, scope in enumerate(scopes) if place and scope in _INSIDE), len(scopes))
    return "/".join(scopes[:inside])


def _beside(node: ir.Node, named: dict[ir.Node, str]) -> str | None:
    """The layer of what the node's weight was called after, of what reads it, or of what it reads."""
    for neighbours in (_readers(node), _read(node)):
        for neighbour in neighbours:
            if neighbour in named:
                return named[neighbour]
    return None


def _readers(node: ir.Node) -> Iterator[ir.Node]:
    open_ = [node]
    for one in open_:
        for value in one.outputs:
            for reader in value.consumers():
                if reader not in open_:
                    yield reader
                    open_.append(reader)


def _read(node: ir.Node) -> Iterator[ir.Node]:
    open_ = [node]
    for one in open_:
        for value in one.inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and producer not in open_:
                yield producer
                open_.append(producer)
