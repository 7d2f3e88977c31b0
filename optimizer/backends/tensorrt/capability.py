"""What TensorRT can do by architecture, as data; seen by building engines for each of them, not taken from a list of claims."""

from __future__ import annotations

from collections.abc import Mapping

from kernels.target import Target
from optimizer.plan import Capability, Precision

OPSET = 23
"""The newest opset whose operators the parser reads, and the first where DequantizeLinear can write FP16 from FP32 scales."""

RECURRENT = ("LSTM", "GRU", "RNN")

_INTEGER_OPERATORS = "TensorRT reads no DynamicQuantizeLinear or MatMulInteger: ranges come from --calibration, before the build"

_REFUSALS: Mapping[str, str] = {
    "int8_dynamic": _INTEGER_OPERATORS,
    "int8:ConvTranspose": "TensorRT-RTX runs a quantized ConvTranspose in float",
    "int8:DepthwiseConv": "a depthwise convolution is padded to four times its channels in INT8 and gets slower",
    **{f"int8:{operator}": f"TensorRT has no INT8 {operator}" for operator in RECURRENT},
    "bf16:GRU": "TensorRT-RTX refuses a GRU in BF16",
}

_SM75_MATRIX = "GPUs of compute capability 7.5 (T4, RTX 20) multiply no FP32 matrices in TensorRT-RTX: FP16 is the highest precision there"

_SM75_REFUSALS: Mapping[str, str] = {
    "bf16": "GPUs of compute capability 7.5 (T4, RTX 20) have no BF16",
    "int8:Conv": "TensorRT-RTX runs a quantized convolution in FP16 on compute capability 7.5 and dequantizes its weights at every run",
    **{f"fp32:{operator}": _SM75_MATRIX for operator in ("MatMul", "Gemm", "Einsum", *RECURRENT)},
}

_FUSED_HEADS = frozenset({16, 32, 64})
"""Head sizes for which an attention in INT8 is one kernel, up to a length that depends on the architecture."""

_PRECISIONS: frozenset[Precision] = frozenset({"fp32", "fp16", "bf16", "int8"})


def capability_of(target: Target, runs_here: bool) -> Capability:
    """What the target's engines can hold. GPUs without TensorRT-RTX have the same, for the graph of their handover."""
    turing = target.compute == "sm_75"
    return Capability(
        precisions=_PRECISIONS - {"bf16"} if turing else _PRECISIONS,
        activation="int8",
        int8_operators=frozenset({"Gemm", "MatMul"} if turing else {"Conv", "Gemm", "MatMul"}),
        base="fp16",
        opset=OPSET,
        runs_here=runs_here,
        fused_operators=frozenset({"Gelu", "HardSwish", "LayerNormalization"}),
        scalar_weight_scale=True,
        attention_head_sizes=_FUSED_HEADS,
        attention_length=352 if turing else 512,
        float_bias=True,
        integer_operators=False,
        dynamic_shapes=False,  # one engine, one shape; a range of shapes is what the graph's metadata asks for
        refusals={**_REFUSALS, **(_SM75_REFUSALS if turing else {})},
    )
