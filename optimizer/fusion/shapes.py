"""Shape arithmetic computed ahead: Shape, Gather, Concat ... where the sizes are known, and Reshape where one is free.

Each small integer tensor is followed through the graph element by element: an element is a number, or a `Size`
that is free, or unknown.  What comes out as numbers becomes an initializer; the target of a Reshape may
keep one free size (-1) and those that it copies from its input (0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.fusion.conditions import known
from optimizer.fusion.folding import put_constants
from optimizer.graph import add_initializer, unique
from optimizer.model import Fusion

_LONGEST = 64
"""Elements of the largest tensor that is followed."""


@dataclass(frozen=True)
class Size:
    """A free size: by the name that the model gives it, or as one axis of one value where it has none to rely on."""

    name: str
    value: ir.Value | None = None
    axis: int = 0


def size_along(value: ir.Value, axis: int) -> int | Size | None:
    """The size of a value along an axis (not negative), None where even the number of axes is not known."""
    return None if value.shape is None or axis >= len(value.shape) else _size(value, value.shape, axis)


def _size(value: ir.Value, shape: ir.Shape, axis: int) -> int | Size:
    size = shape[axis]
    if isinstance(size, int):
        return size
    name = size.value or "?"
    return Size("?", value, axis) if name.startswith("?") else Size(name)


UNKNOWN = None
"""An element of which nothing is known."""

Elements = NDArray[np.object_]
"""A small integer or boolean tensor of any shape whose elements are int, bool, Size or UNKNOWN."""


def follow_shapes(graph: ir.Graph) -> dict[ir.Value, Elements]:
    """What is known of each small integer tensor that the main graph computes from sizes."""
    followed: dict[ir.Value, Elements] = {}
    for node in graph:
        _note(node, followed)
    return followed


def _note(node: ir.Node, followed: dict[ir.Value, Elements]) -> Elements | None:
    """The elements of a node's one output, written down where they can be told."""
    elements = None if node.domain or len(node.outputs) != 1 else _follow(node, followed)
    if elements is None or elements.size > _LONGEST:
        return None
    followed[node.outputs[0]] = elements
    return elements


def fold_shapes(model: ir.Model, taken: set[str]) -> list[Fusion]:
    """Replace what is known of the graph's shape arithmetic by initializers, in place."""
    followed: dict[ir.Value, Elements] = {}
    fusions = []
    for node in model.graph:
        if node.domain:
            continue
        elements = _note(node, followed)
        if elements is not None and _settle(model.graph, node, elements, taken):
            fusions.append(Fusion("shape folding", (node.name or "",), ""))
        if node.op_type == "Reshape" and _retarget(model.graph, node, followed, taken):
            fusions.append(Fusion("shape of a Reshape", (node.name or "",), node.name or ""))
    return fusions


def _follow(node: ir.Node, followed: Mapping[ir.Value, Elements]) -> Elements | None:
    """The elements of a node's output, or None where they can't be told."""
    rule = _OPERATORS.get(node.op_type)
    if rule is None or not node.inputs or node.inputs[0] is None:
        return None
    if node.op_type == "Shape":
        return _shape(node, node.inputs[0])
    operands = [None if value is None else _elements(value, followed) for value in node.inputs]
    if any(operand is None and value is not None for operand, value in zip(operands, node.inputs, strict=True)):
        return None
    return rule(node, *operands)


def _elements(value: ir.Value, followed: Mapping[ir.Value, Elements]) -> Elements | None:
    if value in followed:
        return followed[value]
    array = known(value)
    if array is None or array.dtype.kind not in "iub" or array.size > _LONGEST:
        return None
    return array.astype(object)


def _shape(node: ir.Node, x: ir.Value) -> Elements | None:
    if x.shape is None:
        return None
    sizes = [_size(x, x.shape, axis) for axis in range(len(x.shape))]
    return _vector(sizes[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(sizes))])


def _vector(elements: list[Any]) -> Elements:
    """A one-dimensional array of these very objects."""
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


def _numbers(elements: Elements | None) -> tuple[int, ...] | None:
    """The integers in `elements`, flattened, where all are known."""
    if elements is None or not all(isinstance(each, int) for each in elements.reshape(-1)):
        return None
    return tuple(int(each) for each in elements.reshape(-1))


def _gather(node: ir.Node, x: Elements, indices: Elements) -> Elements | None:
    if _numbers(indices) is None or node.attributes.get_int("axis", 0) != 0 or x.ndim != 1:
        return None
    return np.asarray(x[indices.astype(np.int64)], object)


def _slice(
    _node: ir.Node, x: Elements, starts: Elements, ends: Elements, axes: Elements | None = None, steps: Elements | None = None
) -> Elements | None:
    start, end, step = _numbers(starts), _numbers(ends), (1,) if steps is None else _numbers(steps)
    if (
        start is None
        or end is None
        or step is None
        or x.ndim != 1
        or len(start) != 1
        or (axes is not None and _numbers(axes) not in {(0,), (-1,)})
    ):
        return None
    return x[slice(start[0], end[0], step[0])] if step[0] > 0 else None


