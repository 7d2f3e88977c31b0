"""What the kernels of OpenVINO's CPU plugin make of each layer, beside the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from optimizer.backends.openvino.convert import Kernel, Seen
from optimizer.backends.openvino.memory import weights_of
from optimizer.engine import Realised
from optimizer.graph import constant_nodes
from optimizer.model import PLANNED, is_layer
from optimizer.work import multiplications

_WORDS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
_MOVES = frozenset({"Reorder", "Reshape", "Const", "Input", "Output"})
_MAIN = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul", "RNNSeq", "RNNCell", "ScaledDotProductAttention"})

_WORTH_TELLING = 0.05


def realised(graph: ir.Model, kernels: Sequence[Kernel]) -> tuple[Realised, ...]:
    """One entry a layer of the typed graph, in its order. What a kernel takes stands with the first layer that it computes."""
    work, before = multiplications(graph), constant_nodes(graph.graph)
    layers = [node for node in graph.graph if is_layer(node)]
    inside = {node.name or "": [kernel for kernel in kernels if node.name in kernel.layers] for node in layers}
    entries = [
        _computed(node, inside[node.name or ""], kernels) if inside[node.name or ""] else _gone(node, node in before) for node in layers
    ]
    return tuple(replace(entry, multiplications=work.get(entry.layer)) for entry in entries)


def notes(seen: Seen) -> tuple[str, ...]:
    """What is to be told beside the layers: why there are no times of them, or the time that conversions between them take."""
    if seen.failure:
        return (f"OpenVINO could not run the engine on made-up inputs, so there are no times by layer: {seen.failure}.",)
    total = sum(kernel.ms or 0 for kernel in seen.kernels)
    between = sum(kernel.ms or 0 for kernel in seen.kernels if kernel.kind == "Reorder")
    if between <= _WORTH_TELLING * total:
        return ()
    return (f"Changing the form of numbers between layers (layout, precision) takes {between:.3f} of {total:.3f} ms.",)


def _computed(node: ir.Node, inside: Sequence[Kernel], kernels: Sequence[Kernel]) -> Realised:
    name, planned = node.name or "", node.metadata_props.get(PLANNED, "fp32")
    computing = [kernel for kernel in inside if kernel.kind not in _MOVES] or inside
    kernel = max(computing, key=lambda one: (one.layers[0] == name, one.kind in _MAIN, one.precision in _WORDS))
    precision = _WORDS.get(kernel.precision, planned) if _in_floats(node) else planned
    own = [one for one in computing if one.layers[0] == name]
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
    """Whether a layer is about float numbers: of what computes with the model's own integers no precision is to be told."""
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
    ran = f"planned {planned.upper()}, ran in {found.upper()}"
    if kernel.layers[0] != node.name:
        return f"{ran}: it is inside the kernel of {kernel.layers[0]}"
    if found == "bf16":
        return f"{ran}: the plugin ignores the mark on {kernel.kind}"
    if planned == "bf16":
        return f"{ran}: the plugin keeps {kernel.kind} in FP32 here"
    if planned == "int8":
        return f"{ran}: the plugin did not merge {kernel.kind} with its Q/DQ"
    if found == "fp16":
        return "the model itself holds FP16 here"
    return f"{ran}: its neighbours are INT8, and it takes or gives their 8-bit numbers as they are"
