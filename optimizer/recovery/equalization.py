"""Cross-layer equalization (Nagel et al. 2019): channels of unequal range are evened out between a layer and those that read it.

Where s > 0, f(x / s) = f(x) / s for a Relu and for pooling, so that the factors of the weights behind go into the weight and bias
in front.  Not through an activation with an upper bound (ReLU6): the bound would have to differ from channel to channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from calibration.equalization import SHARES, factors
from optimizer.engine import Arrays
from optimizer.graph import constant
from optimizer.plan import Capability, Plan
from optimizer.precision.writer import Writer
from optimizer.recovery.form import Form, Recovered
from optimizer.recovery.layers import Floats, bias, bias_place, has_matrix, matrix, set_bias, set_weight
from optimizer.recovery.scaling import Channels, Place, only_read_by, read_in_int8, with_factors

_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool"})
"""Operators that a positive factor a channel passes through."""

_DROPS_SPACE = frozenset({"Flatten", "Reshape", "Squeeze", "ReduceMean"})
"""Operators that may leave one number a channel of an image."""

_FREE = 0.9
"""Share of the error that may be left: the factors cost nothing at run time."""


@dataclass(frozen=True)
class Source:
    """The layer that a tensor comes from, and the tensors on the way, that one included."""

    layer: str
    tensors: tuple[str, ...]


def equalization(form: Form, plan: Plan, capability: Capability, feeds: Sequence[Arrays]) -> Recovered | None:
    """Evens out channels between layers, how far by the error that is left at the layers behind."""
    places = []
    for value, readers in read_in_int8(form, plan, capability):
        if (found := source(value, readers)) is not None:
            places.append(Place(value.name or "", tuple(node.name or "" for node in readers), partial(_into_layer, found), _FREE))
    strengths = [partial(_factors, share=share) for share in SHARES]
    return with_factors("equalization", form, plan, capability, feeds, places, strengths)


def _factors(seen: Channels, share: float) -> Floats:
    return factors(seen.activation, seen.weight, share)


def source(value: ir.Value, readers: Sequence[ir.Node]) -> Source | None:
    """Where a tensor that `readers` alone read comes from, if factors can go in there; None where they can't."""
    tensors: list[str] = []
    in_images = readers[0].op_type == "Conv"
    while only_read_by(value, readers):
        tensors.append(value.name or "")
        node = value.producer()
        if node is None:
            return None
        if has_matrix(node):
            # A bias that is no row can't take the factors; a MatMul whose Add is not on the way has none.
            takes_them = node.op_type == "MatMul" or bias_place(node) is not None
            return Source(node.name or "", tuple(tensors)) if takes_them and in_images == (node.op_type == "Conv") else None
        before = next((one for one in node.inputs if one is not None and constant(one) is None), None)
        if before is None or not (node.op_type in _HOMOGENEOUS or _is_bias(node, before) or _drops_space(node, before)):
            return None
        in_images = in_images or _drops_space(node, before)
        value, readers = before, (node,)
    return None


def _drops_space(node: ir.Node, image: ir.Value) -> bool:
    """Whether (samples, channels, 1, 1), or with a mean of any size, becomes (samples, channels)."""
    before, after = image.shape, node.outputs[0].shape
    if node.op_type not in _DROPS_SPACE or before is None or after is None or len(before) < 3 or len(after) != 2:
        return False
    if node.op_type == "ReduceMean":
        axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        return axes is not None and sorted(int(axis) % len(before) for axis in axes) == list(range(2, len(before)))
    return all(size == 1 for size in before[2:]) and isinstance(after[1], int) and after[1] == before[1]


def _is_bias(add: ir.Node, product: ir.Value) -> bool:
    node = product.producer()
    return node is not None and node.op_type == "MatMul" and has_matrix(node) and (bias_place(node) or (None,))[0] is add


def _into_layer(source: Source, nodes: Mapping[str, ir.Node], writer: Writer, factors: Floats) -> Mapping[str, str]:
    node = nodes[source.layer]
    place = bias_place(node)
    if place is not None and place[1] < len(place[0].inputs) and place[0].inputs[place[1]] is not None:
        set_bias(writer, node, bias(node) / factors, "equalization")
    weight = matrix(node)
    set_weight(writer, node, weight / factors.reshape(*weight.shape[:2], 1), "equalization")
    return {tensor: tensor for tensor in source.tensors}