def _concat(_node: ir.Node, *parts: Elements) -> Elements | None:
    return np.concatenate(parts) if all(part.ndim == 1 for part in parts) else None


def _reshape(node: ir.Node, x: Elements, *_: Elements | None) -> Elements | None:
    """Squeeze, Unsqueeze, Reshape of something small: the output's own shape says how."""
    shape = node.outputs[0].shape
    if shape is None or not all(isinstance(size, int) for size in shape):
        return None
    return x.reshape([int(size) for size in shape if isinstance(size, int)])


def _same(_node: ir.Node, x: Elements) -> Elements:
    return x


def _cast(node: ir.Node, x: Elements) -> Elements | None:
    whole = {int(ir.DataType.INT64), int(ir.DataType.INT32)}
    return x if node.attributes.get_int("to", 0) in whole and not any(isinstance(each, bool) for each in x.reshape(-1)) else None


def _pairwise(compute: Callable[[Any, Any], Any]) -> Callable[..., Elements | None]:
    def each(_node: ir.Node, a: Elements, b: Elements) -> Elements:
        return _broadcast(lambda x, y: compute(x, y) if isinstance(x, int) and isinstance(y, int) else UNKNOWN, a, b)

    return each


def _broadcast(compute: Callable[..., Any], *operands: Elements) -> Elements:
    result = np.frompyfunc(compute, len(operands), 1)(*operands)
    return np.asarray(result, object)


def _divide(a: int, b: int) -> int | None:
    """Integer division as ONNX has it, toward zero; sizes are never negative, other signs are left alone."""
    return a // b if a >= 0 and b > 0 else UNKNOWN


def _equal(_node: ir.Node, a: Elements, b: Elements) -> Elements:
    return _broadcast(_compare, a, b)


def _compare(a: Any, b: Any) -> bool | None:
    """Whether two elements are equal; a size is never negative and equals itself."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    if a is not UNKNOWN and a == b:
        return True
    number = a if isinstance(a, int) else b
    return False if isinstance(number, int) and number < 0 and UNKNOWN not in {a, b} else UNKNOWN


def _where(_node: ir.Node, condition: Elements, a: Elements, b: Elements) -> Elements:
    return _broadcast(lambda yes, x, y: UNKNOWN if yes is UNKNOWN else x if yes else y, condition, a, b)


_OPERATORS: dict[str, Callable[..., Elements | None]] = {
    "Shape": _same,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Reshape": _reshape,
    "Identity": _same,
    "Cast": _cast,
    "Add": _pairwise(lambda a, b: a + b),
    "Sub": _pairwise(lambda a, b: a - b),
    "Mul": _pairwise(lambda a, b: a * b),
    "Div": _pairwise(_divide),
    "Equal": _equal,
    "Where": _where,
}


def _settle(graph: ir.Graph, node: ir.Node, elements: Elements, taken: set[str]) -> bool:
    """Put an initializer in a node's place where all its elements are numbers."""
    value = node.outputs[0]
    if value.is_graph_output() or value.dtype is None or not all(isinstance(each, int) for each in elements.reshape(-1)):
        return False
    put_constants(graph, node, [ir.tensor(elements.astype(value.dtype.numpy()), dtype=value.dtype)])
    taken.discard(node.name or "")
    return True


def _retarget(graph: ir.Graph, node: ir.Node, followed: Mapping[ir.Value, Elements], taken: set[str]) -> bool:
    """Give a Reshape a constant target where at most one size in it is neither a number nor copied from its input."""
    x, target = node.inputs[0], node.inputs[1]
    if x is None or target is None or known(target) is not None or target not in followed:
        return False
    wanted = _target(x, list(followed[target]), bool(node.attributes.get_int("allowzero", 0)))
    if wanted is None:
        return False
    node.replace_input_with(1, add_initializer(graph, unique(f"{node.name}.shape", taken), np.array(wanted, np.int64)))
    node.attributes.pop("allowzero", None)
    return True


def _target(x: ir.Value, elements: list[Any], zero_is_empty: bool) -> list[int] | None:
    if zero_is_empty and 0 in elements:
        return None
    if sum(not isinstance(each, int) or each == -1 for each in elements) <= 1:
        return [each if isinstance(each, int) else -1 for each in elements]
    own = [] if x.shape is None else [_size(x, x.shape, axis) for axis in range(len(x.shape))]
    copied = [isinstance(each, Size) and axis < len(own) and own[axis] == each for axis, each in enumerate(elements)]
    target = [each if isinstance(each, int) else 0 if same else -1 for each, same in zip(elements, copied, strict=True)]
    return target if target.count(-1) <= 1 else None
