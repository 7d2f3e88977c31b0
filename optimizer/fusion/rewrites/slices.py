"""Slices and Pads in a row are one, and a Slice of every second pixel that channels are added to is a convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult

from optimizer.fusion.conditions import input_of, integers, known, producer, rank, size
from optimizer.fusion.rewrites.writing import constant
from optimizer.fusion.rewrites.writing import integers as write
from optimizer.fusion.rule import Rule, refused
from optimizer.graph import static_shape


@dataclass(frozen=True)
class Cut:
    """By axis: first element, step (positive) and how many are left."""

    starts: tuple[int, ...]
    steps: tuple[int, ...]
    sizes: tuple[int, ...]

    def of(self, inner: Cut) -> Cut:
        """What this takes of what `inner` took."""
        starts = tuple(a + b * step for a, b, step in zip(inner.starts, self.starts, inner.steps, strict=True))
        return Cut(starts, tuple(a * b for a, b in zip(inner.steps, self.steps, strict=True)), self.sizes)


def cut(value: ir.Value) -> Cut | None:
    """What the Slice that wrote `value` takes, None where that is computed, runs backwards or is not from known sizes."""
    node = value.producer()
    if node is None or node.op_type != "Slice" or node.domain or node.inputs[0] is None:
        return None
    whole, left = static_shape(node.inputs[0]), static_shape(value)
    starts = integers(input_of(node, 1))
    if whole is None or left is None or starts is None or integers(input_of(node, 2)) is None:
        return None
    given = [input_of(node, place) for place in (3, 4)]
    axes = integers(given[0]) if given[0] is not None else tuple(range(len(starts)))
    steps = integers(given[1]) if given[1] is not None else (1,) * len(starts)
    if axes is None or steps is None or min(steps, default=1) < 1 or 0 in left:
        return None
    first, by = [0] * len(whole), [1] * len(whole)
    for axis, start, step in zip(axes, starts, steps, strict=True):
        place = axis % len(whole)
        first[place] = min(max(start + (whole[place] if start < 0 else 0), 0), whole[place])
        by[place] = step
    return Cut(tuple(first), tuple(by), left)


def taken(value: ir.Value) -> tuple[ir.Value, Cut] | None:
    """The value that a chain of Slices starts from, and what all of them take of it."""
    found = cut(value)
    if found is None:
        return None
    start = producer(value).inputs[0]
    assert start is not None
    deeper = taken(start)
    return (start, found) if deeper is None else (deeper[0], found.of(deeper[1]))


class SliceOfSlice(Rule):
    """Slice(Slice(x)) is one Slice."""

    def __init__(self) -> None:
        super().__init__("Slice of Slice")

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Slice(op.Slice(x, _allow_other_inputs=True), _allow_other_inputs=True, _outputs=["y"])

    def check(self, _context: Any, x: ir.Value, y: ir.Value) -> MatchResult:
        return MatchResult() if taken(y) is not None and cut(x) is None else refused("sizes or places are not known, or x is a Slice", y)

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value) -> Any:
        found = taken(y)
        assert found is not None
        return _slice(op, x, y, found[1])


def _slice(op: Any, x: ir.Value, y: ir.Value, what: Cut) -> Any:
    whole = static_shape(x)
    assert whole is not None
    axes = [axis for axis in range(len(whole)) if (what.starts[axis], what.sizes[axis]) != (0, whole[axis])]
    ends = [what.starts[axis] + (what.sizes[axis] - 1) * what.steps[axis] + 1 for axis in axes]
    node = producer(y)
    parts = {"starts": [what.starts[axis] for axis in axes], "ends": ends, "axes": axes, "steps": [what.steps[axis] for axis in axes]}
    return op.Slice(x, *(write(op, node, name, *numbers) for name, numbers in parts.items()))


@dataclass(frozen=True)
class Margin:
    """By axis: how many elements a Pad adds before and after, and the constant that it adds."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    number: float


def margin(value: ir.Value) -> Margin | None:
    """What the Pad that wrote `value` adds, None where it is computed, cuts off, or is no constant."""
    node = value.producer()
    dimensions = rank(value)
    if node is None or node.op_type != "Pad" or node.domain or dimensions is None:
        return None
    pads, filler = integers(input_of(node, 1)), known(input_of(node, 2))
    if pads is None or min(pads, default=0) < 0 or node.attributes.get_string("mode", "constant") != "constant":
        return None
    if input_of(node, 2) is not None and (filler is None or filler.size != 1):
        return None
    axes = integers(input_of(node, 3)) if input_of(node, 3) is not None else tuple(range(dimensions))
    if axes is None:
        return None
    before, after = [0] * dimensions, [0] * dimensions
    for place, axis in enumerate(axes):
        before[axis % dimensions], after[axis % dimensions] = pads[place], pads[place + len(axes)]
    return Margin(tuple(before), tuple(after), 0.0 if filler is None else float(filler.reshape(())))


