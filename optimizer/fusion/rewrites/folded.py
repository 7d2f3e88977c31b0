"""What a rewrite has folded into channels stays folded for as long as the next operator can read it so.

    f(DepthToSpace(x)) = DepthToSpace(f(x))  for an f that takes each number alone,
    Conv1(DepthToSpace(x)) = DepthToSpace(Conv1'(x))  with  W'[(p, q, oc), (p, q, ic)] = W[oc, ic],

so that the activation stays with its convolution, and what is laid back is the smaller the later that happens.  The same holds for
the Reshapes and Transposes that lay back blocks that are not square.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import input_of, known, number, producer
from optimizer.fusion.rewrites.blocks import LANES
from optimizer.fusion.rewrites.writing import constant, same_numbers
from optimizer.fusion.rule import Rule, refused
from optimizer.model import SAME_NUMBERS

ALONE = (
    *("Abs", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish", "Neg", "Relu", "Sigmoid"),
    *("Softplus", "Softsign", "Sqrt", "Tanh"),
)
"""Operators that take each number alone."""

WITH_NUMBER = ("Add", "Div", "Mul", "Pow", "Sub")
"""Operators that take each number with one constant."""

MOVERS = ("DepthToSpace", "Reshape", "Transpose")
"""What lays back."""


class BeforeMoving(Rule):
    """f(M(x)) = M(f(x)) for an M that only moves numbers: those of a rewrite if `ours`, else any DepthToSpace."""

    def __init__(self, operator: str, mover: str, *, ours: bool) -> None:
        super().__init__(f"{operator} before {mover}")
        self.operator = operator
        self.mover = mover
        self.ours = ours

    def pattern(self, op: Any, x: Any) -> Any:
        moved = getattr(op, self.mover)(x, _allow_other_inputs=True, _outputs=["moved"])
        return getattr(op, self.operator)(moved, _allow_other_inputs=True, _outputs=["y"])

    def check(self, _context: Any, x: ir.Value, y: ir.Value, **_: Any) -> MatchResult:
        if self.ours and SAME_NUMBERS not in x.metadata_props:
            return refused("no rewrite has moved these numbers", x)
        if any(value is not None and number(value) is None for value in producer(y).inputs[1:]):
            return refused("the other operand is not one constant", y)
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, moved: ir.Value, y: ir.Value) -> Any:
        node, mover = producer(y), producer(moved)
        others = [
            None if value is None else constant(op, node, f"number{place}", np.asarray(known(value)).reshape(()))
            for place, value in enumerate(node.inputs[1:])
        ]
        first = same_numbers(op.op(self.operator, x, *others, **node.attributes), y)
        return op.op(self.mover, first, *mover.inputs[1:], **mover.attributes)


class PixelwiseBeforeMoving(Rule):
    """A Conv of one pixel with few outputs reads the folded layout; the zeros in its weight are paid by lanes that stood idle."""

    def __init__(self, *, ours: bool) -> None:
        super().__init__("Conv before DepthToSpace")
        self.ours = ours

    def pattern(self, op: Any, x: Any, w: Any) -> Any:
        moved = op.DepthToSpace(x, _allow_other_attributes=True, _outputs=["moved"])
        return op.Conv(moved, w, _allow_other_inputs=True, _outputs=["y"])

    def check(self, _context: Any, x: ir.Value, w: ir.Value, moved: ir.Value, y: ir.Value) -> MatchResult:
        node, weight = producer(y), known(w)
        if self.ours and SAME_NUMBERS not in x.metadata_props:
            return refused("no rewrite has moved these numbers", x)
        if weight is None or (len(node.inputs) > 2 and known(node.inputs[2]) is None) or not pixelwise(node, weight):
            return refused("it is no convolution of single pixels with known weights", node)
        if weight.shape[0] * producer(moved).attributes.get_int("blocksize", 1) ** 2 > LANES:
            return refused("its output channels fill the vector registers", node)
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, w: ir.Value, moved: ir.Value, y: ir.Value) -> Any:
        node, mover, weight = producer(y), producer(moved), known(w)
        assert weight is not None
        size = mover.attributes.get_int("blocksize", 1)
        by_channel = mover.attributes.get_string("mode", "DCR") == "CRD"
        inputs = [x, constant(op, w, "folded", _folded(weight, size**2, by_channel))]
        if (bias := known(input_of(node, 2))) is not None:
            inputs.append(constant(op, w, "biases", np.tile(bias, size**2)))
        return op.DepthToSpace(same_numbers(op.Conv(*inputs), y), blocksize=size, mode="DCR")


def pixelwise(node: ir.Node, weight: NDArray[Any]) -> bool:
    """Whether a Conv computes each pixel from the same pixel of all channels."""
    single = weight.shape[2:] == (1,) * (weight.ndim - 2) and node.attributes.get_int("group", 1) == 1
    still = not any(node.attributes.get_ints("pads", ())) and all(step == 1 for step in node.attributes.get_ints("strides", ()))
    return single and still and weight.ndim == 4


def _folded(weight: NDArray[Any], pixels: int, by_channel: bool) -> NDArray[Any]:
    """Shape (pixels * oc, pixels * ic, 1, 1); columns in the order (ic, pixel) if `by_channel`, else (pixel, ic)."""
    outputs, inputs = weight.shape[:2]
    wide = np.kron(np.eye(pixels, dtype=weight.dtype), weight[:, :, 0, 0])
    if by_channel:
        wide = wide.reshape(-1, pixels, inputs).swapaxes(1, 2)
    return wide.reshape(pixels * outputs, pixels * inputs, 1, 1)


RULES: tuple[Rule, ...] = (
    *(BeforeMoving(operator, "DepthToSpace", ours=False) for operator in (*ALONE, *WITH_NUMBER)),
    PixelwiseBeforeMoving(ours=False),
)
"""On what the user folded."""

BEHIND: tuple[Rule, ...] = (
    *(BeforeMoving(operator, mover, ours=True) for operator in (*ALONE, *WITH_NUMBER) for mover in MOVERS),
    PixelwiseBeforeMoving(ours=True),
)
"""Behind a rewrite, as part of it."""
