"""What rounding explains: the same graph with each number moved at random by what a rounding step of its layer's precision is.

A difference between two forms of a model is no fault where the graph itself answers to such moves with as much: stochastic
arithmetic (Parker, Monte Carlo Arithmetic, 1997; Vignes, CESTAC, 1974), with the step taken from the precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.graph import add_initializer, clone, constant, infer_shapes, names, unique
from optimizer.model import PLANNED

_RELATIVE = {"fp32": 2.0**-21, "bf16": 2.0**-7, "fp16": 2.0**-10}
"""Largest growth of a number, as a part of it: one rounding step of a half type; four of float32, so that the growth is not itself
lost in rounding."""

_INTEGERS = 1.0 / 127.0
"""One step of a symmetric 8-bit grid as a part of the largest magnitude it covers."""

_PERIOD = 1021
"""Random numbers of a tensor, repeated along its elements: a prime, so that the rows of no tensor repeat them in step."""

_FEW = 1024
"""Numbers of a constant up to which it is looked at whether they are whole."""

_LARGEST = 1 << 24
"""Bytes of a weight above which it stays as it is: moving it takes several copies, and moving what it is multiplied with does as much."""

_COARSEST = ("int8", "int8_dynamic", "bf16", "fp16", "fp32")

_EXACT = frozenset({"QuantizeLinear", "DequantizeLinear", "Resize", "Upsample", "Range", "OneHot"})
"""Operators whose constants are decisions (scales, sizes), the same numbers in every form of a model."""


def planned(graph: ir.Model) -> dict[str, str]:
    """The precision that a typed graph's layers have, by layer; empty for a graph without a plan."""
    return {node.name or "": node.metadata_props[PLANNED] for node in graph.graph if PLANNED in node.metadata_props}


def lossy(precisions: Mapping[str, str]) -> bool:
    """Whether any layer is in less than FP32."""
    return any(precision != "fp32" for precision in precisions.values())


def shaken(graph: ir.Model, precisions: Mapping[str, str], seed: int) -> ir.Model:
    """A copy of `graph` in which every float32 number of the main graph is moved by up to one rounding step.

    The step is that of the coarsest layer which writes or reads the tensor; layers not in `precisions` are float32.  There and in
    half precision numbers only grow in magnitude, so that an index in a float input still means the same row; on an 8-bit grid they
    move both ways by up to half a step.
    """
    copy = clone(graph)
    main = copy.graph
    if any(value.dtype is None for node in main for value in node.outputs):
        infer_shapes(copy)
    values = [*main.inputs, *main.initializers.values(), *(value for node in main for value in node.outputs)]
    values = [value for value in values if not _large_weight(value)]
    mover = _Mover(main, seed)
    for value in values:
        if value.dtype == ir.DataType.FLOAT and value.name and not _decided(value):
            mover.move(value, _coarsest(value, precisions))
    return copy


def _large_weight(value: ir.Value) -> bool:
    """Whether a value is a large constant, or one dequantized."""
    node = value.producer()
    stored = node.inputs[0] if node is not None and node.op_type == "DequantizeLinear" else value
    tensor = stored.const_value if stored is not None else None
    return tensor is not None and tensor.nbytes > _LARGEST


def _decided(value: ir.Value) -> bool:
    """Whether a value is a constant that no rounding touches: one that an operator goes by, or a few whole numbers (a power of 2)."""
    known = constant(value)
    if known is None:
        return False
    whole = known.size <= _FEW and np.array_equal(known, np.rint(known))
    return whole or any(use.node.op_type in _EXACT for use in value.uses())


def _coarsest(value: ir.Value, precisions: Mapping[str, str]) -> str:
    producer = value.producer()
    nodes = [*([] if producer is None else [producer]), *(use.node for use in value.uses())]
    found = {precisions.get(node.name or "", "fp32") for node in nodes}
    return next((precision for precision in _COARSEST if precision in found), "fp32")


class _Mover:
    """Puts the nodes that move a value behind it, under free names.

    The random numbers are a table of the value's own, repeated: ONNX Runtime has no random operators in the newest opsets.
    """

    def __init__(self, graph: ir.Graph, seed: int) -> None:
        self._graph = graph
        self._taken = names(graph)
        self._draw = np.random.default_rng(seed)
        self._step = self._constant("grid step", np.asarray(_INTEGERS, np.float32))
        self._period = self._constant("period", np.asarray(_PERIOD))
        self._zero, self._one = self._constant("zero", np.asarray([0])), self._constant("one", np.asarray([1]))

    def move(self, value: ir.Value, precision: str) -> None:
        """All that read `value`, the caller too, read it moved by what rounding in `precision` may do."""
        nodes: list[ir.Node] = []

        def op(operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
            node = ir.node(operator, inputs, attributes, name=unique(f"{value.name}/moved/{operator}", self._taken))
            node.outputs[0].name = node.name
            nodes.append(node)
            return node.outputs[0]

        integers = precision.startswith("int8")
        low, high = (-0.5, 0.5) if integers else (0.0, _RELATIVE[precision])
        numbers = self._constant(f"{value.name}/chance", self._draw.uniform(low, high, _PERIOD).astype(np.float32))
        count = op("Size", value)
        tiled = op("Tile", numbers, op("Add", op("Div", count, self._period), self._one))
        cut = op("Slice", tiled, self._zero, op("Add", count, self._zero))
        chance = op("Reshape", cut, op("Shape", value), allowzero=1)
        size = op("Mul", op("ReduceMax", op("Abs", value), keepdims=0), self._step) if integers else value
        moved = op("Add", value, op("Mul", chance, size))
        moved.type, moved.shape = value.type, value.shape
        self._place(value, nodes, moved)

    def _constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        return add_initializer(self._graph, unique(name, self._taken), array)

    def _place(self, value: ir.Value, nodes: list[ir.Node], moved: ir.Value) -> None:
        """All that read `value`, the caller too, read `moved`, which takes over the name of an output."""
        inside = {id(node) for node in nodes}
        producer = value.producer()
        for use in value.uses():
            if id(use.node) not in inside:
                use.node.replace_input_with(use.idx, moved)
        for index, output in enumerate(self._graph.outputs):
            if output is value:
                self._graph.outputs[index] = moved
                value.name, moved.name = moved.name, value.name
        if producer is not None:
            self._graph.insert_after(producer, nodes)
        else:
            self._graph.insert_before(self._graph[0], nodes)
