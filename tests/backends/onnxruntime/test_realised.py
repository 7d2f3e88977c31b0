from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from kernels.target import this_cpu
from optimizer.backends import backend
from optimizer.engine import Built, Realised
from optimizer.graph import infer_shapes
from optimizer.model import PLANNED, layers

Make = Callable[..., ir.Model]


def built(graph: ir.Model, folder: Path) -> Built:
    return backend("onnxruntime").build(graph, this_cpu(), {"threads": 1}, folder)


def realised(graph: ir.Model, folder: Path) -> dict[str, Realised]:
    """By layer; fails where a layer is told twice or not at all."""
    told = built(graph, folder).realised
    assert [layer.layer for layer in told] == [layer.name for layer in layers(graph)]
    assert max(Counter(layer.layer for layer in told).values()) == 1
    return {layer.layer.removeprefix("layer."): layer for layer in told}


def kernels(found: dict[str, Realised]) -> dict[str, str]:
    return {name: layer.kernel for name, layer in found.items()}


def test_convolutions_with_a_layout_of_their_own_are_found_under_the_layers_that_they_took_in(graph: Make, tmp_path: Path) -> None:
    found = realised(graph("residual"), tmp_path)
    assert kernels(found) == {
        "c1": "Conv",
        "r1": "Conv of layer.c1",
        "c2": "Conv",
        "r2": "Conv of layer.c2",
        "c3": "Conv",
        "a": "Conv of layer.c3",
        "r3": "Conv of layer.c3",
        "p": "GlobalAveragePool",
        "f": "Flatten",
        "y": "Gemm",
    }
    assert {layer.realised for layer in found.values()} == {"fp32"}
    assert all(layer.reason == "" for layer in found.values())


def test_static_int8_of_a_residual_network_is_realised_in_every_layer(graph: Make, quantized: Make, tmp_path: Path) -> None:
    found = realised(quantized(graph("residual")), tmp_path)
    assert {name: (layer.realised, layer.kernel) for name, layer in found.items()} == {
        "c1": ("int8", "QLinearConv"),
        "c2": ("int8", "QLinearConv"),
        "c3": ("int8", "QLinearConv"),
        "a": ("int8", "QLinearAdd"),
        "p": ("int8", "QLinearGlobalAveragePool"),
        "f": ("int8", "Flatten"),
        "y": ("int8", "QGemm"),
    }


def test_the_merged_kernels_of_a_transformer_are_found_under_their_layers(graph: Make, tmp_path: Path) -> None:
    found = kernels(realised(graph("transformer"), tmp_path))
    assert found["q0"] == found["k0"] == found["u0"] == "Gemm"
    assert found["q1"] == "Gemm of layer.q0"
    assert found["u1"] == "Gemm of layer.u0"
    assert found["qk"] == "FusedMatMul"
    assert found["scores"] == "FusedMatMul of layer.qk"
    assert found["norm1"] == found["y"] == "SkipLayerNormalization"
    assert found["sum1"] == "SkipLayerNormalization of layer.norm1"
    assert found["sum2"] == "SkipLayerNormalization of layer.y"
    assert found["mixed"] == "MatMul"
    assert found["gelu"] == "Gelu"


def test_layers_of_a_transformer_that_stay_float_in_static_int8_say_why(graph: Make, quantized: Make, tmp_path: Path) -> None:
    found = realised(quantized(graph("transformer")), tmp_path)
    float_layers = {name for name, layer in found.items() if layer.realised == "fp32"}
    assert float_layers == {"scores", "norm1", "gelu", "y"}
    assert found["gelu"].reason == "ONNX Runtime has no INT8 kernel for Gelu"
    assert {found[name].kernel for name in ("q0", "qk", "mixed", "o0", "u0", "d0")} == {"QLinearMatMul"}
    assert {found[name].realised for name in ("q2", "k", "back", "flat")} == {"int8"}


