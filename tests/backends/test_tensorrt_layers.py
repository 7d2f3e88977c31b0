"""The layer list of TensorRT-RTX is text: what is read out of a line must be what the line says, and no other line may pass."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from optimizer.backends.tensorrt.layers import Kernel, Operand, kernels_from_log, memory_from_log
from optimizer.backends.tensorrt.realised import realised
from optimizer.errors import UnavailableError

NHWC = "StrideOrder: [3,0,2,1], Datatype: {}, Format: (NHWC) Channel major format }}"
CONVOLUTION = (
    "Name: stem_myl0_1, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [1,4,32,32], Strides: [4096,1,128,4], "
    + NHWC.format("Int8")
    + ", { Name: b, Dimensions: [1,16,32,32], Strides: [16384,1,512,16], "
    + NHWC.format("Half")
    + "], Constants: [ { Name: w, Dimensions: [16,4,3,3], Strides: [36,1,12,4], "
    + NHWC.format("Int8")
    + ", { Name: s, Dimensions: [1], Strides: [1], "
    + NHWC.format("Float")
    + "], Outputs: [ { Name: y, Dimensions: [1,16,32,32], Strides: [16384,1,512,16], "
    + NHWC.format("Half")
    + "], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: stem][ONNX Layer: stem.dq][ONNX Layer: add]"
)
SIGNAL = "Name: s_myl0_1, LayerType: signal, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, EventId: 1, Metadata: "


def test_a_line_tells_kernel_types_bytes_and_nodes() -> None:
    (kernel,) = kernels_from_log([CONVOLUTION])
    assert (kernel.name, kernel.kind, kernel.precision, kernel.product) == ("stem_myl0_1", "correlation", "int8", True)
    assert kernel.nodes == ("stem", "stem.dq", "add")
    assert kernel.types == {"int8", "fp16"}, "a scale of one number is no tensor"
    assert kernel.bytes == 4 * 1024 + 2 * 16 * 1024 + 16 * 4 * 9 + 4 + 2 * 16 * 1024


def test_entries_that_launch_nothing_are_left_out() -> None:
    assert [kernel.name for kernel in kernels_from_log([SIGNAL, CONVOLUTION])] == ["stem_myl0_1"]


def test_a_free_dimension_counts_as_one() -> None:
    (kernel,) = kernels_from_log([CONVOLUTION.replace("[1,16,32,32]", "[-1,16,32,32]")])
    assert kernel.bytes == kernels_from_log([CONVOLUTION])[0].bytes


def test_a_form_that_is_not_known_is_no_silent_gap() -> None:
    with pytest.raises(UnavailableError, match="a form that is not known here"):
        kernels_from_log([CONVOLUTION.replace("Constants", "Konstanten")])


def test_memory_is_read_from_the_log() -> None:
    log = ["Max Scratch Memory: 8273920 bytes", "Total Activation Memory: 8273921 bytes", "Total Weights Memory: 6916 bytes"]
    assert memory_from_log(log) == {"weights": 6916, "activations": 8273921, "scratch": 8273920}


def test_a_product_whose_quantizer_a_fused_attention_runs_is_told_by_its_own_kernel() -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[4, 4] x, float[4, 4] w) => (float[4, 4] y) { y = MatMul(x, w) }'
    graph = ir.from_onnx_text(text)
    graph.graph[0].name = "dense[0]"
    graph.graph[0].metadata_props["optimize.planned"] = "int8"
    half, byte = Operand((4, 4), "Half"), Operand((4, 4), "Int8")
    attention = Kernel("_gemm_mha_v2_myl0_1", "runtime_fusion", (half,), (), (byte,), ("matmul", "dense.quantize"))
    product = Kernel("dense_myl0_2", "gemm", (byte,), (byte,), (half,), ("dense(0)",))
    names = {"matmul": "matmul", "dense.quantize": "dense[0]", "dense(0)": "dense[0]"}
    (found,) = realised(graph, (attention, product), names, {}, "sm_89")
    assert (found.realised, found.kernel) == ("int8", "dense_myl0_2")


def test_a_layer_of_integers_is_no_layer_that_missed_its_precision() -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> g (int64[4] x, int64[1] axes) => (int64[1, 4] y) { y = Unsqueeze(x, axes) }'
    graph = ir.from_onnx_text(text)
    graph.graph[0].name = "mask"
    graph.graph[0].metadata_props["optimize.planned"] = "fp32"
    whole = Operand((4,), "Int64")
    (found,) = realised(graph, [Kernel("move", "kgen", (whole,), (), (whole,), ("mask",))], {"mask": "mask"}, {}, "sm_89")
    assert (found.planned, found.realised, found.reason) == ("int64", "int64", "")


@pytest.mark.parametrize(("weights", "got"), [("Half", "fp16"), ("Float", "fp32")])
def test_a_product_behind_a_normalization_in_one_kernel_runs_in_the_type_of_its_weights(weights: str, got: str) -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float16[4, 4] x, float16[4, 4] w) => (float16[4, 4] y) { y = MatMul(x, w) }'
    graph = ir.from_onnx_text(text)
    graph.graph[0].name = "head"
    graph.graph[0].metadata_props["optimize.planned"] = "fp16"
    full, half = Operand((4, 4), "Float"), Operand((4, 4), "Half")
    kernel = Kernel("__myl_SqrtDivMulMulSum", "kgen", (full,), (Operand((4, 4), weights),), (half,), ("norm", "head"))
    (found,) = realised(graph, [kernel], {"norm": "norm", "head": "head"}, {}, "sm_89")
    assert found.realised == got


def test_sizes_handed_over_to_the_device_are_no_kernel() -> None:
    line = (
        "Name: [ShapeHostToDeviceCopy 0], LayerType: ShapeHostToDevice, Inputs: [], Outputs: [ { Name: a, Location: Device, "
        "Dimensions: [], Datatype: Int32, Format: Format not available due to dynamic shapes }], ParameterType: ShapeH2D, "
        "StreamId: 0, Metadata: "
    )
    assert kernels_from_log([line]) == ()
