"""Q/DQ that TensorRT takes without a word and then computes otherwise than written, found in the graph before the build.

What would change the numbers is refused; what only loses INT8 is told, and named as the reason of the layers that it costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from kernels.target import Target
from optimizer.errors import UnavailableError
from optimizer.graph import constant, elements
from optimizer.model import FOR_LAYER

UNREADABLE = frozenset({"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul"})
"""Operators of integer arithmetic that the parser refuses; Q/DQ around the float operator says the same."""

_MATRIX = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_CARRIERS = frozenset({"Concat", "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice"})
_FLOAT_MODEL = "float model: optimize writes Q/DQ for this target itself."
_NO_ZERO_POINT = f"Quantize to int8 with zero point 0, or give the {_FLOAT_MODEL}"


@dataclass(frozen=True)
class Losses:
    """`notes` go into the report; `reasons` say by layer why it can't run in INT8 though it is quantized."""

    notes: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)


def losses_of(graph: ir.Model, target: Target) -> Losses:
    """What a build for `target` would lose of the graph's Q/DQ.

    Raises:
        UnavailableError: the engine would compute other numbers than the graph says, or its parser can't read the operator.
    """
    notes: list[str] = []
    reasons: dict[str, str] = {}
    for node in graph.graph.all_nodes():
        _refuse_what_changes_numbers(node)
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            notes.extend(_doubts(node))
        if node.op_type in _MATRIX and _quantized(node):
            reason = _reason(node, target)
            if reason:
                reasons[node.name or ""] = reason
    return Losses(tuple(dict.fromkeys(notes)), reasons)


def _refuse_what_changes_numbers(node: ir.Node) -> None:
    layer = _owner(node)
    if node.domain == "ai.onnx.ml":
        raise UnavailableError(
            f"Layer {layer!r} is a {node.op_type} of ai.onnx.ml, and TensorRT has none of that domain: it computes networks.",
            "Build it for --target cpu.",
        )
    if node.op_type in UNREADABLE:
        raise UnavailableError(
            f"Layer {layer!r} is a {node.op_type}, which TensorRT can't read.",
            f"Give the {_FLOAT_MODEL}",
        )
    if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
        return
    if node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.INT32:
        raise UnavailableError(
            f"Layer {layer!r} has its bias as int32 behind a DequantizeLinear, which TensorRT refuses.",
            f"Keep the bias in float, or give the {_FLOAT_MODEL}",
        )
    if _integer_type(node) == ir.DataType.UINT8:
        raise UnavailableError(
            f"Layer {layer!r} is quantized to uint8, which TensorRT compiles as int8 without a word: values over 127 would be clipped.",
            _NO_ZERO_POINT,
        )
    if np.any(_numbers(node, 2)):
        raise UnavailableError(f"Layer {layer!r} is quantized with a zero point other than 0, which TensorRT refuses.", _NO_ZERO_POINT)


def _integer_type(node: ir.Node) -> ir.DataType | None:
    """The integers that a Q writes or a DQ reads; a Q that says nothing writes uint8."""
    if node.op_type == "DequantizeLinear":
        return node.inputs[0].dtype if node.inputs[0] is not None else None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return node.inputs[2].dtype
    stated = node.attributes.get("output_dtype")
    return ir.DataType(stated.as_int()) if stated is not None and stated.as_int() else ir.DataType.UINT8


def _doubts(node: ir.Node) -> Iterator[str]:
    layer = _owner(node)
    scale = node.inputs[1] if len(node.inputs) > 1 else None
    if scale is not None and scale.dtype in {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}:
        yield f"{layer}: its quantization scale is {scale.dtype.name}, too coarse for small scales; FP32 scales keep the answers"
    if node.op_type == "QuantizeLinear" and _per_channel(node) and constant(node.inputs[0]) is None:
        yield f"{layer}: its activation is quantized per channel, which TensorRT-RTX computes in float; per tensor runs in INT8"


def _reason(node: ir.Node, target: Target) -> str | None:
    """Why a quantized layer runs in float all the same."""
    if node.op_type == "ConvTranspose":
        return "TensorRT-RTX runs a quantized ConvTranspose in float"
    if node.op_type == "Conv" and target.compute == "sm_75":
        return "TensorRT-RTX has no INT8 convolution for compute capability 7.5: it runs in float, its weights dequantized at every run"
    first, second = (list(_dequantizers(value)) if value is not None else [] for value in node.inputs[:2])
    if any(_per_channel(dequantizer) and not _of_weights(dequantizer) for dequantizer in (*first, *second)):
        return "its activation is quantized per channel, which TensorRT-RTX computes in float"
    if len({tuple(_numbers(dequantizer, 1)) for dequantizer in first}) > 1:
        return "a Concat before it joins tensors of unequal scales, so TensorRT-RTX dequantizes it to float"
    if not first:
        return "its weights are quantized and its activation is not"
    if not second:
        return "its activation is quantized and its weights are not"
    return None


def _quantized(node: ir.Node) -> bool:
    return any(any(_dequantizers(value)) for value in node.inputs[:2] if value is not None)


def _dequantizers(value: ir.Value) -> Iterator[ir.Node]:
    """The DequantizeLinear nodes that a value comes from, through operators that only carry numbers."""
    node = value.producer()
    if node is None:
        return
    if node.op_type == "DequantizeLinear":
        yield node
    elif node.op_type in _CARRIERS:
        for source in node.inputs if node.op_type == "Concat" else node.inputs[:1]:
            if source is not None:
                yield from _dequantizers(source)


def _of_weights(dequantizer: ir.Node) -> bool:
    return constant(dequantizer.inputs[0]) is not None


def _per_channel(node: ir.Node) -> bool:
    scale = node.inputs[1] if len(node.inputs) > 1 else None
    return scale is not None and elements(scale) not in {1, None}


def _numbers(node: ir.Node, index: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The numbers of a constant input, flat; none where it is left out or computed."""
    value = constant(node.inputs[index]) if len(node.inputs) > index else None
    return np.zeros(0) if value is None else np.asarray(value, np.float64).reshape(-1)


def _owner(node: ir.Node) -> str:
    return node.metadata_props.get(FOR_LAYER) or node.name or node.op_type
