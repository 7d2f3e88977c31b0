"""Static INT8 in the style of ONNX Runtime's CPU: uint8 activations, integers written too, int32 biases."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from calibration.ranges import Range
from optimizer.errors import UnavailableError
from optimizer.graph import constant
from optimizer.model import FOR_LAYER, PLANNED, is_layer
from optimizer.plan import Plan
from optimizer.precision import eligible, quantized_tensors, settled, typed
from optimizer.reference import Reference


@pytest.fixture
def int8(cpu, samples, ranged):
    """All that can be INT8 is; returns the plan with ranges and the typed graph."""

    def build(model, capability=cpu):
        reasons = eligible(model, capability, "int8")
        plan = Plan("any", "cpu", "fp32", {name: "int8" for name, reason in reasons.items() if reason is None})
        plan = ranged(model, plan, capability, samples(model))
        return plan, typed(model, plan, capability)

    return build


def quantized(graph: ir.Model) -> list[str]:
    """Activations behind a QuantizeLinear, by the name that they have in the float model."""
    return sorted((node.outputs[0].name or "").removesuffix("/quantize/out") for node in graph.graph if node.op_type == "QuantizeLinear")


def test_a_residual_network_is_quantized_behind_each_activation_and_on_both_inputs_of_the_add(residual, int8):
    _plan, graph = int8(residual)
    assert quantized(graph) == sorted(["x", "r1", "p1", "r2", "c3", "r3", "g", "f"]), "no Q/DQ between a layer and its Relu"
    add = next(node for node in graph.graph if node.op_type == "Add")
    assert [value.producer().op_type for value in add.inputs] == ["DequantizeLinear", "DequantizeLinear"]


def test_onnx_runtime_runs_the_residual_network_in_integers(residual, int8, kernels):
    _plan, graph = int8(residual)
    found = kernels(graph)
    assert found.count("QLinearConv") == 3
    assert {"QLinearAdd", "QLinearGlobalAveragePool", "MatMulIntegerToFloat"} <= set(found)
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "Relu", "Add"} & set(found)


def test_onnx_runtime_runs_a_transformer_block_in_integers(transformer, int8, kernels):
    _plan, graph = int8(transformer)
    found = kernels(graph)
    assert not {"MatMul", "FusedMatMul", "Gemm", "QLinearAdd"} & set(found), "every product runs on integers, with a bias behind it too"
    assert "LayerNormalization" in found, "no Q/DQ stands inside what fuses"
    assert found.count("QLinearMatMul") + found.count("MatMulIntegerToFloat") == 8


@pytest.mark.parametrize(("name", "decibels"), [("residual", 40), ("transformer", 33), ("recommender", 45)])
def test_integers_stay_close_to_float(name, decibels, int8, samples, sqnr, request):
    model = request.getfixturevalue(name)
    _plan, graph = int8(model)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    feeds = samples(model)
    exact, found = Reference(model.graph).run(feeds), Reference(graph).run(feeds)
    optimized = Reference(graph, optimized=True).run(feeds)
    for output in exact:
        assert sqnr(exact[output], found[output]) > decibels
        assert sqnr(exact[output], optimized[output]) > decibels


def test_layers_keep_their_names_and_carry_what_the_plan_gave_them(residual, int8, cpu):
    plan, graph = int8(residual)
    kept = {node.name: node.metadata_props.get(PLANNED) for node in graph.graph if is_layer(node)}
    final = settled(residual, plan, cpu)
    assert kept == {layer.name: final.precision(layer.name) for layer in residual.layers}
    helpers = [node for node in graph.graph if not is_layer(node)]
    assert helpers
    assert {node.metadata_props[FOR_LAYER] for node in helpers} <= kept.keys()


def test_the_model_itself_is_left_alone(residual, int8):
    before = [(node.name, [value.name for value in node.inputs]) for node in residual.graph.graph]
    int8(residual)
    assert [(node.name, [value.name for value in node.inputs]) for node in residual.graph.graph] == before
    assert "conv1_weight" in residual.graph.graph.initializers


def test_a_bias_is_int32_at_the_scale_of_the_products(residual, int8):
    _plan, graph = int8(residual)
    conv = next(node for node in graph.graph if node.name == "conv.c2")
    activation, weight, bias = (value.producer() for value in conv.inputs)
    stored = constant(bias.inputs[0])
    assert stored.dtype == np.int32
    np.testing.assert_allclose(constant(bias.inputs[1]), constant(activation.inputs[1]) * constant(weight.inputs[1]), rtol=1e-6)
    exact = residual.graph.graph.initializers["conv1_bias"].const_value.numpy()
    np.testing.assert_allclose(stored * constant(bias.inputs[1]), exact, atol=float(constant(bias.inputs[1]).max()))


def test_weights_have_one_scale_a_channel_and_no_zero_point(residual, int8):
    _plan, graph = int8(residual)
    dequantize = next(node for node in graph.graph if node.name == "conv.c2").inputs[1].producer()
    integers, scale, zero = (constant(value) for value in dequantize.inputs)
    assert integers.dtype == np.int8
    assert scale.shape == (16,)
    assert not zero.any()
    assert dequantize.attributes["axis"].as_int() == 0
    assert (np.abs(integers).reshape(16, -1).max(axis=1) == 127).all()


def test_a_channel_without_weights_keeps_its_bias(residual, int8):
    weight = residual.graph.graph.initializers["conv1_weight"]
    array = weight.const_value.numpy().copy()
    array[3] = 1e-30
    weight.const_value = ir.tensor(array, name="conv1_weight")
    _plan, graph = int8(residual)
    bias = next(node for node in graph.graph if node.name == "conv.c2").inputs[2].producer()
    exact = residual.graph.graph.initializers["conv1_bias"].const_value.numpy()
    np.testing.assert_allclose(constant(bias.inputs[0])[3] * constant(bias.inputs[1])[3], exact[3], rtol=1e-3)


def test_a_weight_stays_within_the_limit_of_a_processor_whose_pairs_saturate(residual, int8, cpu):
    _plan, graph = int8(residual, replace(cpu, weight_limit=63))
    stored = [constant(node.inputs[0]) for node in graph.graph if node.op_type == "DequantizeLinear"]
    assert max(np.abs(array.astype(int)).max() for array in stored if array is not None and array.dtype == np.int8) == 63


def test_a_max_pool_and_what_it_reads_share_one_scale(residual, int8):
    _plan, graph = int8(residual)
    pool = next(node for node in graph.graph if node.op_type == "MaxPool")
    before = pool.inputs[0].producer()
    after = next(node for node in graph.graph if node.op_type == "QuantizeLinear" and node.inputs[0] is pool.outputs[0])
    assert constant(before.inputs[1]) == constant(after.inputs[1])
    assert constant(before.inputs[2]) == constant(after.inputs[2])


def test_a_relu_before_a_concat_is_still_done_by_clipping(recommender, int8, kernels):
    _plan, graph = int8(recommender)
    found = kernels(graph)
    assert "QGemm" in found
    assert "QLinearConcat" in found
    assert not {"Gemm", "FusedGemm"} & set(found)


def test_a_max_pool_with_nothing_in_integers_around_it_stays_float(residual, cpu):
    plan = settled(residual, Plan("any", "cpu", "fp32", {"p1": "int8"}), cpu)
    assert plan.precision("p1") == "fp32"
    assert plan.reasons["p1"] == "no layer beside it has to write or read integers"


def test_a_carrier_behind_an_absorbed_relu_moves_its_integers(model, cpu):
    text = """g (float[1, 16, 6, 6] x) => (float[1, 16, 1, 1] y)
    { c = Conv(x, weight)  r = Relu(c)  p = MaxPool<kernel_shape = [2, 2]>(r)  e = Exp(p)  y = GlobalMaxPool(e) }"""
    plan = settled(model(text, {"weight": (16, 16, 1, 1)}), Plan("any", "cpu", "fp32", {"conv.c": "int8", "p": "int8"}), cpu)
    assert (plan.precision("r"), plan.precision("p")) == ("int8", "int8")


def test_an_add_between_matrix_products_stays_float_and_they_write_float(transformer, int8, cpu):
    plan, graph = int8(transformer)
    final = settled(transformer, plan, cpu)
    assert {final.precision("a"), final.precision("y")} == {"fp32"}
    assert {final.precision("q1"), final.precision("k"), final.precision("m")} == {"int8"}, "reshapes between products move bytes"
    assert "x" not in quantized(graph)
    assert next(node for node in graph.graph if node.name == "linear.o").op_type == "MatMulIntegerToFloat"


def test_a_relu_follows_the_layer_before_it_back_to_float(residual, int8, cpu):
    final = settled(residual, int8(residual)[0], cpu)
    assert final.precision("r2") == "int8"
    changed = settled(residual, final.with_precision(["conv.c2"], "fp32", "too rough"), cpu)
    assert changed.precision("r2") == "fp32"


def test_float_readers_of_a_float_tensor_get_it_unrounded(model, cpu, samples, ranged):
    block = model(
        """g (float[1, 8, 32] x) => (float[1, 8, 32] y) { h = MatMul(x, weight)  y = Add(h, x) }""",
        {"weight": (32, 32)},
    )
    plan = ranged(block, Plan("any", "cpu", "fp32", {"linear.h": "int8"}), cpu, samples(block))
    graph = typed(block, plan, cpu)
    add = next(node for node in graph.graph if node.op_type == "Add")
    assert [value.name for value in add.inputs] == ["h", "x"]
    assert quantized(graph) == ["x"]


def test_a_convolution_that_ends_the_model_writes_integers_and_keeps_the_name_of_the_output(model, cpu, samples, ranged, kernels):
    one = model("g (float[1, 8, 6, 6] x) => (float[1, 8, 6, 6] y) { y = Conv(x, weight) }", {"weight": (8, 8, 1, 1)})
    plan = ranged(one, Plan("any", "cpu", "fp32", {"conv.y": "int8"}), cpu, samples(one))
    graph = typed(one, plan, cpu)
    assert [value.name for value in graph.graph.outputs] == ["y"]
    assert graph.graph.outputs[0].producer().op_type == "DequantizeLinear"
    assert "QLinearConv" in kernels(graph)


def test_a_clip_from_zero_to_a_bound_is_done_by_the_range(model, cpu, samples, ranged, kernels):
    text = """g (float[1, 16, 6, 6] x) => (float[1, 16, 6, 6] y) <float zero = {0}, float six = {6}>
    { c = Conv(x, weight)  r = Clip(c, zero, six)  y = Conv(r, weight2) }"""
    mobile = model(text, {"weight": (16, 16, 1, 1), "weight2": (16, 16, 1, 1)})
    feeds = {name: array * 20 for name, array in samples(mobile).items()}
    plan = ranged(mobile, Plan("any", "cpu", "fp32", {"conv.c": "int8", "conv.y": "int8"}), cpu, feeds)
    graph = typed(mobile, plan, cpu)
    assert quantized(graph) == ["r", "x", "y"]
    assert kernels(graph).count("QLinearConv") == 2


@pytest.mark.parametrize("bounds", ["low, high", "zero", ", high"])
def test_a_clip_that_no_range_does_has_integers_on_both_sides(model, cpu, samples, ranged, kernels, bounds):
    text = f"""g (float[1, 16, 6, 6] x) => (float[1, 16, 6, 6] y) <float low = {{-1}}, float zero = {{0}}, float high = {{1}}>
    {{ c = Conv(x, weight)  r = Clip(c, {bounds})  y = Conv(r, weight2) }}"""
    hard = model(text, {"weight": (16, 16, 1, 1), "weight2": (16, 16, 1, 1)})
    plan = ranged(hard, Plan("any", "cpu", "fp32", {"conv.c": "int8", "conv.y": "int8"}), cpu, samples(hard))
    graph = typed(hard, plan, cpu)
    assert quantized(graph) == ["c", "r", "x", "y"]
    assert kernels(graph).count("QLinearConv") == 2


def test_settling_a_settled_plan_changes_nothing(residual, int8, cpu):
    plan, graph = int8(residual)
    final = settled(residual, plan, cpu)
    assert settled(residual, final, cpu) == final
    again = typed(residual, final, cpu)
    assert [node.name for node in again.graph] == [node.name for node in graph.graph]


def test_an_int8_base_means_all_that_can_be_int8(residual, cpu):
    plan = settled(residual, Plan("any", "cpu", "int8"), cpu)
    assert plan.precision("conv.c1") == "int8"
    assert plan.precision("r1") == "int8"
    table = settled(residual, Plan("any", "cpu", "int8"), replace(cpu, int8_operators=frozenset({"Conv"})))
    assert table.precision("linear.logits") == "fp32"
    assert "no INT8 kernel" in table.reasons["linear.logits"]


def test_a_layer_that_is_asked_for_by_name_is_refused_with_the_reason(recommender, cpu):
    plan = Plan("any", "cpu", "fp32", {"dense": "int8"})
    with pytest.raises(UnavailableError, match="dense can't run in INT8: x carries indices"):
        typed(recommender, plan, cpu)


def test_a_missing_range_is_named(residual, cpu):
    plan = Plan("any", "cpu", "fp32", {"conv.c1": "int8"}, ranges={"x": Range("minmax", -1, 1)})
    assert quantized_tensors(residual, plan, cpu) == ("x", "r1")
    with pytest.raises(ValueError, match="no range for r1"):
        typed(residual, plan, cpu)
