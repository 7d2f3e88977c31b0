"""The kernels that OpenVINO's CPU plugin runs, each with the layers that it computes: told by names, or by where it stands."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from optimizer.graph import readers
from optimizer.model import FOR_LAYER, is_layer

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_HOLD_PRODUCTS = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul", "Subgraph"})

_OF_NO_LAYER = frozenset({"Const", "Input", "Output", "Reorder"})
"""Kinds of kernels that hold numbers or carry them from one form to another."""


@dataclass(frozen=True)
class Kernel:
    """A node of the plugin's own graph.

    `layers` are computed by it, in whole or in part, the one that it is about first; of `quantizes` it computes Q/DQ.  `bytes` are
    those of its outputs, where their sizes are known; `reads` the numbers of its sources.  A `constant` one runs before the first run.
    """

    layers: tuple[str, ...]
    quantizes: tuple[str, ...]
    kind: str
    primitive: str
    precision: str
    ms: float | None
    bytes: int | None
    reads: tuple[int, ...]
    constant: bool = False

    @property
    def owner(self) -> str:
        """The layer that its time belongs to; "" for what only carries numbers from one kernel to another."""
        return next(iter((*self.layers, *self.quantizes)), "")


def kernels_from(told: Sequence[Mapping[str, Any]], graph: ir.Model) -> tuple[Kernel, ...]:
    """The kernels as the worker tells them, in the order of a run; `graph` is the typed one that they compute."""
    return _remembered(graph, _attributed(_constants_marked([_kernel(one) for one in told])))


def layer_of(node: ir.Node) -> str:
    """The layer that a node of the typed graph is, or was put in for; "" where it is neither."""
    return node.metadata_props.get(FOR_LAYER) or (node.name or "" if is_layer(node) else "")


def _kernel(told: Mapping[str, Any]) -> Kernel:
    return Kernel(
        layers=tuple(told["layers"]),
        quantizes=tuple(told["quantizes"]),
        kind=told["kind"],
        primitive=told["primitive"],
        precision=told["precision"],
        ms=told["ms"],
        bytes=told["bytes"],
        reads=tuple(told["reads"]),
    )


def _constants_marked(kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels, told which of them give the same numbers in every run; those take no time and are no layer's."""
    marked: list[Kernel] = []
    for kernel in kernels:
        if kernel.kind == "Const" or (kernel.reads and all(marked[number].constant for number in kernel.reads)):
            kernel = replace(kernel, layers=(), quantizes=(), ms=None, constant=True)
        marked.append(kernel)
    return marked


def _attributed(kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels, those that compute and that no name leads from given to the layer that reads what they compute.

    So are parts of a layer that the plugin took apart: a bidirectional LSTM is two kernels without a name.
    """
    named = [kernel.layers for kernel in kernels]
    for number in reversed(range(len(kernels))):
        for source in kernels[number].reads:
            if named[number] and not kernels[source].owner and not kernels[source].constant and not named[source]:
                named[source] = named[number][:1]
    return [
        kernel if kernel.kind in _OF_NO_LAYER else replace(kernel, layers=layers) for kernel, layers in zip(kernels, named, strict=True)
    ]


def _remembered(graph: ir.Model, kernels: Sequence[Kernel]) -> tuple[Kernel, ...]:
    """The kernels, with the products in them that OpenVINO forgot to name: merged with what follows, that alone gives its name."""
    named = {layer for kernel in kernels for layer in kernel.layers}
    holds = [(number, kernel) for number, kernel in enumerate(kernels) if kernel.kind in _HOLD_PRODUCTS]
    place = {layer: number for number, kernel in reversed(holds) for layer in kernel.layers}
    found = list(kernels)
    for node in graph.graph:
        if node.op_type in PRODUCTS and node.name not in named and (number := place.get(_following(node, named))) is not None:
            found[number] = replace(found[number], layers=(node.name or "", *found[number].layers))
    return tuple(found)


def _following(node: ir.Node, named: Collection[str]) -> str:
    """The nearest layer behind that a kernel computes, where one way leads there; else ""."""
    while len(after := {reader for value in node.outputs for reader in readers(value)}) == 1:
        node = after.pop()
        if (layer := layer_of(node)) in named:
            return layer
    return ""
