"""What the kernels of OpenVINO's CPU plugin make of each layer, beside the plan."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from optimizer.backends.openvino.convert import Seen
from optimizer.backends.openvino.kernels import Kernel
from optimizer.backends.openvino.memory import weights_of
from optimizer.engine import Realised
from optimizer.graph import constant_nodes
from optimizer.model import PLANNED, is_layer
from optimizer.work import counted

_WORDS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
_MOVES = frozenset({"Reorder", "Reshape", "Const", "Input", "Output"})
_MAIN = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul", "RNNSeq", "RNNCell", "ScaledDotProductAttention"})

_HALVES = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
_FEW = 5
_WORTH_TELLING = 0.05


def realised(graph: ir.Model, kernels: Sequence[Kernel]) -> tuple[Realised, ...]:
    """One entry a layer of the typed graph, in its order. What a kernel takes stands with the layer that it is about."""
    before = constant_nodes(graph.graph)
    layers = [node for node in graph.graph if is_layer(node)]
    integers = frozenset(node.name or "" for node in layers if not _in_floats(node))
    entries = []
    for node in layers:
        inside = [kernel for kernel in kernels if node.name in kernel.layers]
        entries.append(_computed(node, inside, kernels, integers) if inside else _gone(node, node in before))
    return counted(entries, graph)


def notes(graph: ir.Model, seen: Seen) -> tuple[str, ...]:
    """What is to be told beside the layers: types that the plugin narrows, why there are no times, or what conversions take."""
    told = []
    if doubles := [node.name or "" for node in graph.graph if any(value.dtype == ir.DataType.DOUBLE for value in node.outputs)]:
        told.append(f"OpenVINO's CPU kernels compute FLOAT64 in FP32: {', '.join(doubles[:_FEW])}{' ...' * (len(doubles) > _FEW)}.")
    if seen.failure:
        told.append(f"OpenVINO could not run the engine on made-up inputs, so there are no times by layer: {seen.failure}.")
    total = sum(kernel.ms or 0 for kernel in seen.kernels)
    between = sum(kernel.ms or 0 for kernel in seen.kernels if kernel.kind == "Reorder")
    if between > _WORTH_TELLING * total:
        told.append(f"Changing the form of numbers between layers (layout, precision) takes {between:.3f} of {total:.3f} ms.")
    return tuple(told)


def _computed(node: ir.Node, inside: Sequence[Kernel], kernels: Sequence[Kernel], integers: Collection[str]) -> Realised:
    name, planned = node.name or "", node.metadata_props.get(PLANNED, "fp32")
    kernel = max(inside, key=lambda one: (one.layers[0] == name, one.kind in _MAIN, one.kind not in _MOVES, one.precision in _WORDS))
    # Of what computes with the model's own integers no precision is to be told.
    precision = planned if name in integers or kernel.layers[0] in integers else _WORDS.get(kernel.precision, planned)
    own = [one for one in kernels if one.owner == name]
    times = [one.ms for one in own if one.ms is not None]
    outputs = [one.bytes for one in own if one.bytes is not None]
    return Realised(
        layer=name,
        operator=node.op_type,
        planned=planned,
        realised=precision,
        kernel=kernel.primitive if kernel.layers[0] == name else f"{kernel.primitive} of {kernel.layers[0]}",
        ms=sum(times) if times else None,
        reason=_why(node, planned, precision, kernel),
        weights=sum(weights_of(one, kernels) for one in own) if own else None,
        activations=max(outputs) if outputs else None,
    )


def _in_floats(node: ir.Node) -> bool:
    """Whether a layer reads or gives float numbers, or nobody knows."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.dtype is not None]
    return not values or any(value.dtype.is_floating_point() for value in values if value.dtype is not None)


def _gone(node: ir.Node, constant: bool) -> Realised:
    """A layer that no kernel names: computed before the run, or merged by a rule of OpenVINO's that forgets what it merged."""
    reason = "it depends on no input, so OpenVINO computed it before the run" if constant else "OpenVINO merged it with its neighbours"
    return Realised(node.name or "", node.op_type, node.metadata_props.get(PLANNED, "fp32"), "folded", reason=reason)


def _why(node: ir.Node, planned: str, found: str, kernel: Kernel) -> str:
    """Why a layer does not run as planned."""
    if planned == found:
        return ""
    if any(_HALVES.get(value.dtype) == found for value in node.outputs if value.dtype is not None):
        return f"the model itself holds {found.upper()} here"
    ran = f"planned {planned.upper()}, ran in {found.upper()}"
    if kernel.layers[0] != node.name:
        return f"{ran}: it is inside the kernel of {kernel.layers[0]}"
    if found == "bf16":
        return f"{ran}: the plugin ignores the mark on {kernel.kind}"
    if planned == "bf16":
        return f"{ran}: the plugin keeps {kernel.kind} in FP32 here"
    if planned == "int8":
        return f"{ran}: the plugin did not merge {node.op_type} with its Q/DQ"
    return f"{ran}: its neighbours are INT8, and it takes or gives their 8-bit numbers as they are"
