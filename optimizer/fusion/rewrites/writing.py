"""What the rewrites write: constants under names of their layer, and values that tell whose numbers they hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.model import SAME_NUMBERS


def constant(op: Any, owner: ir.Value | ir.Node, what: str, array: NDArray[Any]) -> Any:
    """A new initializer, called after the value or node that it takes something over from."""
    return op.initializer(ir.tensor(np.ascontiguousarray(array)), name=f"{owner.name}/{what}")


def integers(op: Any, owner: ir.Value | ir.Node, what: str, *numbers: int) -> Any:
    """A new initializer of int64: sizes, axes, pads."""
    return constant(op, owner, what, np.asarray(numbers, np.int64))


def same_numbers(value: Any, original: ir.Value) -> Any:
    """`value`, marked as holding the numbers of `original`: all or some, in any arrangement, zeros added or not."""
    value.metadata_props[SAME_NUMBERS] = original.metadata_props.get(SAME_NUMBERS, original.name or "")
    return value
