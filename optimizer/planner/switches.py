"""What each lowered layer alone does to the outputs, in one session: every rounding of a plan stands in the graph behind a switch.

A session for each set of layers costs more than running it; here a set is a matter of inputs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.graph import clone, constant, readers
from optimizer.plan import Plan, Precision
from optimizer.planner.distance import distance
from optimizer.planner.problem import Problem
from optimizer.precision import settled
from optimizer.precision.spots import common_range, spots
from optimizer.precision.writer import Writer
from optimizer.recovery.form import few, grid_of
from optimizer.recovery.layers import has_matrix, matrix, to_nearest
from optimizer.reference import Reference

_FLOAT = ir.DataType.FLOAT
_HALF = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


class Switches:
    """The model of a problem with the roundings of a plan, each layer's to be switched on alone; `close` gives the session back.

    In INT8 a layer reads rounded activations and weights, in half precision all that it reads and writes is rounded.  What engines
    do beside that (accumulation, Q/DQ of an output that a neighbour reads too) is left out: these numbers rank layers and never decide.
    """

    def __init__(self, problem: Problem, plan: Plan) -> None:
        model = clone(problem.model.graph)
        self._problem, self._graph, self._writer = problem, model.graph, Writer(model.graph)
        plan = settled(problem.model, plan, problem.capability)
        self._ranges = _ranges(problem, plan)
        self._switches = {node.name or "": self._switched(node, plan.precision(node.name or "")) for node in list(model.graph)}
        self._engine = Reference(model)

    def close(self) -> None:
        self._engine.close()

    def error(self, layers: Collection[str], samples: int) -> float:
        """How far these layers alone take the outputs on a few screening samples: `Distance.error`."""
        flags = {name: np.asarray(layer in layers) for layer, name in self._switches.items() if name}
        problem = self._problem
        parent, feeds = few(problem.parent, samples), few(problem.screening, samples)
        return distance(parent, lambda feed: self._engine.run({**feed, **flags}), feeds).error

    def _switched(self, node: ir.Node, how: Precision) -> str:
        """Put a layer's roundings into the graph; the name of the input that switches them on, "" where it has none."""
        places: dict[ir.Value, ir.Value] = {}
        inside = list[ir.Node]()
        for place, value in enumerate(node.inputs):
            if value is not None and value not in places and (found := self._lowered(node, place, value, how, inside)) is not None:
                places[value] = found
        if how not in _HALF and not places:
            return ""
        switch = self._input(f"{node.name}/switch")
        for place, value in enumerate(node.inputs):
            if value is not None and value in places:
                node.replace_input_with(place, self._add("Where", [switch, places[value], value], value.dtype or _FLOAT, inside))
        self._graph.insert_before(node, inside)
        if how in _HALF:
            for value in node.outputs:
                if value.name and value.dtype == _FLOAT:
                    self._round_output(node, value, _HALF[how], switch)
        return switch.name or ""

    def _lowered(self, node: ir.Node, place: int, value: ir.Value, how: Precision, inside: list[ir.Node]) -> ir.Value | None:
        """An input as a layer in this precision reads it; None where it reads it as it is."""
        if how in _HALF:
            return self._halved(value, _HALF[how], inside) if value.dtype == _FLOAT else None
        if not how.startswith("int8"):
            return None
        if place == 1 and has_matrix(node):
            return self._constant(to_nearest(node, matrix(node), self._problem.capability.weight_limit))
        if constant(value) is not None or value.dtype != _FLOAT:
            return None
        if how == "int8_dynamic":
            if place or not has_matrix(node):
                return None
            integers = self._nodes("DynamicQuantizeLinear", [value], [ir.DataType.UINT8, _FLOAT, ir.DataType.UINT8], inside)
            return self._add("DequantizeLinear", integers, _FLOAT, inside)
        if value.name not in self._ranges:
            return None
        grid = grid_of(self._problem.capability)
        scale, zero_point = self._ranges[value.name]
        step, zero = self._constant(scale), self._constant(zero_point)
        down = self._add("QuantizeLinear", [value, step, zero], ir.DataType.from_numpy(grid.dtype), inside)
        return self._add("DequantizeLinear", [down, step, zero], _FLOAT, inside)

    def _round_output(self, node: ir.Node, value: ir.Value, half: ir.DataType, switch: ir.Value) -> None:
        behind = list[ir.Node]()
        users, output = readers(value), value.is_graph_output()
        rounded = self._add("Where", [switch, self._halved(value, half, behind), value], _FLOAT, behind)
        for user in users:
            for place, read in enumerate(user.inputs):
                if read is value:
                    user.replace_input_with(place, rounded)
        self._graph.insert_after(node, behind)
        if output:
            name, at = value.name, list(self._graph.outputs).index(value)
            value.name = self._writer.free(f"{name}/exact")
            rounded.name = name
            self._graph.outputs[at] = rounded

    def _halved(self, value: ir.Value, half: ir.DataType, into: list[ir.Node]) -> ir.Value:
        """A value rounded to half precision, and back."""
        return self._add("Cast", [self._add("Cast", [value], half, into, to=half.value)], _FLOAT, into, to=_FLOAT.value)

    def _input(self, name: str) -> ir.Value:
        value = ir.Value(name=self._writer.free(name), shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
        self._graph.inputs.append(value)
        return value

    def _constant(self, array: NDArray[Any] | np.generic) -> ir.Value:
        return self._writer.constant("switched/constant", array)

    def _add(self, operator: str, inputs: list[ir.Value], kind: ir.DataType, into: list[ir.Node], **attributes: Any) -> ir.Value:
        return self._nodes(operator, inputs, [kind], into, **attributes)[0]

    def _nodes(
        self, operator: str, inputs: list[ir.Value], kinds: list[ir.DataType], into: list[ir.Node], **attributes: Any
    ) -> list[ir.Value]:
        listed = ir.convenience.convert_attributes(attributes)
        node = self._writer.node(operator, inputs, f"switched/{operator}", "switched", [(kind, None) for kind in kinds], attributes=listed)
        into.append(node)
        return list(node.outputs)


def _ranges(problem: Problem, plan: Plan) -> dict[str, tuple[NDArray[np.float32], NDArray[Any]]]:
    """Scale and zero point of each tensor that the plan quantizes; those of one group share one."""
    if not plan.ranges:
        return {}
    grid = grid_of(problem.capability)
    members: dict[str, list[str]] = {}
    for name, first in spots(problem.model.graph.graph, plan, problem.capability).groups.items():
        members.setdefault(first, []).append(name)
    found = {}
    for names in members.values():
        scale, zero_point = grid.quantization(common_range(plan.ranges[name] for name in names))
        found.update({name: (np.asarray(scale, np.float32), np.asarray(zero_point, grid.dtype)) for name in names})
    return found
