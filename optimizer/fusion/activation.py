"""Activations that an exporter wrote out in primitives: GELU (by erf and by tanh) and HardSwish.

Constants count as right where they are the formula's numbers as the tensor's own type rounds them.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import onnx_ir as ir
from onnxscript.rewriter import MatchResult
from onnxscript.rewriter.pattern import OrValue

from optimizer.fusion.conditions import FLOATS, near, producer
from optimizer.fusion.rule import Rule, either, refused


def _constants(x: ir.Value, *wanted: tuple[ir.Value | None, float]) -> MatchResult:
    """Whether x is of a float type and each constant that was found is the number that the formula has there."""
    if x.dtype not in FLOATS:
        return refused("the input is not known to be of a float type", x)
    for value, right in wanted:
        if value is not None and not near(value, right):
            return refused(f"the constant is not {right:.6g}", value)
    return MatchResult()


class Gelu(Rule):
    """0.5 x (1 + erf(x / sqrt 2)), or with tanh(sqrt(2 / pi) (x + 0.044715 x^3)) for the erf (Hendrycks and Gimpel 2016)."""

    def __init__(self, approximate: Literal["none", "tanh"], order: Literal["xg.h", "x.gh", "xh.g"], swapped: bool = False) -> None:
        super().__init__("GELU by erf" if approximate == "none" else "GELU by tanh")
        self.approximate = approximate
        self.order = order
        self.swapped = swapped

    def pattern(self, op: Any, x: Any, half: Any, one: Any, a: Any, b: Any, c: Any) -> Any:
        curve = self._erf(op, x, a, b) if self.approximate == "none" else self._tanh(op, x, a, b, c)
        gate = op.Add(curve, one)
        left, right = {
            "xg.h": lambda: (either(op.Mul, x, gate), half),
            "x.gh": lambda: (x, op.Mul(gate, half)),
            "xh.g": lambda: (op.Mul(x, half), gate),
        }[self.order]()
        return op.Mul(right, left) if self.swapped else op.Mul(left, right)

    @staticmethod
    def _erf(op: Any, x: Any, root: Any, inverse: Any) -> Any:
        return op.Erf(OrValue([op.Div(x, root), op.Mul(x, inverse)]))

    @staticmethod
    def _tanh(op: Any, x: Any, factor: Any, cubic: Any, three: Any) -> Any:
        cube = OrValue([op.Pow(x, three), op.Mul(op.Mul(x, x), x), op.Mul(x, op.Mul(x, x))])
        scaled = OrValue([op.Mul(cube, cubic), op.Mul(x, op.Mul(x, op.Mul(x, cubic)))])
        return op.Tanh(op.Mul(either(op.Add, x, scaled), factor))

    def check(
        self,
        _context: Any,
        x: ir.Value,
        half: ir.Value,
        one: ir.Value,
        a: ir.Value | None,
        b: ir.Value | None,
        c: ir.Value | None,
    ) -> MatchResult:
        inner = (
            ((a, math.sqrt(2)), (b, math.sqrt(0.5)))
            if self.approximate == "none"
            else ((a, math.sqrt(2 / math.pi)), (b, 0.044715), (c, 3.0))
        )
        return _constants(x, (half, 0.5), (one, 1.0), *inner)

    def rewrite(self, op: Any, x: ir.Value, **_: Any) -> Any:
        return op.Gelu(x, approximate=self.approximate)


class HardSwish(Rule):
    """x min(max(x + 3, 0), 6) / 6, in the orders in which exporters write it (Howard et al. 2019)."""

    def __init__(self, order: Literal["xr/6", "x.r/6", "xr.s", "x.rs"], swapped: bool = False) -> None:
        super().__init__("HardSwish in primitives")
        self.order = order
        self.swapped = swapped

    def pattern(self, op: Any, x: Any, three: Any, low: Any, high: Any, six: Any, sixth: Any) -> Any:
        ramp = op.Clip(op.Add(x, three), low, high)
        if self.order == "xr/6":
            return op.Div(either(op.Mul, x, ramp), six)
        left, right = {
            "x.r/6": lambda: (x, op.Div(ramp, six)),
            "xr.s": lambda: (either(op.Mul, x, ramp), sixth),
            "x.rs": lambda: (x, op.Mul(ramp, sixth)),
        }[self.order]()
        return op.Mul(right, left) if self.swapped else op.Mul(left, right)

    def check(
        self,
        _context: Any,
        x: ir.Value,
        three: ir.Value,
        low: ir.Value,
        high: ir.Value,
        six: ir.Value | None,
        sixth: ir.Value | None,
    ) -> MatchResult:
        return _constants(x, (three, 3.0), (low, 0.0), (high, 6.0), (six, 6.0), (sixth, 1 / 6))

    def rewrite(self, op: Any, x: ir.Value, **_: Any) -> Any:
        return op.HardSwish(x)


class HardSwishOfSigmoid(Rule):
    """x HardSigmoid(x) = HardSwish(x) where alpha is 1/6 (as the attribute, a float32, rounds it) and beta 1/2."""

    def __init__(self, swapped: bool) -> None:
        super().__init__("HardSwish of HardSigmoid")
        self.swapped = swapped

    def pattern(self, op: Any, x: Any) -> Any:
        gate = op.HardSigmoid(x, _outputs=["gate"])
        return op.Mul(gate, x) if self.swapped else op.Mul(x, gate)

    def check(self, _context: Any, x: ir.Value, gate: ir.Value) -> MatchResult:
        attributes = producer(gate).attributes
        if not math.isclose(attributes.get_float("alpha", 0.2), 1 / 6, rel_tol=2**-23) or attributes.get_float("beta", 0.5) != 0.5:
            return refused("the slope is not 1/6 or the offset not 1/2", gate)
        if x.dtype == ir.DataType.DOUBLE:
            return refused("in float64 the slope is not 1/6 but the float32 next to it", x)
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, **_: Any) -> Any:
        return op.HardSwish(x)


_SIDES = (False, True)
_CURVES: tuple[Literal["none", "tanh"], ...] = ("none", "tanh")

RULES: tuple[Rule, ...] = (
    *(Gelu(kind, "xg.h") for kind in _CURVES),
    *(Gelu(kind, order, swapped) for kind in _CURVES for order in ("x.gh", "xh.g") for swapped in _SIDES),
    *(HardSwish(order) for order in ("xr/6", "xr.s")),
    *(HardSwish(order, swapped) for order in ("x.r/6", "x.rs") for swapped in _SIDES),
    *(HardSwishOfSigmoid(swapped) for swapped in _SIDES),
)
