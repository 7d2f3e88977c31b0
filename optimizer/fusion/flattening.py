"""Reshapes next to a Transpose: where both move no number it goes into the target, and where rows are flattened, into a weight.

A Transpose that only moves axes of size 1 keeps the numbers in their places, so that a Reshape behind or before it can do the
same.  One before a flattening permutes the columns of what is flattened: the rows of the matrix that multiplies it can be
permuted instead.  One behind a matrix product that is reshaped into images permutes the matrix's columns and the bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.fusion.axes import BROADCAST, UNARY, Layout, Order, Writer
from optimizer.fusion.conditions import known, owned, rank
from optimizer.graph import readers

_PRODUCTS = frozenset({"MatMul", "Gemm"})


@dataclass(frozen=True)
class _Constant:
    """Input `index` of `node`, a constant that has the flattened columns along `axis` (from the end)."""

    node: ir.Node
    index: int
    axis: int

    @property
    def array(self) -> NDArray[np.generic]:
        array = known(self.node.inputs[self.index])
        assert array is not None
        return array


def moves_nothing(shape: ir.Shape, order: Order) -> bool:
    """Whether storing a value of that shape in that order leaves each number in its place: the axes that move have size 1."""
    moved = [axis for axis in order if shape[axis] != 1]
    return moved == sorted(moved)


def target(shape: ir.Shape, order: Order) -> list[int] | None:
    """What Reshape must be given for a value of that shape stored in that order; None where more than one size is free."""
    sizes = [size if isinstance(size := shape[axis], int) else -1 for axis in order]
    return sizes if sizes.count(-1) <= 1 and 0 not in sizes else None


def regrouped(before: ir.Shape, after: ir.Shape, order: Order) -> Order | None:
    """The order of what a Reshape gives if what it takes is stored in `order`, where each group of axes that it splits or joins
    stays together; None where one does not, or sizes leave it open."""
    groups = _groups(before, after)
    if groups is None:
        return None
    found: list[int] = []
    left = list(order)
    while left:
        own, its = next(group for group in groups if left[0] in group[0])
        if tuple(left[: len(own)]) != own:
            return None
        found += its
        left = left[len(own) :]
    return tuple(found) if len(found) == len(after) else None


def _groups(before: ir.Shape, after: ir.Shape) -> list[tuple[Order, Order]] | None:
    """Axes of either shape that hold the same numbers, the smallest groups that there are; a free size is one of its own."""
    a, b = ([size if isinstance(size, int) else None for size in shape] for shape in (before, after))
    if a.count(None) != b.count(None) or a.count(None) > 1 or 0 in (*a, *b) or _known_product(a) != _known_product(b):
        return None
    groups, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        first, second, i, j = i, j, i + 1, j + 1
        while (mine := _product(a[first:i])) != (its := _product(b[second:j])):
            if mine is None or its is None:
                return None
            if (mine < its and i == len(a)) or (mine > its and j == len(b)):
                return None
            i, j = (i + 1, j) if mine < its else (i, j + 1)
        groups.append((tuple(range(first, i)), tuple(range(second, j))))
    return groups if i == len(a) and j == len(b) else None


def _known_product(sizes: Sequence[int | None]) -> int:
    return math.prod(size for size in sizes if size is not None)


def _product(sizes: Sequence[int | None]) -> int | None:
    return None if None in sizes else _known_product(sizes)


def _spread(node: ir.Node, value: ir.Value, order: Order) -> dict[ir.Value, Order] | None:
    x, y = node.inputs[0], node.outputs[0]
    if x is None or x.shape is None or y.shape is None or known(x) is not None:
        return None
    if node.op_type == "Reshape":
        if value is x and moves_nothing(x.shape, order) and target(y.shape, tuple(range(len(y.shape)))) is not None:
            return {x: order}
        if value is y and moves_nothing(y.shape, order) and target(y.shape, order) is not None:
            return {y: order}
        there, back = (x.shape, y.shape) if value is x else (y.shape, x.shape)
        other = regrouped(there, back, order)
        if other is not None and target(y.shape, other if value is x else order) is not None:
            return {x: order, y: other} if value is x else {x: other, y: order}
    if value is x:
        return {x: order} if _flattens(node, x, y, order) and _behind(y) is not None else None
    flattened = node.op_type == "Reshape" and _flattens(node, y, x, order) and target(y.shape, order) is not None
    return {y: order} if flattened and _before(x) is not None else None


def _flattens(node: ir.Node, image: ir.Value, rows: ir.Value, order: Order) -> bool:
    """Whether `rows` holds each sample of `image` as one row."""
    if node.op_type == "Flatten" and node.attributes.get_int("axis", 1) != 1:
        return False
    assert image.shape is not None
    assert rows.shape is not None
    sizes = [image.shape[axis] for axis in range(1, len(image.shape))]
    columns = [size for size in sizes if isinstance(size, int)]
    return len(rows.shape) == 2 and order[0] == 0 and len(columns) == len(sizes) and rows.shape[1] == math.prod(columns)


def _behind(rows: ir.Value) -> list[_Constant] | None:
    """The constants that see the columns of `rows` on the way to matrix products, which must all be constants; or None."""
    found: list[_Constant] = []
    if rows.is_graph_output() or not readers(rows):
        return None
    for node in readers(rows):
        if node.domain or node.graph is not rows.graph:
            return None
        if node.op_type in _PRODUCTS:
            matrix = node.inputs[1]
            if node.inputs[0] is not rows or node.attributes.get_int("transA", 0) != 0 or not owned(matrix) or rank(matrix) != 2:
                return None
            found.append(_Constant(node, 1, -1 if node.attributes.get_int("transB", 0) else -2))
            continue
        own = _by_element(node, rows)
        further = None if own is None else _behind(node.outputs[0])
        if own is None or further is None:
            return None
        found += [*own, *further]
    return found


def _before(rows: ir.Value) -> list[_Constant] | None:
    """The constants that make the columns of `rows`, back to the matrix product that they come from; or None."""
    node = rows.producer()
    if node is None or node.domain or rows.is_graph_output() or len(readers(rows)) != 1:
        return None
    if node.op_type in _PRODUCTS:
        if not owned(node.inputs[1]) or rank(node.inputs[1]) != 2:
            return None
        found = [_Constant(node, 1, -2 if node.attributes.get_int("transB", 0) else -1)]
        bias = known(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        if len(node.inputs) > 2 and node.inputs[2] is not None and bias is None:
            return None
        return [*found, _Constant(node, 2, -1)] if bias is not None and bias.size > 1 else found
    through = [value for value in node.inputs if value is not None and known(value) is None]
    own = _by_element(node, through[0]) if len(through) == 1 else None
    further = None if own is None else _before(through[0])
    return None if own is None or further is None else [*own, *further]


def _by_element(node: ir.Node, rows: ir.Value) -> list[_Constant] | None:
    """The constants of a node that treats each number of `rows` by itself, or None where it is another kind."""
    if node.op_type in UNARY:
        return []
    others = [(index, known(value)) for index, value in enumerate(node.inputs) if value is not rows]
    if node.op_type not in BROADCAST or any(array is None or array.ndim > 2 for _, array in others):
        return None
    wide = [(index, array) for index, array in others if array is not None and array.size > 1]
    columns = rows.shape[1] if rows.shape is not None else None
    return [_Constant(node, index, -1) for index, array in wide] if all(array.shape[-1] == columns for _, array in wide) else None


def _write(node: ir.Node, orders: Mapping[ir.Value, Order], writer: Writer) -> None:
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    assert y.shape is not None
    if len(orders) == 1:
        ((image, order),) = orders.items()
        assert image.shape is not None
        if not moves_nothing(image.shape, order):
            for place in (_behind(y) if image is x else _before(x)) or []:
                _permute(place, image.shape, order, writer)
    if node.op_type == "Reshape":
        sizes = target(y.shape, orders.get(y, tuple(range(len(y.shape)))))
        if sizes is not None:
            node.replace_input_with(1, writer.put(f"{node.name}.shape", np.array(sizes, np.int64)))
            node.attributes.pop("allowzero", None)


def _permute(place: _Constant, shape: ir.Shape, order: Order, writer: Writer) -> None:
    """Put the columns of a constant in the order in which the flattened image has them when it is stored in `order`."""
    sizes = [size for size in shape[1:] if isinstance(size, int)]
    places = np.arange(place.array.shape[place.axis]).reshape(sizes)
    columns = places.transpose([axis - 1 for axis in order[1:]]).reshape(-1)
    value = place.node.inputs[place.index]
    assert value is not None
    place.node.replace_input_with(place.index, writer.put(f"{value.name}.transposed", np.take(place.array, columns, axis=place.axis)))


LAYOUTS: Mapping[str, Layout] = {"Reshape": Layout(_spread, _write), "Flatten": Layout(_spread, _write)}
