"""Second versions of layers beside the first ones, in one graph: how far their outputs are apart is summed up where it arises.

Only sums leave a run, so that memory does not grow with the activations, and a layer's error is measured on the very numbers
that it meets, by the operator that computes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibration.grid import Grid, Interval
from optimizer.engine import Arrays
from optimizer.graph import clone
from optimizer.precision.writer import Writer
from optimizer.recovery.layers import reduced
from optimizer.reference import Reference

_FLOAT = ir.DataType.FLOAT


class Twins:
    """A clone of a graph with room for second versions; what is added stands behind all that was there."""

    def __init__(self, model: ir.Model) -> None:
        self._model = clone(model)
        self._writer = Writer(self._model.graph)
        self._compared: dict[str, tuple[str, str]] = {}
        self._kept: dict[str, str] = {}
        graph = self._model.graph
        self.nodes = {node.name or "": node for node in graph}
        self.values = {value.name or "": value for value in (*graph.inputs, *(value for node in graph for value in node.outputs))}

    def constant(self, array: NDArray[Any] | np.generic) -> ir.Value:
        return self._writer.constant("twin/constant", array)

    def add(self, operator: str, inputs: Sequence[ir.Value | None], kind: ir.DataType = _FLOAT, **attributes: Any) -> ir.Value:
        """The output of a new node at the end of the graph."""
        listed = ir.convenience.convert_attributes(attributes)
        node = self._writer.node(operator, inputs, f"twin/{operator}", "twin", [(kind, None)], attributes=listed)
        self._model.graph.append(node)
        return node.outputs[0]

    def quantized(self, value: ir.Value, range: Interval, grid: Grid) -> ir.Value:
        """A value rounded to the integers of a range, and back."""
        scale, zero_point = grid.quantization(range)
        step, zero = self.constant(scale), self.constant(np.asarray(zero_point, grid.dtype))
        down = self.add("QuantizeLinear", [value, step, zero], ir.DataType.from_numpy(grid.dtype))
        return self.add("DequantizeLinear", [down, step, zero])

    def beside(self, node: ir.Node, inputs: Mapping[int, ir.Value]) -> ir.Node:
        """A layer's twin, which reads these at some of its places and else what the layer reads."""
        return self.copied(node, [inputs.get(place, value) for place, value in enumerate(node.inputs)])

    def copied(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> ir.Node:
        """The same operator on other inputs; the layer may stand in another graph."""
        outputs = [(value.dtype or _FLOAT, None) for value in node.outputs]
        twin = self._writer.node(node.op_type, inputs, f"{node.name}/twin", node.name or "", outputs, node.domain, node.attributes.values())
        self._model.graph.append(twin)
        return twin

    def compare(self, key: str, exact: ir.Value, other: ir.Value) -> None:
        """`errors` will tell, under this key, the squared error of `other` as a part of the square of `exact`."""
        parts = [self.add("ReduceSumSquare", [value], keepdims=0) for value in (self.add("Sub", [other, exact]), exact)]
        self._compared[key] = (parts[0].name or "", parts[1].name or "")

    def keep(self, key: str, value: ir.Value) -> None:
        """`run` will give this value under this key."""
        self._kept[key] = value.name or ""

    def reduce(self, operator: str, value: ir.Value, node: ir.Node, channels: int) -> ir.Value:
        """What a layer reads or writes reduced to one number for each of its channels."""
        axes = reduced(node)
        if axes is None:
            value, axes = self.add("Reshape", [value, self.constant(np.array([-1, channels], np.int64))]), (0,)
        return self.add(operator, [value, self.constant(np.array(axes, np.int64))], keepdims=0)

    def errors(self, feeds: Sequence[Arrays]) -> dict[str, float]:
        """By key, the squared error over all feeds as a part of the square of what is exact; 0 where both are 0."""
        off: dict[str, float] = dict.fromkeys(self._compared, 0.0)
        size = dict(off)
        names = [name for pair in self._compared.values() for name in pair]
        with closing(Reference(self._model, watch=names)) as reference:
            for feed in feeds:
                found = reference.run(feed)
                for key, (difference, exact) in self._compared.items():
                    off[key] += float(found[difference])
                    size[key] += float(found[exact])
        return {key: off[key] / size[key] if size[key] > 0 else off[key] for key in off}

    def runs(self, feeds: Sequence[Arrays]) -> Iterator[dict[str, NDArray[np.float32]]]:
        """For each feed what was kept, by key."""
        with closing(Reference(self._model, watch=tuple(self._kept.values()))) as reference:
            for feed in feeds:
                found = reference.run(feed)
                yield {key: found[name] for key, name in self._kept.items()}
