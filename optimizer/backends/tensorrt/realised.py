"""From the kernels of a built engine back to the user's layers: every layer once, with the precision that it runs in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from optimizer.backends.tensorrt.layers import FLOATS, Kernel
from optimizer.backends.tensorrt.network import plain
from optimizer.engine import Launch, Realised
from optimizer.model import PLANNED, is_layer

MATRIX = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN"})
"""Operators with matrix products: what type they multiply in is a choice of the engine's, not only of the graph's."""

CARRIERS = frozenset({"Concat", "Expand", "Flatten", "Gather", "MaxPool", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that hand numbers on: quantizing before or behind them is the same."""

_NAMES = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16", ir.DataType.DOUBLE: "fp64"}
_SHOWN = 5


def launches(kernels: Iterable[Kernel], layers: Mapping[str, str]) -> tuple[Launch, ...]:
    """Each kernel with the user's layers in it; `layers` leads from a node's name in the engine to a layer's, or to ""."""
    return tuple(Launch(kernel.name, kernel.kind, _layers_in(kernel, layers), kernel.precision, kernel.bytes) for kernel in kernels)


def realised(
    graph: ir.Model, kernels: Sequence[Kernel], layers: Mapping[str, str], reasons: Mapping[str, str], compute: str
) -> tuple[Realised, ...]:
    """What became of each layer of the typed graph. `reasons` says why a quantized layer can't run in INT8."""
    homes: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        for layer in _layers_in(kernel, layers):
            homes.setdefault(layer, []).append(kernel)
    return tuple(_realised(node, homes.get(node.name or "", []), reasons, compute) for node in graph.graph if is_layer(node))


def summary(found: Iterable[Realised]) -> tuple[str, ...]:
    """One sentence for each reason that kept layers from their planned precision, with the layers."""
    by_reason: dict[tuple[str, str, str], list[str]] = {}
    for layer in found:
        if layer.realised not in {layer.planned, "folded"}:
            by_reason.setdefault((layer.planned, layer.realised, layer.reason), []).append(layer.layer)
    return tuple(
        f"{len(names)} planned in {planned} run in {got}: {', '.join(names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''} ({reason})"
        for (planned, got, reason), names in by_reason.items()
    )


def _layers_in(kernel: Kernel, layers: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer for node in kernel.nodes if (layer := layers.get(node, ""))))


def _realised(node: ir.Node, homes: Sequence[Kernel], reasons: Mapping[str, str], compute: str) -> Realised:
    name, declared = node.name or "", _declared(node)
    planned = node.metadata_props.get(PLANNED) or ("int8" if _quantized(node) else declared)
    if declared not in _NAMES.values():  # integers have no precision to plan
        planned = declared
    if not homes:
        return Realised(
            name, node.op_type, planned, "folded", reason="no kernel names it: worked out at build time, or part of a neighbour's indexing"
        )
    home = _home(name, homes)
    got, reason = _precision(node, home, declared)
    if got != planned:
        reason = reasons.get(name) or reason or f"TensorRT-RTX picked a kernel that reads {home.precision} for {compute}"
    return Realised(name, node.op_type, planned, got, home.name, reason=reason if got != planned else "")


def _home(name: str, homes: Sequence[Kernel]) -> Kernel:
    """The kernel that does a layer's work: a matrix product, to the ones that prepare its inputs or finish its outputs.

    Of several products it is the one that names the layer itself: a fused attention may write the numbers that the next layer's
    quantizer gives, and then names that quantizer, too.
    """
    own = [kernel for kernel in homes if plain(name) in kernel.nodes]
    return next((kernel for kernel in (*own, *homes) if kernel.product), homes[0])


def _precision(node: ir.Node, home: Kernel, declared: str) -> tuple[str, str]:
    """The precision in which a kernel runs a layer, and what to say if that is not the planned one.

    A matrix product runs in the type that it reads, or where it was fused behind another layer, whose wider numbers the kernel
    reads, in that of its weights. Other layers keep the type that the graph gives them, because networks are
    strongly typed; inside an INT8 kernel they run on its accumulators and no tensor of theirs is to be seen.
    """
    if node.op_type in MATRIX:
        weights = {operand.precision for operand in home.constants or home.outputs if not operand.scalar}
        fused = not home.product and home.precision in FLOATS and declared in weights
        return declared if fused else home.precision, ""
    seen = [precision for precision in FLOATS if precision in home.types]
    if declared in FLOATS and seen and declared not in seen:
        return seen[0], f"its kernel reads and writes {' and '.join(sorted(home.types))}"
    if declared in FLOATS and home.types == {"int8"} and node.op_type in CARRIERS:
        return "int8", "its quantizer was moved ahead of it, which gives the same numbers"
    return declared, ""


def _declared(node: ir.Node) -> str:
    """The floating type that the graph gives a layer, or the type of its output where it carries no floats."""
    types = [value.dtype for value in (*node.outputs, *node.inputs) if value is not None and value.dtype is not None]
    floating = next((_NAMES[dtype] for dtype in types if dtype in _NAMES), None)
    return floating or (types[0].name.lower() if types else "")


def _quantized(node: ir.Node) -> bool:
    """Whether activation and weight of a matrix product both come from integers."""
    sources = [value.producer() if value is not None else None for value in node.inputs[:2]]
    return (
        node.op_type in MATRIX
        and len(sources) == 2
        and all(source is not None and source.op_type == "DequantizeLinear" for source in sources)
    )