def test_dynamic_int8_is_told_from_static_int8_and_its_bias_is_float(graph: Make, dynamic: Make, tmp_path: Path) -> None:
    found = realised(dynamic(graph("transformer")), tmp_path)
    products = [layer for name, layer in found.items() if name.endswith("_quant")]
    assert len(products) == 6
    assert {(layer.planned, layer.realised, layer.reason) for layer in products} == {("int8_dynamic", "int8_dynamic", "")}
    assert {layer.kernel for layer in products} == {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
    assert (found["u1"].realised, found["u1"].kernel) == ("fp32", "DynamicQuantizeMatMul of layer.u0_quant")
    assert found["qk"].realised == "fp32"


def test_recurrent_layers_are_found_in_float(graph: Make, tmp_path: Path) -> None:
    found = realised(graph("recurrent"), tmp_path)
    assert kernels(found) == {"h1": "LSTM", "s": "Squeeze", "h2": "LSTM", "y": "MatMul"}


def with_constants(model: ir.Model, arrays: dict[str, np.ndarray], planned: str) -> ir.Model:
    """The model with initializers for the names that its nodes read, every node planned alike and named after its output."""
    for node in model.graph:
        node.name = f"layer.{node.outputs[0].name}"
        node.metadata_props[PLANNED] = planned
        for value in node.inputs:
            if value is not None and value.name in arrays and value.name not in model.graph.initializers:
                value.const_value = ir.tensor(arrays[value.name], name=value.name)
                model.graph.register_initializer(value)
    return model


def test_a_recurrent_layer_with_integer_weights_is_dynamic_int8_and_called_as_the_user_calls_it(tmp_path: Path) -> None:
    text = """
    <ir_version: 9, opset_import: ["": 20, "com.microsoft": 1]>
    g (float[12,1,32] x) => (float[12,1,1,64] h) {
      h = com.microsoft.DynamicQuantizeLSTM<hidden_size=64>(x, w, r, , , , , , s, z, s, z)
    }"""
    arrays = {
        "w": np.ones((1, 32, 256), np.int8),
        "r": np.ones((1, 64, 256), np.int8),
        "s": np.full(1, 0.01, np.float32),
        "z": np.zeros(1, np.int8),
    }
    found = realised(with_constants(ir.from_onnx_text(text), arrays, "int8_dynamic"), tmp_path)["h"]
    assert (found.operator, found.realised, found.kernel, found.reason) == ("LSTM", "int8_dynamic", "DynamicQuantizeLSTM", "")


QUANTIZED_INPUT = "qx = QuantizeLinear(x, s, z)\n dx = DequantizeLinear(qx, s, z)\n"
QUANTIZED_WEIGHT = "dw = DequantizeLinear(w, t, zw)\n"
QUANTIZED_OUTPUT = "qy = QuantizeLinear(c, t, z)\n y = DequantizeLinear(qy, t, z)\n"
QUANTIZED_FROM_ZERO = "qy = QuantizeLinear(c, t, z0)\n y = DequantizeLinear(qy, t, z0)\n"


def around_one_layer(body: str, planned: str = "int8") -> ir.Model:
    """x -> ... c ... -> y on 1x8x4x4. Constants: w 8-bit and fw float weight, s and t scales, z, z0 and zw zero points."""
    text = f'<ir_version: 9, opset_import: ["": 20]> g (float[1,8,4,4] x) => (float[1,8,4,4] y) {{ {body} }}'
    arrays = {
        "s": np.array(0.02, np.float32),
        "t": np.array(0.03, np.float32),
        "z": np.array(128, np.uint8),
        "z0": np.array(0, np.uint8),
        "zw": np.array(0, np.int8),
        "w": np.ones((8, 8, 1, 1), np.int8),
        "fw": np.ones((8, 8, 1, 1), np.float32),
    }
    return with_constants(ir.from_onnx_text(text), arrays, planned)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            QUANTIZED_INPUT + QUANTIZED_WEIGHT + "c = Conv(dx, dw) y = Exp(c)",
            "its output is not quantized, and ONNX Runtime keeps the float kernel then",
        ),
        (QUANTIZED_WEIGHT + "c = Conv(x, dw)" + QUANTIZED_OUTPUT, "its input x is not quantized"),
        (QUANTIZED_INPUT + "c = Conv(dx, fw)" + QUANTIZED_OUTPUT, "its input fw is not quantized"),
        (QUANTIZED_INPUT + "c = Tanh(dx)" + QUANTIZED_OUTPUT, "ONNX Runtime has no INT8 kernel for Tanh"),
        (
            QUANTIZED_INPUT + "c = Transpose<perm=[0,1,3,2]>(dx)" + QUANTIZED_OUTPUT,
            "ONNX Runtime moves 8-bit numbers through Transpose only where they keep their scale, and not in every mode",
        ),
    ],
)
def test_a_layer_that_was_to_be_int8_and_is_float_says_which_condition_fails(body: str, reason: str, tmp_path: Path) -> None:
    found = realised(around_one_layer(body), tmp_path)["c"]
    assert (found.planned, found.realised, found.reason) == ("int8", "fp32", reason)


