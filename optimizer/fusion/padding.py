"""A Pad before a convolution or a pooling becomes padding of its own.

Conv pads with zeros, MaxPool with minus infinity; AveragePool counts what a Pad put there only with count_include_pad.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import input_of, integers, known, producer, rank
from optimizer.fusion.rule import Rule, refused

OUTSIDE = {"Conv": 0.0, "AveragePool": 0.0, "MaxPool": -np.inf}
"""What each operator takes the world outside its input to be."""


class PadInto(Rule):
    """f(Pad(x)) = f(x) with the pads added, where the Pad puts the number that f pads with and touches pixels only."""

    def __init__(self, layer: str) -> None:
        super().__init__(f"Pad into {layer}")
        self.layer = layer

    def pattern(self, op: Any, x: Any) -> Any:
        y = op.Pad(x, _allow_other_inputs=True, _outputs=["y"])
        return getattr(op, self.layer)(y, _allow_other_inputs=True, _outputs=["z"])

    def check(self, _context: Any, x: ir.Value, y: ir.Value, z: ir.Value) -> MatchResult:
        pad, layer = producer(y), producer(z)
        pads = _pads(pad, rank(x))
        if isinstance(pads, str):
            return refused(pads, pad)
        if pad.attributes.get_string("mode", "constant") != "constant":
            return refused("the Pad repeats pixels instead of a constant", pad)
        if _filler(pad) != OUTSIDE[self.layer]:
            return refused(f"the Pad does not put {OUTSIDE[self.layer]:g}", pad)
        if layer.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            return refused("the layer finds its pads by itself", layer)
        return MatchResult() if self.layer == "Conv" else _check_pooling(layer, pads)

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value, z: ir.Value) -> Any:
        layer = producer(z)
        pads = _pads(producer(y), rank(x))
        assert not isinstance(pads, str)
        own = layer.attributes.get_ints("pads", (0,) * len(pads))
        attributes: dict[str, Any] = dict(layer.attributes) | {"pads": [a + b for a, b in zip(own, pads, strict=True)]}
        if self.layer == "AveragePool":
            attributes["count_include_pad"] = 1
        return op.op(self.layer, x, *layer.inputs[1:], **attributes)


def _pads(pad: ir.Node, rank: int | None) -> tuple[int, ...] | str:
    """Pixels before and after each spatial axis, as Conv takes them, or why they can't be had."""
    given = integers(input_of(pad, 1))
    if given is None or rank is None:
        return "the pads are computed"
    axes = tuple(range(rank))
    if (value := input_of(pad, 3)) is not None:
        chosen = integers(value)
        if chosen is None:
            return "the padded axes are computed"
        axes = tuple(axis % rank for axis in chosen)
    before, after = [0] * rank, [0] * rank
    for position, axis in enumerate(axes):
        before[axis], after[axis] = given[position], given[position + len(axes)]
    if any((*before[:2], *after[:2])):
        return "the Pad adds samples or channels"
    if min(given, default=0) < 0:
        return "the Pad cuts pixels off"
    return (*before[2:], *after[2:])


def _filler(pad: ir.Node) -> float | None:
    value = input_of(pad, 2)
    if value is None:
        return 0.0
    array = known(value)
    return None if array is None or array.size != 1 else float(array.reshape(()))


def _check_pooling(layer: ir.Node, pads: tuple[int, ...]) -> MatchResult:
    own = layer.attributes.get_ints("pads", (0,) * len(pads))
    kernel = layer.attributes.get_ints("kernel_shape", ())
    if layer.attributes.get_int("ceil_mode", 0):
        return refused("the last window may reach over the edge", layer)
    if any(size > 1 for size in layer.attributes.get_ints("dilations", ())):
        return refused("the window has holes", layer)
    if any(a + b >= width for a, b, width in zip(own, pads, (*kernel, *kernel), strict=True)):
        return refused("a window would lie outside the input", layer)
    if layer.op_type == "AveragePool" and any(own) and not layer.attributes.get_int("count_include_pad", 0):
        return refused("the pooling leaves its own padding out of the average", layer)
    return MatchResult()


RULES: tuple[Rule, ...] = tuple(PadInto(layer) for layer in OUTSIDE)
