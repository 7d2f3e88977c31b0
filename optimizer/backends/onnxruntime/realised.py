"""Each layer's realised precision, read from the kernels that compute it, beside the plan, with the reason where they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from optimizer.backends.onnxruntime.correspondence import Kernel, kernels
from optimizer.backends.onnxruntime.operators import APPENDED, COMPUTES_INT8, MOVES, MOVES_INT8, REFUSALS, VIEWS
from optimizer.backends.onnxruntime.profile import Profile
from optimizer.engine import Realised
from optimizer.graph import constant, constant_nodes, elements, readers
from optimizer.model import PLANNED, is_layer
from optimizer.work import counted

_DYNAMIC = frozenset({"DynamicQuantizeMatMul", "DynamicQuantizeLSTM"})
_EITHER = frozenset({"MatMulInteger", "ConvInteger", "MatMulIntegerToFloat", "QAttention"})
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_STATIC = frozenset({"QGemm", "QLinearConv", "QLinearMatMul"})
_WORTH_TELLING = 0.05
_TWO_OPERANDS = frozenset({"Conv", "MatMul", "Gemm", "Add", "Mul", "Where"})
_SOURCE = {"MatMulIntegerToFloat": "MatMul", "MatMulInteger": "MatMul", "ConvInteger": "Conv", "DynamicQuantizeLSTM": "LSTM"}
"""What the user calls an operator that a layer was written as to run in dynamic INT8."""

_CLIPS = frozenset({"Clip", "Relu"})

_BIAS = 6
"""Where MatMulIntegerToFloat has its bias."""

_EIGHT_BITS = frozenset({ir.DataType.INT8, ir.DataType.UINT8})
_STORED = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE, ir.DataType.INT32, *_EIGHT_BITS})
_WORDS = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16", ir.DataType.DOUBLE: "fp64"}


def realised(typed: ir.Model, profile: Profile) -> tuple[Realised, ...]:
    """One entry a layer of `typed`, in its order. The time of a kernel stands with the layer that it is mainly about."""
    found = kernels(typed, profile.optimized)
    types = _types(profile.optimized)
    computed = constant_nodes(typed.graph)
    by_layer: dict[str, list[Kernel]] = {}
    for kernel in found:
        for layer in kernel.layers:
            by_layer.setdefault(layer, []).append(kernel)
    entries = [_layer(node, by_layer.get(node.name or "", []), types, profile, node in computed) for node in typed.graph if is_layer(node)]
    return counted(entries, typed)


def notes(profile: Profile) -> tuple[str, ...]:
    """What the profile has to tell beside the layers: its own limits, and the time that conversions between layers take."""
    told = [profile.note] if profile.note else []
    conversions = sum(profile.milliseconds.get(node, 0.0) for node in profile.optimized.graph if node.op_type in _CONVERSIONS)
    if profile.run_milliseconds and conversions > _WORTH_TELLING * profile.run_milliseconds:
        told.append(f"Quantizing and dequantizing between layers takes {conversions:.3f} of {profile.run_milliseconds:.3f} ms.")
    return tuple(told)


def _layer(node: ir.Node, kernels: Sequence[Kernel], types: dict[ir.Value, ir.DataType], profile: Profile, known: bool) -> Realised:
    name, planned = node.name or "", node.metadata_props.get(PLANNED, "fp32")
    operator = _operator(node)
    if not kernels:
        return Realised(name, operator, planned, "folded", reason=_why_folded(node, known))
    precisions = [_of_layer(name, kernel, types) for kernel in kernels]
    precision = next((word for word in precisions if word.startswith("int8")), next(filter(None, precisions), planned))
    own = [kernel for kernel in kernels if kernel.main == name]
    times = [profile.milliseconds[kernel.node] for kernel in own if kernel.node in profile.milliseconds]
    words = " + ".join(dict.fromkeys(kernel.node.op_type for kernel in own)) or f"{kernels[0].node.op_type} of {kernels[0].main}"
    reason = _why_different(node, planned, precision, kernels[0]) if precision != planned else ""
    outputs = [profile.output_bytes[kernel.node] for kernel in own if kernel.node in profile.output_bytes]
    return Realised(
        layer=name,
        operator=operator,
        planned=planned,
        realised=precision,
        kernel=words,
        ms=sum(times) if times else None,
        reason=reason,
        weights=sum(_weights(kernel.node) for kernel in own) if own else None,
        activations=max(outputs) if outputs else None,
    )


def _weights(kernel: ir.Node) -> int:
    """Bytes of the numbers that a kernel reads and no run changes, but for sizes, axes and indices."""
    read = {value for value in kernel.inputs if value is not None and value.is_initializer() and value.dtype in _STORED}
    return sum(math.ceil((elements(value) or 0) * value.dtype.itemsize) for value in read if value.dtype is not None)


def _operator(node: ir.Node) -> str:
    """What the user calls the operator; a product with a bias was a Gemm."""
    if node.op_type == "MatMulIntegerToFloat" and len(node.inputs) > _BIAS and node.inputs[_BIAS] is not None:
        return "Gemm"
    return _SOURCE.get(node.op_type, node.op_type)


def _why_folded(node: ir.Node, known: bool) -> str:
    if known:
        return "it depends on no input, so ONNX Runtime computed it before the run"
    if node.op_type in MOVES:
        return "it only moves numbers, and ONNX Runtime found a way without it"
    if node.op_type == "Add" and any(constant(value) is not None and not np.any(constant(value)) for value in node.inputs):
        return "the kernel before it adds its numbers"
    if node.op_type in _CLIPS:
        return "the kernel before it clips"
    return "nothing reads it any more, or ONNX Runtime found its numbers elsewhere"


def _why_different(node: ir.Node, planned: str, found: str, kernel: Kernel) -> str:
    if planned in {"fp16", "bf16"}:
        return f"ONNX Runtime's CPU has no {planned.upper()} kernel for {node.op_type} and converts to FP32 before it"
    if planned == "int8_dynamic":
        return f"ONNX Runtime kept the float kernel of {node.op_type}"
    if planned == "int8" and found == "fp32":
        return _why_float(node, kernel)
    if node.op_type in MOVES:
        return "its neighbours are INT8, and it moves their 8-bit numbers as they are"
    if kernel.main and kernel.main != node.name:
        return f"it is inside the kernel of {kernel.main}"
    return f"ONNX Runtime chose its kernel {kernel.node.op_type}"


def _why_float(node: ir.Node, kernel: Kernel) -> str:
    """Why a layer that was to run in INT8 runs in FP32: the first of ONNX Runtime's conditions that does not hold."""
    if kernel.main and kernel.main != node.name:
        return f"it is inside the FP32 kernel of {kernel.main}"
    if node.op_type not in COMPUTES_INT8 | MOVES_INT8:
        return REFUSALS.get(f"int8:{node.op_type}", f"ONNX Runtime has no INT8 kernel for {node.op_type}")
    for value in node.inputs[: 2 if node.op_type in _TWO_OPERANDS else 1]:
        if value is not None and not _dequantized(value):
            return f"its input {value.name} is not quantized"
    if not _quantized(node.outputs[0]):
        if node.op_type == "MatMul" and kernel.node.op_type == "Gemm":
            return "ONNX Runtime made a Gemm of it and the Add behind it, which stays float where its output is not quantized"
        return "its output is not quantized, and ONNX Runtime keeps the float kernel then"
    if (clip := _following(node)) is not None and kernel.main == node.name:
        return f"{clip.name} behind it is no part of its quantization, whose range reaches further, so both run in FP32"
    if node.op_type in MOVES_INT8:
        return f"ONNX Runtime moves 8-bit numbers through {node.op_type} only where they keep their scale, and not in every mode"
    return f"ONNX Runtime did not merge it with its Q/DQ and runs {kernel.node.op_type} in FP32 between them"