def test_a_layer_that_was_to_stay_float_between_int8_layers_stays_float(tmp_path: Path) -> None:
    found = realised(around_one_layer(QUANTIZED_INPUT + "c = Conv(dx, fw)" + QUANTIZED_OUTPUT, "fp32"), tmp_path)["c"]
    assert (found.realised, found.reason) == ("fp32", "")


def test_a_relu_that_its_quantization_contains_is_part_of_the_int8_kernel(tmp_path: Path) -> None:
    body = QUANTIZED_INPUT + QUANTIZED_WEIGHT + "a = Conv(dx, dw) c = Relu(a)" + QUANTIZED_FROM_ZERO
    found = realised(around_one_layer(body), tmp_path)
    assert (found["a"].realised, found["a"].kernel, found["a"].reason) == ("int8", "QLinearConv", "")
    assert (found["c"].realised, found["c"].kernel, found["c"].reason) == ("int8", "QLinearConv of layer.a", "")


def test_a_relu_whose_quantization_reaches_below_zero_keeps_its_convolution_float_and_is_named(tmp_path: Path) -> None:
    body = QUANTIZED_INPUT + QUANTIZED_WEIGHT + "a = Conv(dx, dw) c = Relu(a)" + QUANTIZED_OUTPUT
    found = realised(around_one_layer(body), tmp_path)
    assert found["a"].realised == "fp32"
    assert found["a"].reason == "layer.c behind it is no part of its quantization, whose range reaches further, so both run in FP32"
    assert found["c"].reason == "it is inside the FP32 kernel of layer.a"


def test_a_product_that_became_a_gemm_in_float_says_so(tmp_path: Path) -> None:
    text = """
    <ir_version: 9, opset_import: ["": 20]>
    g (float[4,8] x) => (float[4,8] y) {
      qx = QuantizeLinear(x, s, z)
      dx = DequantizeLinear(qx, s, z)
      dw = DequantizeLinear(w, t, zw)
      c = MatMul(dx, dw)
      y = Add(c, b)
    }"""
    arrays = {
        "s": np.array(0.02, np.float32),
        "t": np.array(0.03, np.float32),
        "z": np.array(128, np.uint8),
        "zw": np.array(0, np.int8),
        "w": np.ones((8, 8), np.int8),
        "b": np.ones(8, np.float32),
    }
    model = with_constants(ir.from_onnx_text(text), arrays, "int8")
    infer_shapes(model)
    found = realised(model, tmp_path)["c"]
    assert (found.realised, found.kernel) == ("fp32", "Gemm")
    assert "made a Gemm of it and the Add behind it" in found.reason


def test_what_is_computed_before_the_run_or_removed_is_folded_with_the_reason(graph: Make, tmp_path: Path) -> None:
    text = """
    <ir_version: 9, opset_import: ["": 20]>
    g (float[4,8] x) => (float[4,8] y) {
      one = Constant<value=float {1.5}>()
      known = Exp(one)
      t1 = Transpose<perm=[1,0]>(x)
      t2 = Transpose<perm=[1,0]>(t1)
      m = Mul(t2, known)
      y = Exp(m)
    }"""
    found = realised(graph(text), tmp_path)
    assert {name for name, layer in found.items() if layer.realised == "folded"} == {"known", "t1", "t2"}
    assert "computed it before the run" in found["known"].reason
    assert "only moves numbers" in found["t1"].reason


def test_a_layer_that_becomes_two_kernels_has_the_names_and_times_of_both(graph: Make, tmp_path: Path) -> None:
    text = '<ir_version: 9, opset_import: ["": 20]> g (float[4,8] x) => (float[4,8] y) { h = HardSwish(x)\n y = Tanh(h) }'
    found = realised(graph(text), tmp_path)
    assert found["h"].kernel == "HardSigmoid + Mul"
    assert found["h"].ms is not None


def test_a_layer_in_several_kernels_between_quantized_ones_is_not_taken_for_their_conversion(tmp_path: Path) -> None:
    head = QUANTIZED_INPUT + QUANTIZED_WEIGHT + "a = Conv(dx, dw) qa = QuantizeLinear(a, s, z) da = DequantizeLinear(qa, s, z)"
    tail = "qh = QuantizeLinear(h, s, z) dh = DequantizeLinear(qh, s, z) dv = DequantizeLinear(w, t, zw) c = Conv(dh, dv)"
    found = realised(around_one_layer(f"{head} h = HardSwish(da) {tail} {QUANTIZED_OUTPUT}"), tmp_path)
    assert (found["h"].realised, found["h"].kernel) == ("fp32", "HardSigmoid + Mul")
    assert (found["a"].kernel, found["c"].kernel) == ("QLinearConv", "QLinearConv")


