"""Smoothing: outlier channels of what matrix products read go over into their weights (SmoothQuant, Xiao et al. 2022).

The inverse factors go into the gain and shift of the normalization that makes the tensor, where nobody else reads it; else one
Mul in front of the products takes them.  What follows a layer through a Relu at most is left to `equalization`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from calibration.smoothing import STRENGTHS, factors
from optimizer.engine import Arrays
from optimizer.graph import constant
from optimizer.plan import Capability, Plan
from optimizer.precision.writer import Writer
from optimizer.recovery.equalization import source
from optimizer.recovery.form import Form, Recovered
from optimizer.recovery.layers import Floats
from optimizer.recovery.scaling import Channels, Place, along_channels, only_read_by, read_in_int8, with_factors

_NORMALIZATIONS = frozenset({"LayerNormalization", "RMSNormalization"})

_FREE = 0.9
"""Share of the error that may be left where the factors cost nothing at run time."""

_COSTLY = 0.5
"""And where they cost a pass over the tensor."""


def smoothing(form: Form, plan: Plan, capability: Capability, feeds: Sequence[Arrays]) -> Recovered | None:
    """Moves outlier channels into the weights, each tensor's strength by the error that is left at its readers."""
    places = []
    for value, readers in read_in_int8(form, plan, capability):
        if readers[0].op_type == "Conv" or source(value, readers) is not None:
            continue
        name, layers = value.name or "", tuple(node.name or "" for node in readers)
        if (norm := _normalization(value)) is not None and only_read_by(value, readers):
            places.append(Place(name, layers, partial(_into_normalization, norm.name or "", name), _FREE))
        else:
            places.append(Place(name, layers, partial(_into_mul, name, layers), _COSTLY))
    strengths = [partial(_factors, alpha=alpha) for alpha in STRENGTHS]
    return with_factors("smoothing", form, plan, capability, feeds, places, strengths)


def _factors(seen: Channels, alpha: float) -> Floats:
    return factors(seen.activation, seen.weight, alpha)


def _normalization(value: ir.Value) -> ir.Node | None:
    """The normalization over the last axis, with a gain of its own for each channel, that makes a tensor."""
    node = value.producer()
    if node is None or node.op_type not in _NORMALIZATIONS or node.attributes.get_int("axis", -1) != -1:
        return None
    learned = [constant(part) for part in node.inputs[1:] if part is not None]
    return node if all(part is not None and part.ndim == 1 and part.dtype == np.float32 for part in learned) else None


def _into_normalization(norm: str, tensor: str, nodes: Mapping[str, ir.Node], writer: Writer, factors: Floats) -> Mapping[str, str]:
    node = nodes[norm]
    for place in range(1, len(node.inputs)):
        if (array := constant(node.inputs[place])) is not None:
            part = node.inputs[place]
            name = part.name if part is not None else norm
            node.replace_input_with(place, writer.constant(f"{name}/smoothed", (array / factors).astype(np.float32)))
    return {tensor: tensor}


def _into_mul(tensor: str, readers: Sequence[str], nodes: Mapping[str, ir.Node], writer: Writer, factors: Floats) -> Mapping[str, str]:
    first = nodes[readers[0]]
    value = first.inputs[0]
    assert value is not None
    inverse = writer.constant(f"{tensor}/factors", along_channels(first, 1 / factors))
    mul = writer.node("Mul", [value, inverse], f"{tensor}/smoothed", readers[0], [(ir.DataType.FLOAT, value.shape)])
    writer.place_behind(value, [mul])
    for reader in readers:
        nodes[reader].replace_input_with(0, mul.outputs[0])
    return {mul.outputs[0].name or "": tensor}
