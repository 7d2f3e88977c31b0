"""LayerNormalization out of primitives, and the scale and shift behind it (Ba, Kiros and Hinton 2016)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import MatchResult
from onnxscript.rewriter.pattern import OrValue

from optimizer.fusion.conditions import FLOATS, fits, input_of, integers, known, near, number, producer, rank, size
from optimizer.fusion.rule import Rule, either, refused


class LayerNormalization(Rule):
    """(x - m) / sqrt(mean((x - m)^2) + epsilon) with m = mean(x), both means over the last axes.

    The operator wants a scale: ones, until `ScaleOfNormalization` puts the model's own there.  What it calls its stage one
    is float32 by the standard; of a float64 model onnx.reference and ONNX Runtime compute it in float64.
    """

    def __init__(self, form: str) -> None:
        super().__init__("LayerNormalization in primitives")
        self.form = form

    def pattern(self, op: Any, x: Any, axes: Any, axes2: Any, two: Any, epsilon: Any, one: Any) -> Any:
        mean = op.ReduceMean(x, axes, _outputs=["mean"])
        centred = op.Sub(x, mean, _outputs=["centred"])
        deviation = _deviation(op, centred, axes2, two, epsilon)
        if self.form == "d / s":
            return op.Div(centred, deviation, _outputs=["z"])
        inverse = _inverse(op, deviation, one)
        return op.Mul(inverse, centred, _outputs=["z"]) if self.form == "1/s d" else op.Mul(centred, inverse, _outputs=["z"])

    def check(
        self,
        _context: Any,
        x: ir.Value,
        axes: ir.Value,
        axes2: ir.Value,
        two: ir.Value | None,
        epsilon: ir.Value,
        one: ir.Value | None,
        mean: ir.Value,
        variance: ir.Value,
        **_: Any,
    ) -> MatchResult:
        if x.dtype not in FLOATS:
            return refused("the input is not known to be of a float type", x)
        normalized = _normalized(x, axes)
        if isinstance(normalized, str):
            return refused(normalized, x, axes)
        if _normalized(x, axes2) != normalized:
            return refused("mean and variance run over different axes", axes2)
        if not all(producer(value).attributes.get_int("keepdims", 1) for value in (mean, variance)):
            return refused("the mean loses its axes", mean)
        if any(value is not None and not near(value, right) for value, right in ((two, 2.0), (one, 1.0))):
            return refused("a constant is not the formula's", two, one)
        added = number(epsilon)
        if added is None or float(np.float32(added)) != added:
            return refused("epsilon is computed, or is not a float32 number as the attribute wants it", epsilon)
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, axes: ir.Value, epsilon: ir.Value, z: ir.Value, **_: Any) -> Any:
        normalized = _normalized(x, axes)
        assert not isinstance(normalized, str)
        assert x.dtype is not None
        ones = op.initializer(ir.tensor(np.ones(normalized, x.dtype.numpy())), name=f"{producer(z).name}.scale")
        return op.LayerNormalization(x, ones, axis=-len(normalized), epsilon=number(epsilon))


class MultipliedOut(LayerNormalization):
    """The same with scale and shift multiplied out, as Keras writes it: x k + (b - m k) with k = scale / sqrt(variance + epsilon).

    `shift` is how -m k (and b, where there is one) stand there; the scale and the shift are put behind the normalization again.
    """

    def __init__(self, shift: Literal["-m k", "-(m k)", "-m k + b", "b - m k"], scaled: bool) -> None:
        super().__init__(shift)
        self.scaled = scaled

    def pattern(self, op: Any, x: Any, axes: Any, axes2: Any, two: Any, epsilon: Any, one: Any, scale: Any, shift: Any) -> Any:  # type: ignore[override]
        mean = op.ReduceMean(x, axes, _outputs=["mean"])
        inverse = _inverse(op, _deviation(op, op.Sub(x, mean), axes2, two, epsilon), one)
        factor = op.Mul(inverse, scale) if self.scaled else inverse
        moved = {
            "-m k": lambda: either(op.Mul, op.Neg(mean), factor),
            "-(m k)": lambda: op.Neg(either(op.Mul, mean, factor)),
            "-m k + b": lambda: op.Add(either(op.Mul, op.Neg(mean), factor), shift),
            "b - m k": lambda: op.Sub(shift, either(op.Mul, mean, factor)),
        }[self.form]()
        return op.Add(either(op.Mul, x, factor), moved, _outputs=["z"])

    def rewrite(self, op: Any, x: ir.Value, scale: ir.Value | None, shift: ir.Value | None, **values: Any) -> Any:  # type: ignore[override]
        result = super().rewrite(op, x, **values)
        result = result if scale is None else op.Mul(result, scale)
        return result if shift is None else op.Add(result, shift)


def _deviation(op: Any, centred: Any, axes: Any, two: Any, epsilon: Any) -> Any:
    square = OrValue([op.Pow(centred, two), op.Mul(centred, centred)])
    return op.Sqrt(op.Add(op.ReduceMean(square, axes, _outputs=["variance"]), epsilon))


def _inverse(op: Any, deviation: Any, one: Any) -> Any:
    return OrValue([op.Reciprocal(deviation), op.Div(one, deviation)])


def _normalized(x: ir.Value, axes: ir.Value | None) -> tuple[int, ...] | str:
    """The sizes of the axes that a mean runs over, where those are the last ones."""
    dimensions, chosen = rank(x), integers(axes)
    if dimensions is None or not chosen:
        return "the axes or the rank are not known"
    last = sorted(axis % dimensions for axis in chosen)
    if last != list(range(dimensions - len(last), dimensions)):
        return "the mean does not run over the last axes"
    sizes = [size(x, axis) for axis in last]
    return "the normalized sizes are free" if None in sizes else tuple(each for each in sizes if each is not None)


class IntoNormalization(Rule):
    """LayerNormalization(x, s, b) * c = LayerNormalization(x, s c, b c), and + c = LayerNormalization(x, s, b + c)."""

    def __init__(self, operator: str) -> None:
        super().__init__(f"{operator} into LayerNormalization")
        self.operator = operator

    def pattern(self, op: Any, x: Any, c: Any) -> Any:
        y = op.LayerNormalization(x, _allow_other_inputs=True, _outputs=["y"])
        return getattr(op, self.operator)(y, c, _outputs=["z"])

    def check(self, _context: Any, y: ir.Value, c: ir.Value, **_: Any) -> MatchResult:
        found = self._found(y, c)
        return refused(found, y, c) if isinstance(found, str) else MatchResult()

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value, c: ir.Value, z: ir.Value) -> Any:
        found = self._found(y, c)
        assert not isinstance(found, str)
        scale, shift = found
        node, name = producer(y), producer(z).name
        inputs = [op.initializer(ir.tensor(scale), name=f"{node.name}.scale*{name}")]
        if shift is not None:
            inputs.append(op.initializer(ir.tensor(shift), name=f"{node.name}.shift+{name}"))
        return op.LayerNormalization(x, *inputs, **node.attributes)

    def _found(self, y: ir.Value, c: ir.Value) -> tuple[NDArray[Any], NDArray[Any] | None] | str:
        """The new scale and shift, of the old scale's type, or why there are none."""
        node = producer(y)
        if len(node.outputs) > 1:
            return "the normalization's mean is read as well"
        scale, constant, given = known(node.inputs[1]), known(c), input_of(node, 2)
        shift = known(given)
        if scale is None or constant is None or (given is not None and shift is None):
            return "a constant is computed, or open to the caller"
        while constant.ndim > scale.ndim and constant.shape[0] == 1 and constant.ndim <= (rank(y) or 0):
            constant = constant[0]
        aligned = (1,) * (scale.ndim - constant.ndim) + constant.shape
        if len(aligned) > scale.ndim or any(a not in {1, b} for a, b in zip(aligned, scale.shape, strict=True)):
            return "the constant is not one number a normalized element"
        wide = [None if array is None else array.astype(np.float64) for array in (scale, shift)]
        if self.operator == "Mul":
            wide = [None if array is None else array * constant.astype(np.float64) for array in wide]
        else:
            wide[1] = np.broadcast_to(constant.astype(np.float64), scale.shape) + (0.0 if wide[1] is None else wide[1])
        if not all(array is None or fits(array, scale.dtype) for array in wide):
            return "the new constants leave the range of their type"
        first, second = (None if array is None else array.astype(scale.dtype) for array in wide)
        assert first is not None
        return first, second


_SHIFTS: tuple[Literal["-m k", "-(m k)", "-m k + b", "b - m k"], ...] = ("-m k", "-(m k)", "-m k + b", "b - m k")

RULES: tuple[Rule, ...] = (
    *(LayerNormalization(form) for form in ("d / s", "d 1/s", "1/s d")),
    *(MultipliedOut(shift, scaled) for shift in _SHIFTS for scaled in (True, False)),
    IntoNormalization("Mul"),
    IntoNormalization("Add"),
)
