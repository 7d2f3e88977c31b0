"""What ONNX Runtime's CPU kernels can do: data that `capability` states and the reasons of realised layers refer to."""

from __future__ import annotations

COMPUTES_INT8 = frozenset(
    {"Conv", "MatMul", "Gemm", "Add", "Mul", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Concat", "Where"}
)
"""Operators whose Q/DQ are merged into a kernel on 8-bit numbers.

There is one for Softmax as well, left out because it takes two to three times as long as the float kernel (Zen 4).
"""

MOVES_INT8 = frozenset(
    {"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"}
    | {"Slice", "Split", "Gather", "Resize", "Expand", "Tile", "DepthToSpace"}
)
"""Operators that take 8-bit numbers as they are, where the Q/DQ around them have one scale."""

DYNAMIC = frozenset({"MatMul", "Gemm", "LSTM"})
"""Operators with a fast kernel that finds the range of its activations at every run."""

APPENDED = frozenset({"Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "HardSwish"})
"""Operators that are appended to the kernel before them."""

VIEWS = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast", "Dropout", "ReorderInput", "ReorderOutput"}
)
"""Operators that move numbers or change their form, and compute nothing: ONNX Runtime puts them in and takes them out."""

MOVES = VIEWS | MOVES_INT8 | {"Concat", "Pad", "SpaceToDepth"}
"""Operators whose output holds numbers of their input."""

REFUSALS = {
    "fp16": "ONNX Runtime's CPU kernels compute FP16 in FP32 between operators: slower, and not what you asked for",
    "bf16": "ONNX Runtime's CPU has no BF16 Conv, MatMul or Gemm",
    "int8:Softmax": "ONNX Runtime's INT8 kernel for Softmax is slower than its FP32 kernel",
    "int8:LSTM": "ONNX Runtime has no LSTM on statically quantized numbers; int8_dynamic has one",
    "int8:GRU": "ONNX Runtime has no INT8 kernel for GRU",
    "int8:RNN": "ONNX Runtime has no INT8 kernel for RNN",
    "int8:ConvTranspose": "ONNX Runtime has no INT8 kernel for ConvTranspose",
    "int8:TreeEnsembleClassifier": "a tree ensemble compares numbers, and has nothing to quantize",
    "int8:TreeEnsembleRegressor": "a tree ensemble compares numbers, and has nothing to quantize",
    "int8:TreeEnsemble": "a tree ensemble compares numbers, and has nothing to quantize",
    "int8_dynamic:Conv": "ONNX Runtime's dynamic INT8 convolution takes several times as long as its FP32 one",
    "int8_dynamic:GRU": "ONNX Runtime has no INT8 kernel for GRU",
}
"""Why a precision, or a precision of an operator, can't be had, in the user's words."""