def _dequantized(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _following(node: ir.Node) -> ir.Node | None:
    """The activation that alone reads a layer's output."""
    following = readers(node.outputs[0])
    return following[0] if len(following) == 1 and following[0].op_type in APPENDED else None


def _quantized(value: ir.Value) -> bool:
    """Whether a tensor is read by a QuantizeLinear, at once or behind an activation that the kernel takes in."""
    following = readers(value)
    if len(following) == 1 and following[0].op_type in APPENDED:
        following = readers(following[0].outputs[0])
    return any(node.op_type == "QuantizeLinear" for node in following)


def _of_layer(name: str, kernel: Kernel, types: dict[ir.Value, ir.DataType]) -> str:
    """The precision in which a kernel computes one of its layers: a dynamic one is integer in its product alone."""
    precision = _precision(kernel.node, types)
    return "fp32" if precision == "int8_dynamic" and kernel.main != name else precision


def _precision(kernel: ir.Node, types: dict[ir.Value, ir.DataType]) -> str:
    """The precision of a kernel; empty where it handles integers only, of which no precision is to be told."""
    if kernel.op_type in _DYNAMIC or (kernel.op_type in _EITHER and _range_found_at_run(kernel)):
        return "int8_dynamic"
    if kernel.op_type in _STATIC or kernel.op_type in _EITHER or kernel.op_type.startswith("QLinear"):
        return "int8"
    seen = [types[value] for value in (*kernel.inputs, *kernel.outputs) if value is not None and value in types]
    if kernel.op_type in MOVES and any(dtype in _EIGHT_BITS for dtype in seen):
        return "int8"
    return next((_WORDS[dtype] for dtype in seen if dtype in _WORDS), "")


def _range_found_at_run(kernel: ir.Node) -> bool:
    value = kernel.inputs[0]
    while value is not None and (producer := value.producer()) is not None and producer.op_type in VIEWS:
        value = producer.inputs[0]
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DynamicQuantizeLinear"


def _types(optimized: ir.Model) -> dict[ir.Value, ir.DataType]:
    """The type of each tensor of the optimized graph: ONNX Runtime writes down only some, the others follow from the operator."""
    types = {value: value.dtype for value in (*optimized.graph.inputs, *optimized.graph.initializers.values()) if value.dtype is not None}
    for node in optimized.graph:
        for number, value in enumerate(node.outputs):
            if (dtype := value.dtype or _type(node, number, types)) is not None:
                types[value] = dtype
    return types


def _type(node: ir.Node, number: int, types: dict[ir.Value, ir.DataType]) -> ir.DataType | None:
    if node.op_type in {"QuantizeLinear", "DynamicQuantizeLinear"} or node.op_type in _STATIC or node.op_type.startswith("QLinear"):
        return ir.DataType.UINT8 if number != 1 else ir.DataType.FLOAT
    if node.op_type in {"MatMulInteger", "ConvInteger"}:
        return ir.DataType.INT32
    if node.op_type in {"Shape", "Size", "ArgMax", "ArgMin", "NonZero"} or (node.op_type == "TopK" and number == 1):
        return ir.DataType.INT64
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    known = [types[value] for value in node.inputs if value is not None and value in types]
    if node.op_type in MOVES:
        return known[0] if known else None
    return next((dtype for dtype in known if dtype in _WORDS), known[0] if known else None)
