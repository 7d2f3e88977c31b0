"""Conv, ConvTranspose, Gemm and MatMul take in the scale and shift of a channel that stands behind or before them.

Behind: s * (W x + b) + t = (s W) x + (s b + t).  Before: W (s x + t) + b = (W s) x + (W t + b), where a padded convolution
refuses the shift, since padding puts zeros where t would stand.  A BatchNormalization at inference is one such scale and
shift.  Depthwise and grouped convolutions share out the channels over their groups.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult

from optimizer.fusion import channels, linear
from optimizer.fusion.conditions import producer, rank, size
from optimizer.fusion.rule import Rule, refused


class Behind(Rule):
    """A scale or shift behind a linear node goes into its weight and bias; a MatMul of matrices with a bias becomes a Gemm."""

    def __init__(self, layer: str, operator: str) -> None:
        super().__init__(f"{operator} into {layer}")
        self.layer = layer
        self.operator = operator

    def pattern(self, op: Any, x: Any, c: Any) -> Any:
        y = getattr(op, self.layer)(x, _allow_other_inputs=True, _outputs=["y"])
        if self.operator == "BatchNormalization":
            return op.BatchNormalization(y, c, _allow_other_inputs=True, _outputs=["z"])
        return getattr(op, self.operator)(y, c, _outputs=["z"])

    def check(self, _context: Any, y: ir.Value, z: ir.Value, **_: Any) -> MatchResult:
        found = self._found(y, z)
        return refused(found, y, z) if isinstance(found, str) else MatchResult()

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value, z: ir.Value, **_: Any) -> Any:
        found = self._found(y, z)
        assert not isinstance(found, str)
        return linear.write(op, x, *found, source=producer(z).name or "")

    @staticmethod
    def _found(y: ir.Value, z: ir.Value) -> tuple[linear.Linear, linear.Linear] | str:
        """The layer as it is and as it would be, or why not."""
        before = linear.linear(producer(y))
        if isinstance(before, str):
            return before
        change = channels.affine(producer(z), y, rank=before.rank, axis=before.axis, channels=before.channels)
        if isinstance(change, str):
            return change
        after = linear.changed(before, change, ahead=False)
        return after if isinstance(after, str) else (before, after)


class Before(Rule):
    """A scale or shift before a linear node goes into its weight and bias, where no padding stands between."""

    def __init__(self, operator: str, layer: str) -> None:
        super().__init__(f"{operator} before {layer}")
        self.layer = layer
        self.operator = operator

    def pattern(self, op: Any, x: Any, c: Any) -> Any:
        if self.operator == "BatchNormalization":
            y = op.BatchNormalization(x, c, _allow_other_inputs=True, _outputs=["y"])
        else:
            y = getattr(op, self.operator)(x, c, _outputs=["y"])
        return getattr(op, self.layer)(y, _allow_other_inputs=True, _outputs=["z"])

    def check(self, _context: Any, x: ir.Value, y: ir.Value, z: ir.Value, **_: Any) -> MatchResult:
        found = self._found(x, y, z)
        return refused(found, y, z) if isinstance(found, str) else MatchResult()

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value, z: ir.Value, **_: Any) -> Any:
        found = self._found(x, y, z)
        assert not isinstance(found, str)
        return linear.write(op, x, *found, source=producer(y).name or "")

    @staticmethod
    def _found(x: ir.Value, y: ir.Value, z: ir.Value) -> tuple[linear.Linear, linear.Linear] | str:
        node = producer(z)
        before = linear.linear(node)
        if isinstance(before, str):
            return before
        if node.attributes.get_int("transA", 0):
            return "the input is transposed"
        axis = -1 if node.op_type == "MatMul" else 1
        if size(x, axis) != before.inputs:
            return "the input's channels are not known to be the layer's"
        change = channels.affine(producer(y), x, rank=rank(x), axis=axis, channels=before.inputs)
        if isinstance(change, str):
            return change
        if change.shifts and node.op_type == "Conv" and _padded(node):
            return "padding puts zeros where the shift would stand"
        after = linear.changed(before, change, ahead=True)
        return after if isinstance(after, str) else (before, after)


def _padded(node: ir.Node) -> bool:
    if node.attributes.get_string("auto_pad", "NOTSET") in {"SAME_UPPER", "SAME_LOWER"}:
        return True
    return any(node.attributes.get_ints("pads", ()))


RULES: tuple[Rule, ...] = (
    *(Behind(layer, operator) for layer in linear.OPERATORS for operator in channels.OPERATORS),
    *(Before(operator, layer) for layer in ("Conv", "Gemm", "MatMul") for operator in channels.OPERATORS),
)