def test_half_precision_runs_in_fp32_and_says_so(tmp_path: Path) -> None:
    text = """
    <ir_version: 9, opset_import: ["": 20]>
    g (float[4,8] x) => (float[4,8] y) {
      h = Cast<to=10>(x)
      s = Softmax(h)
      y = Cast<to=1>(s)
    }"""
    found = realised(with_constants(ir.from_onnx_text(text), {}, "fp16"), tmp_path)["s"]
    assert found.realised == "fp32"
    assert found.reason == "ONNX Runtime's CPU has no FP16 kernel for Softmax and converts to FP32 before it"


def test_every_millisecond_of_a_layer_stands_with_one_layer(graph: Make, tmp_path: Path) -> None:
    found = realised(graph("transformer"), tmp_path)
    assert all((layer.ms is None) == (" of " in layer.kernel) for layer in found.values())
    assert all(layer.ms > 0 for layer in found.values() if layer.ms is not None)


def test_no_time_is_made_up_where_made_up_inputs_do_not_fit(graph: Make, tmp_path: Path) -> None:
    text = """
    <ir_version: 9, opset_import: ["": 20]>
    g (float[N,K] x) => (float[N,4] y) {
      y = MatMul(x, w)
    }"""
    result = built(graph(text, {"w": (5, 4)}), tmp_path)
    assert [layer.ms for layer in result.realised] == [None]
    assert [layer.realised for layer in result.realised] == ["fp32"]
    assert "there are no times by layer" in result.notes[0]


def test_the_usual_shapes_of_free_dimensions_are_taken_from_the_graph(graph: Make, tmp_path: Path) -> None:
    text = '<ir_version: 9, opset_import: ["": 20]> g (float[N,K] x) => (float[N,4] y) { y = MatMul(x, w) }'
    model = graph(text, {"w": (5, 4)})
    model.metadata_props["optimize.shapes"] = '{"x": [[1, 5], [16, 5], [64, 5]]}'
    result = built(model, tmp_path)
    assert result.notes == ()
    assert result.realised[0].ms is not None
    assert result.memory["activations"] == 16 * 4 * 4


def test_a_guessed_size_of_a_free_dimension_is_told(graph: Make, tmp_path: Path) -> None:
    text = '<ir_version: 9, opset_import: ["": 20]> g (float[N,K] x) => (float[N,K] y) { y = Exp(x) }'
    notes = built(graph(text), tmp_path).notes
    assert notes == ("Times by layer were taken with free dimensions at 1, because nothing told their usual sizes.",)


def test_integer_inputs_are_zeros_so_that_indices_stay_inside_their_table(graph: Make, tmp_path: Path) -> None:
    text = """
    <ir_version: 9, opset_import: ["": 20]>
    g (int64[1,6] i, bool[1] b) => (float[1,6,4] y) {
      e = Gather(table, i)
      y = Where(b, e, e)
    }"""
    found = realised(graph(text, {"table": (3, 4)}), tmp_path)
    assert found["e"].ms is not None


def test_quantized_weights_take_a_quarter_and_what_was_written_for_the_profile_is_gone(
    graph: Make, quantized: Make, tmp_path: Path
) -> None:
    (tmp_path / "float").mkdir()
    (tmp_path / "int8").mkdir()
    whole, small = built(graph("transformer"), tmp_path / "float"), built(quantized(graph("transformer")), tmp_path / "int8")
    assert small.memory["weights"] < 0.3 * whole.memory["weights"]
    assert small.memory["file"] == (tmp_path / "int8" / "engine.onnx").stat().st_size
    assert [path.name for path in (tmp_path / "int8").iterdir()] == ["engine.onnx"]


def test_the_peak_of_activations_counts_what_is_alive_at_once(graph: Make, tmp_path: Path) -> None:
    text = """
    <ir_version: 9, opset_import: ["": 20]>
    g (float[1000] x) => (float[1000] y) {
      a = Exp(x)
      b = Tanh(a)
      c = Sin(b)
      d = Cos(c)
      y = Add(d, a)
    }"""
    assert built(graph(text), tmp_path).memory["activations"] == 3 * 4000