class PadOfPad(Rule):
    """Pad(Pad(x)) with one constant is one Pad."""

    def __init__(self) -> None:
        super().__init__("Pad of Pad")

    def pattern(self, op: Any, x: Any) -> Any:
        y = op.Pad(x, _allow_other_inputs=True, _outputs=["y"])
        return op.Pad(y, _allow_other_inputs=True, _outputs=["z"])

    def check(self, _context: Any, y: ir.Value, z: ir.Value, **_: Any) -> MatchResult:
        inner, outer = margin(y), margin(z)
        if inner is None or outer is None or inner.number != outer.number:
            return refused("what they add is computed, or not the same", z)
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value, z: ir.Value) -> Any:
        inner, outer = margin(y), margin(z)
        assert inner is not None
        assert outer is not None
        sums = [a + b for a, b in zip((*inner.before, *inner.after), (*outer.before, *outer.after), strict=True)]
        return _pad(op, x, z, sums, inner.number)


def _pad(op: Any, x: Any, y: ir.Value, pads: list[int], filler: float) -> Any:
    node = producer(y)
    assert y.dtype is not None
    return op.Pad(x, write(op, node, "pads", *pads), constant(op, node, "filler", np.asarray(filler, y.dtype.numpy())))


class SliceOfPad(Rule):
    """Slice(Pad(x)) without steps takes less of x and adds less; one of the two, or both, fall away."""

    def __init__(self) -> None:
        super().__init__("Slice of Pad")

    def pattern(self, op: Any, x: Any) -> Any:
        y = op.Pad(x, _allow_other_inputs=True, _outputs=["y"])
        return op.Slice(y, _allow_other_inputs=True, _outputs=["z"])

    def check(self, _context: Any, x: ir.Value, y: ir.Value, z: ir.Value) -> MatchResult:
        around, what, whole = margin(y), cut(z), static_shape(x)
        if around is None or what is None or whole is None or set(what.steps) != {1}:
            return refused("sizes are not known, or steps are taken", z)
        inside, added = _inside(around, what, whole)
        if min(inside.sizes) < 1:
            return refused("nothing of x is left on an axis", z)
        if inside.sizes != whole and any(added):
            return refused("neither falls away", z)
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value, z: ir.Value) -> Any:
        around, what, whole = margin(y), cut(z), static_shape(x)
        assert around is not None
        assert what is not None
        assert whole is not None
        inside, added = _inside(around, what, whole)
        if any(added):
            return _pad(op, x, z, added, around.number)
        return op.Identity(x) if inside.sizes == whole else _slice(op, x, z, inside)


def _inside(around: Margin, what: Cut, whole: tuple[int, ...]) -> tuple[Cut, list[int]]:
    """What is taken of x itself, and the pads around that."""
    lows = [start - before for start, before in zip(what.starts, around.before, strict=True)]
    highs = [low + count for low, count in zip(lows, what.sizes, strict=True)]
    first = [min(max(low, 0), extent) for low, extent in zip(lows, whole, strict=True)]
    last = [max(min(high, extent), 0) for high, extent in zip(highs, whole, strict=True)]
    inside = Cut(tuple(first), (1,) * len(whole), tuple(b - a for a, b in zip(first, last, strict=True)))
    return inside, [max(-low, 0) for low in lows] + [max(high - extent, 0) for high, extent in zip(highs, whole, strict=True)]


class ShortcutIntoConvolution(Rule):
    """Pad of channels behind Slices of every s-th pixel: a Conv of stride s whose weight picks channels (He et al. 2016, option A)."""

    def __init__(self) -> None:
        super().__init__("strided Slice with new channels into convolution")

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Pad(x, _allow_other_inputs=True, _outputs=["y"])

    def check(self, _context: Any, x: ir.Value, y: ir.Value) -> MatchResult:
        around, found = margin(y), taken(x)
        if around is None or around.number != 0 or found is None or rank(x) != 4 or size(y, 1) is None:
            return refused("it is no Pad with zeros of Slices of pictures", y)
        if any((*around.before[2:], *around.after[2:], around.before[0], around.after[0])):
            return refused("the Pad adds pixels or samples", y)
        what = found[1]
        if any(what.starts) or what.steps[:2] != (1, 1) or what.steps[2] != what.steps[3] or what.steps[2] < 2:
            return refused("the Slices do not take every s-th pixel from the first", x)
        if what.sizes[:2] != (static_shape(found[0]) or ())[:2]:
            return refused("the Slices leave samples or channels out", x)
        reached = [1 + (extent - 1) // what.steps[2] for extent in (static_shape(found[0]) or ())[2:]]
        return MatchResult() if list(what.sizes[2:]) == reached else refused("the Slices end early", x)

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value) -> Any:
        around, found, outputs = margin(y), taken(x), size(y, 1)
        assert around is not None
        assert found is not None
        assert outputs is not None
        assert y.dtype is not None
        start, what = found
        weight = np.eye(outputs, what.sizes[1], -around.before[1], y.dtype.numpy()).reshape(outputs, -1, 1, 1)
        return op.Conv(start, constant(op, producer(y), "picks", weight), strides=list(what.steps[2:]))


RULES: tuple[Rule, ...] = (ShortcutIntoConvolution(), SliceOfSlice(), PadOfPad(), SliceOfPad())
