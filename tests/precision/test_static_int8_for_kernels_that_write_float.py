"""Static INT8 in the style of TensorRT: int8 with zero point 0 on inputs only, scalar weight scales, FP16 around it."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer.graph import constant
from optimizer.model import FOR_LAYER
from optimizer.plan import Plan
from optimizer.precision import eligible, settled, typed
from optimizer.reference import Reference, simulated


@pytest.fixture
def int8(gpu, samples, ranged):
    def build(model, capability=gpu, without=()):
        reasons = eligible(model, capability, "int8")
        layers = [name for name, reason in reasons.items() if reason is None and name not in without]
        plan = ranged(model, Plan("any", "gpu", "fp16", dict.fromkeys(layers, "int8")), capability, samples(model))
        return plan, typed(model, plan, capability)

    return build


def by_operator(graph: ir.Model, operator: str) -> list[ir.Node]:
    return [node for node in graph.graph if node.op_type == operator]


@pytest.mark.parametrize("name", ["residual", "transformer", "recommender"])
def test_no_zero_point_no_uint8_no_integer_bias_and_only_float32_scales(name, int8, request):
    _plan, graph = int8(request.getfixturevalue(name))
    nodes = by_operator(graph, "QuantizeLinear") + by_operator(graph, "DequantizeLinear")
    assert nodes
    for node in nodes:
        assert node.inputs[1].dtype == ir.DataType.FLOAT, "FP16 scales wreck a model"
        assert constant(node.inputs[1]).ndim == 0, "one scale a tensor"
        zero = constant(node.inputs[2])
        assert zero.dtype == np.int8
        assert not zero.any()


@pytest.mark.parametrize(("name", "decibels"), [("residual", 38), ("transformer", 33), ("recommender", 45)])
def test_the_typed_graph_is_valid_and_its_simulation_stays_close_to_float(name, decibels, int8, samples, sqnr, request):
    model = request.getfixturevalue(name)
    _plan, graph = int8(model)
    assert graph.opset_imports[""] == 23, "before opset 23 no DequantizeLinear writes FP16 from float32 scales"
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    feeds = samples(model)
    exact, found = Reference(model.graph).run(feeds), Reference(simulated(graph)).run(feeds)
    assert all(sqnr(exact[name], found[name]) > decibels for name in exact)


def test_only_inputs_of_convolutions_are_quantized_and_the_residual_add_reads_float(residual, int8):
    plan, graph = int8(residual)
    assert set(plan.ranges) == {"x", "p1", "r2"}
    assert len(by_operator(graph, "QuantizeLinear")) == 3
    (add,) = [node for node in by_operator(graph, "Add") if FOR_LAYER not in node.metadata_props]
    assert all(value.producer().op_type != "DequantizeLinear" for value in add.inputs)


def test_a_bias_stands_in_float_behind_the_ratios_of_the_channels(residual, int8):
    _plan, graph = int8(residual)
    conv = next(node for node in graph.graph if node.name == "conv.c2")
    assert len(conv.inputs) == 2
    ratio = conv.outputs[0].consumers()[0]
    assert (ratio.op_type, ratio.metadata_props[FOR_LAYER]) == ("Mul", "conv.c2")
    bias = ratio.outputs[0].consumers()[0]
    assert (bias.op_type, bias.metadata_props[FOR_LAYER]) == ("Add", "conv.c2")
    assert bias.outputs[0].name == "c2", "what reads the layer reads it whole, by its name"
    exact = residual.graph.graph.initializers["conv1_weight"].const_value.numpy()
    dequantize = conv.inputs[1].producer()
    found = constant(dequantize.inputs[0]) * constant(dequantize.inputs[1]) * constant(ratio.inputs[1]).astype(np.float32)[..., None]
    assert np.abs(found - exact).max(axis=(1, 2, 3)) == pytest.approx(np.abs(exact).max(axis=(1, 2, 3)) / 254, rel=0.2)


def test_the_ratio_keeps_the_product_before_it_in_reach_of_fp16(model, gpu, samples, ranged):
    wide = model("g (float[1, 16, 4, 4] x) => (float[1, 16, 4, 4] y) { c = Conv(x, weight)  y = Relu(c) }", {"weight": (16, 16, 1, 1)})
    weight = wide.graph.graph.initializers["weight"]
    array = weight.const_value.numpy() * np.geomspace(1e-3, 1e3, 16, dtype=np.float32).reshape(-1, 1, 1, 1)
    weight.const_value = ir.tensor(array, name="weight")
    feeds = {name: 10 * array for name, array in samples(wide).items()}
    plan = ranged(wide, Plan("any", "gpu", "fp16", {"conv.c": "int8"}), gpu, feeds)
    graph = typed(wide, plan, gpu)
    exact, found = Reference(wide.graph).run(feeds)["y"], Reference(simulated(graph)).run(feeds)["y"]
    assert np.isfinite(found).all()
    error = np.sqrt(((exact - found) ** 2).mean(axis=(0, 2, 3))) / np.sqrt((exact**2).mean(axis=(0, 2, 3)))
    assert (error < 0.05).all(), "the smallest channel is as exact as the largest"


def test_an_attention_is_quantized_whole(transformer, int8):
    plan, _graph = int8(transformer)
    assert {"q", "k", "v", "s", "m"} <= set(plan.ranges)


def test_half_an_attention_goes_back_to_float(transformer, gpu):
    plan = settled(transformer, Plan("any", "gpu", "fp16", {"linear.s0": "int8", "linear.o": "int8"}), gpu)
    assert plan.precision("linear.s0") == "fp16"
    assert "whole or not at all" in plan.reasons["linear.s0"]
    assert plan.precision("linear.o") == "int8"


def test_what_comes_out_of_an_int8_attention_is_quantized_though_nobody_reads_it_so(transformer, int8):
    plan, graph = int8(transformer, without={"linear.o"})
    assert "m" in plan.ranges
    out = next(node for node in graph.graph if node.name == "linear.o")
    assert out.inputs[0].producer().op_type == "DequantizeLinear"


@pytest.mark.parametrize(
    ("sizes", "length", "words"), [({32, 64}, 512, "head sizes 32, 64, not for 16"), ({16}, 4, "up to length 4, not for 8")]
)
def test_an_attention_of_a_size_without_kernel_stays_float(transformer, gpu, sizes, length, words):
    capability = replace(gpu, attention_head_sizes=frozenset(sizes), attention_length=length)
    reasons = eligible(transformer, capability, "int8")
    assert words in reasons["linear.s0"]
    assert words in reasons["linear.m0"]
    assert reasons["linear.o"] is None


def test_the_layer_that_computes_the_answer_stays_float(residual, transformer, gpu, cpu):
    assert "the model's answer" in eligible(residual, gpu, "int8")["linear.logits"]
    assert eligible(residual, cpu, "int8")["linear.logits"] is None
    assert eligible(transformer, gpu, "int8")["linear.d0"] is None, "a residual stream follows it, no answer"


def test_a_depthwise_convolution_is_refused_in_the_words_of_the_backend(model, gpu):
    text = "g (float[1, 16, 8, 8] x) => (float[1, 16, 6, 6] y) { y = Conv<group = 16>(x, weight) }"
    reasons = eligible(model(text, {"weight": (16, 1, 3, 3)}), gpu, "int8")
    assert reasons["conv.y"] == "a depthwise convolution gets slower"


def test_a_float_base_keeps_everything_else_in_float32(residual, gpu, samples, ranged):
    plan = ranged(residual, Plan("any", "gpu", "fp32", {"conv.c2": "int8"}), gpu, samples(residual))
    graph = typed(residual, plan, gpu)
    assert not [value for node in graph.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT16]
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)


def test_a_model_of_int8_layers_alone_still_has_an_fp16_base(model, gpu, samples, ranged):
    text = "g (float[1, 16, 6, 6] x) => (float[1, 16, 6, 6] y) { y = Conv(x, weight, bias) }"
    alone = model(text, {"weight": (16, 16, 1, 1), "bias": (16,)})
    plan = ranged(alone, Plan("any", "gpu", "int8"), gpu, samples(alone))
    graph = typed(alone, plan, gpu)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    assert next(node for node in graph.graph if node.name == "conv.y").outputs[0].dtype == ir.DataType.FLOAT16
