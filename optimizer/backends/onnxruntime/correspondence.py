"""Which layers of the typed graph each kernel of ONNX Runtime's optimized graph computes.

ONNX Runtime renames, merges and moves nodes and tells nobody. What stays is this: a kernel's output mostly keeps the name of
the tensor that it computes, a node that was neither merged nor moved keeps its own, and a changed one keeps it with a suffix.
From these anchors the layers in between are found along the edges of the typed graph.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from optimizer.backends.onnxruntime.operators import APPENDED, MOVES, VIEWS
from optimizer.graph import constant_nodes, readers
from optimizer.model import FOR_LAYER, HELPERS, is_layer

_MAIN = ("Conv", "ConvTranspose", "ConvInteger", "Gemm", "MatMul", "MatMulInteger", "LSTM", "GRU", "RNN", "Attention")
"""Operators that a merged kernel is mainly about."""

_MOVING = ("MatMul", "Gemm", "Attention")
"""Words in the names of merged kernels that read their operands transposed or reshaped themselves."""

_SUFFIXES = re.compile(r"(_token_\d+|_nchwc|_nhwc|_new_reshape|/MatMulAddFusion|/MatMulScaleFusion/?|/ConvAddFusion|/ActivationFusion)$")


@dataclass(frozen=True)
class Kernel:
    """A node of the optimized graph with the layers that it computes, in topological order, and the one it is mainly about."""

    node: ir.Node
    layers: tuple[str, ...]
    main: str


def kernels(typed: ir.Model, optimized: ir.Model) -> tuple[Kernel, ...]:
    """Every node of the optimized graph, in its order, with what it computes; no layers for those that only convert."""
    claims = _Claims(typed, optimized)
    place = {node: number for number, node in enumerate(typed.graph)}
    found: dict[ir.Node, Kernel] = {}
    for node in reversed(optimized.graph):
        kernel = _kernel(node, sorted(claims.owned[node], key=place.__getitem__))
        if not claims.owned[node] and node.op_type not in VIEWS | HELPERS:
            # One layer became several kernels, of which the last has the name: HardSwish is HardSigmoid and Mul.
            main = next((found[reader].main for reader in readers(node.outputs[0]) if found[reader].main), "")
            kernel = Kernel(node, (main,) if main else (), main)
        found[node] = kernel
    return tuple(found[node] for node in optimized.graph)


def _kernel(node: ir.Node, computed: list[ir.Node]) -> Kernel:
    ours = [(layer, inner.op_type) for inner in computed if (layer := _layer(inner))]
    main = next((layer for layer, operator in ours if operator in _MAIN), None) or next(
        (layer for layer, operator in ours if operator in node.op_type), ours[-1][0] if ours else ""
    )
    return Kernel(node, tuple(dict.fromkeys(layer for layer, _ in ours)), main)


def _layer(node: ir.Node) -> str:
    """The layer that a node of the typed graph is, or computes a part of; none for what only converts."""
    if is_layer(node):
        return node.name or ""
    return "" if node.op_type in HELPERS else node.metadata_props.get(FOR_LAYER, "")


class _Claims:
    """Which nodes of the typed graph each kernel computes (`owned`). Nodes that none owns are gone."""

    def __init__(self, typed: ir.Model, optimized: ir.Model) -> None:
        self.owned: dict[ir.Node, list[ir.Node]] = {kernel: [] for kernel in optimized.graph}
        self._claimed: set[ir.Node] = set()
        self._named: set[ir.Node] = set()
        self._producer = {value.name: node for node in typed.graph for value in node.outputs if value.name}
        self._by_name = {node.name: node for node in typed.graph if node.name}
        self._constant = constant_nodes(typed.graph)
        self._by_output(optimized)
        self._by_own_name(optimized)
        for kernel in optimized.graph:
            self._forward(kernel)
        for kernel in optimized.graph:
            self._backward(kernel)

    def _claim(self, node: ir.Node, kernel: ir.Node) -> None:
        """The first kernel that claims a node has it."""
        if node not in self._claimed:
            self._claimed.add(node)
            self.owned[kernel].append(node)

    def _by_output(self, optimized: ir.Model) -> None:
        """A kernel computes the tensor that its output is named after; seen through conversions that ONNX Runtime put in."""
        stands = {value: value.name for node in optimized.graph for value in node.outputs if value.name in self._producer}
        for kernel in reversed(optimized.graph):
            names = [stands[value] for value in kernel.outputs if value in stands]
            if names and self._put_in(kernel, self._producer[names[0]]):
                if kernel.inputs[0] is not None:
                    stands.setdefault(kernel.inputs[0], names[0])
                continue
            for name in names:
                self._claim(self._producer[name], kernel)
                self._named.add(kernel)

    def _put_in(self, kernel: ir.Node, producer: ir.Node) -> bool:
        """Whether a conversion carries the name of what was computed before it."""
        return kernel.op_type in VIEWS and kernel.op_type != producer.op_type and kernel.name not in self._by_name

    def _by_own_name(self, optimized: ir.Model) -> None:
        """A kernel computes the node that it is named after, as it stands or with suffixes, or the tensor (`y_nchwc`)."""
        for kernel in optimized.graph:
            for name in _stripped(kernel.name or ""):
                node = self._by_name.get(name) or self._producer.get(name)
                if node is not None:
                    self._claim(node, kernel)
                    break

    def _forward(self, kernel: ir.Node) -> None:
        """A kernel whose output has a name of ONNX Runtime's own ends where the chain behind its last known layer does."""
        if kernel in self._named or not self.owned[kernel]:
            return
        node = self.owned[kernel][-1]
        while len(followers := readers(node.outputs[0])) == 1 and not node.outputs[0].is_graph_output():
            following = followers[0]
            if following in self._claimed or not _appends(kernel, following):
                break
            self._claim(following, kernel)
            node = following

    def _backward(self, kernel: ir.Node) -> None:
        """What a kernel needs and no other kernel computes is inside it, unless it was computed before the run or removed.

        Where a kernel that nothing is known of stands before it, that one computes it; a conversion computes nothing.
        """
        owned = list(self.owned[kernel])
        moves = any(word in kernel.op_type for word in _MOVING) and kernel.op_type not in {node.op_type for node in owned}
        inside = self._unknown_before(kernel) or (kernel if kernel.op_type not in HELPERS else None)
        seen = set(owned)
        while owned:
            for value in owned.pop().inputs:
                node = value.producer() if value is not None else None
                if node is None or node in seen or node in self._claimed or node in self._constant or not _computes_numbers(node):
                    continue
                seen.add(node)
                owned.append(node)
                if inside is not None and (moves or node.op_type not in MOVES):
                    self._claim(node, inside)

    def _unknown_before(self, kernel: ir.Node) -> ir.Node | None:
        """A kernel that feeds another one, computes, and is the owner of nothing."""
        before = (value.producer() for value in kernel.inputs if value is not None)
        return next((node for node in before if node is not None and not self.owned[node] and node.op_type not in VIEWS | HELPERS), None)


def _stripped(name: str) -> Iterator[str]:
    """A name, and what is left of it as ONNX Runtime's suffixes are taken off one by one."""
    yield name
    while (shorter := _SUFFIXES.sub("", name)) != name:
        name = shorter
        yield name


def _appends(kernel: ir.Node, node: ir.Node) -> bool:
    """Whether a kernel can have taken the node behind it into itself."""
    if node.op_type in APPENDED:
        return "activation" in kernel.attributes or kernel.op_type.startswith("QLinear")
    if node.op_type == "Add":
        bias = any(value is not None and value.const_value is not None for value in node.inputs)
        return len(kernel.inputs) >= (3 if bias else 4)
    return False


def _computes_numbers(node: ir.Node) -> bool:
    """Whether a node yields data; integers in float models are shapes and indices, folded or kept under their own names."""
    dtype = node.outputs[0].dtype
    return dtype is None or dtype.is_floating_point() or dtype in {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32}
