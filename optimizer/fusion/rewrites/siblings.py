"""Linear layers that read one tensor are one layer whose output is split.

    [W1 x + b1; W2 x + b2] = [W1; W2] x + [b1; b2]:

the input is read once, and output channels that left vector registers partly empty fill them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.fusion.conditions import input_of, known
from optimizer.fusion.rewrites.blocks import LANES
from optimizer.graph import add_initializer, readers, unique
from optimizer.model import FOR_LAYER, Fusion, joined

_AXIS = {"Conv": 1, "Gemm": 1, "MatMul": -1}


@dataclass(frozen=True)
class Siblings:
    """Conv, Gemm or MatMul with those beside it that read the same input in the same way; offered at the first of them.

    No `Rule`, since more than one output is replaced.
    """

    name: str = "siblings into one layer"

    def found(self, _model: ir.Model, node: ir.Node) -> Sequence[ir.Node]:
        """The siblings, `node` first; none where there are none, or all fill the vector registers by themselves."""
        if node.domain or node.op_type not in _AXIS or (x := node.inputs[0]) is None or _weights(node) is None:
            return ()
        found = [each for each in readers(x) if each.graph is node.graph and _alike(node, each)]
        found.sort(key=list(node.graph or ()).index)
        odd = any(_outputs(each) % LANES for each in found)
        return found if len(found) > 1 and found[0] is node and odd else ()

    def apply_at(self, model: ir.Model, node: ir.Node, taken: set[str]) -> Fusion | None:
        """Write the one layer and the Split, in place."""
        found = self.found(model, node)
        if not found:
            return None
        layers = [each.name or "" for each in found]
        taken.difference_update(layers)
        name = unique(joined(layers), taken)

        def put(what: str, array: NDArray[Any]) -> ir.Value:
            return add_initializer(model.graph, unique(f"{name}/{what}", taken), array)

        weights = [weight for each in found if (weight := _weights(each)) is not None]
        inputs = [node.inputs[0], put("weights", np.concatenate([weight for weight, _ in weights], _channels(node)))]
        if any(bias is not None for _, bias in weights):
            filled = [np.zeros(_outputs(each), w.dtype) if b is None else b for each, (w, b) in zip(found, weights, strict=True)]
            inputs.append(put("biases", np.concatenate(filled)))
        one = ir.Node("", node.op_type, inputs, list(node.attributes.values()), name=name, num_outputs=1)
        one.metadata_props.update(node.metadata_props)
        one.outputs[0].name = unique(f"{name}.out", taken)
        sizes = put("sizes", np.asarray([_outputs(each) for each in found], np.int64))
        axis = ir.AttrInt64("axis", _AXIS[node.op_type])
        split = ir.Node("", "Split", [one.outputs[0], sizes], [axis], name=unique(f"{name}.Split", taken), num_outputs=len(found))
        split.metadata_props[FOR_LAYER] = name
        for old, new in zip(found, split.outputs, strict=True):
            value = old.outputs[0]
            new.name, new.type, new.shape = value.name, value.type, value.shape
            value.replace_all_uses_with(new, replace_graph_outputs=True)
        model.graph.insert_after(node, [one, split])
        model.graph.remove(found, safe=True)
        return Fusion(self.name, tuple(layers), name)


def _weights(node: ir.Node) -> tuple[NDArray[Any], NDArray[Any] | None] | None:
    """Weight and bias of a layer that can be joined: both known, not grouped, the bias one number a channel."""
    weight, bias = known(node.inputs[1]), known(input_of(node, 2))
    if weight is None or (input_of(node, 2) is not None and bias is None) or weight.ndim < 2:
        return None
    if node.op_type == "MatMul" and weight.ndim != 2:
        return None
    plain = node.attributes.get_int("group", 1) == 1 and node.attributes.get_float("beta", 1.0) == 1
    return (weight, bias) if plain and (bias is None or bias.shape == (weight.shape[_channels(node)],)) else None


def _channels(node: ir.Node) -> int:
    """The weight's axis of output channels."""
    return 0 if node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1 else 1


def _outputs(node: ir.Node) -> int:
    weight = known(node.inputs[1])
    assert weight is not None
    return int(weight.shape[_channels(node)])


def _alike(node: ir.Node, other: ir.Node) -> bool:
    """Whether `other` reads the same input by windows of the same kind."""
    if other.op_type != node.op_type or other.domain or other.inputs[0] is not node.inputs[0]:
        return False
    mine, its = _weights(node), _weights(other)
    if mine is None or its is None or mine[0].dtype != its[0].dtype:
        return False
    shapes = [list(weight.shape) for weight, _ in (mine, its)]
    for shape in shapes:
        shape[_channels(node)] = 0
    return shapes[0] == shapes[1] and _reading(node) == _reading(other)


def _reading(node: ir.Node) -> dict[str, Any]:
    """How a layer reads its input, what is left out filled in."""
    axes = len(known(node.inputs[1]).shape) - 2  # type: ignore[union-attr]
    standard = {"strides": (1,) * axes, "dilations": (1,) * axes, "pads": (0,) * 2 * axes, "auto_pad": "NOTSET"}
    standard |= {"alpha": 1.0, "transA": 0, "transB": 0}  # type: ignore[dict-item]
    given = {name: attribute.value for name, attribute in node.attributes.items() if name not in {"kernel_shape", "group", "beta"}}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in (standard | given).items()}
