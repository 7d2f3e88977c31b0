"""Dynamic INT8: integer weights in the file, ranges at every run, in the form that ONNX Runtime runs fastest."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer.graph import constant
from optimizer.model import PLANNED
from optimizer.plan import Plan
from optimizer.precision import eligible, quantized_tensors, typed
from optimizer.reference import Reference


@pytest.fixture
def dynamic(cpu):
    def build(model):
        layers = [name for name, reason in eligible(model, cpu, "int8_dynamic").items() if reason is None]
        plan = Plan("any", "cpu", "fp32", dict.fromkeys(layers, "int8_dynamic"))
        assert quantized_tensors(model, plan, cpu) == (), "no range is needed"
        return typed(model, plan, cpu)

    return build


@pytest.mark.parametrize(("name", "decibels"), [("transformer", 35), ("recommender", 45), ("recurrent", 42), ("residual", 45)])
def test_dynamic_integers_stay_close_to_float(name, decibels, dynamic, samples, sqnr, request):
    model = request.getfixturevalue(name)
    graph = dynamic(model)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    assert graph.opset_imports["com.microsoft"] == 1
    feeds = samples(model)
    exact = Reference(model.graph).run(feeds)
    for optimized in (False, True):
        found = Reference(graph, optimized=optimized).run(feeds)
        assert all(sqnr(exact[output], found[output]) > decibels for output in exact)


def test_onnx_runtime_runs_every_product_with_a_constant_matrix_in_integers(transformer, dynamic, kernels):
    found = kernels(dynamic(transformer))
    assert found.count("DynamicQuantizeMatMul") + found.count("MatMulIntegerToFloat") == 6
    assert found.count("MatMul") + found.count("FusedMatMul") == 2, "QK and PV have no dynamic form"


def test_the_projections_that_read_one_tensor_share_its_range(transformer, dynamic):
    ranges = [node for node in dynamic(transformer).graph if node.op_type == "DynamicQuantizeLinear"]
    assert sorted(node.inputs[0].name for node in ranges) == ["h", "m", "n", "n2"]


def test_layers_keep_their_names_on_the_integer_operators(recurrent, transformer, dynamic):
    lstm = next(node for node in dynamic(recurrent).graph if node.name == "s")
    assert (lstm.domain, lstm.op_type, lstm.metadata_props[PLANNED]) == ("com.microsoft", "DynamicQuantizeLSTM", "int8_dynamic")
    product = next(node for node in dynamic(transformer).graph if node.name == "linear.h0")
    assert product.op_type == "MatMulIntegerToFloat"
    assert product.outputs[0].name == "h0/biased", "with the bias in it, it is no longer the tensor that the float graph calls h0"


def test_the_weights_of_an_lstm_have_one_scale_a_row_of_gates(recurrent, dynamic):
    lstm = next(node for node in dynamic(recurrent).graph if node.op_type == "DynamicQuantizeLSTM")
    weight, scale = constant(lstm.inputs[1]), constant(lstm.inputs[8])
    assert (weight.shape, weight.dtype, scale.shape) == ((1, 24, 160), np.int8, (1, 160))
    exact = recurrent.graph.graph.initializers["lstm_weight"].const_value.numpy().transpose(0, 2, 1)
    np.testing.assert_allclose(weight * scale[:, None], exact, atol=float(scale.max()) / 2 + 1e-7)


def test_a_two_way_lstm_has_scales_for_each_way(model, dynamic, samples, sqnr):
    text = """g (float[6, 2, 8] x) => (float[6, 2, 2, 16] y) { y = LSTM<hidden_size = 16, direction = "bidirectional">(x, w, r, b) }"""
    both = model(text.replace("[6, 2, 2, 16]", "[6, 2, 2, 16]"), {"w": (2, 64, 8), "r": (2, 64, 16), "b": (2, 128)})
    feeds = samples(both)
    assert sqnr(Reference(both.graph).run(feeds)["y"], Reference(dynamic(both)).run(feeds)["y"]) > 38


def test_a_gemm_with_a_transposed_matrix_and_a_bias_of_one_number_is_the_same_product(model, dynamic, samples, sqnr):
    text = "g (float[3, 32] x) => (float[3, 16] y) <float[1] bias = {0.5}> { y = Gemm<transB = 1>(x, weight, bias) }"
    gemm = model(text, {"weight": (16, 32)})
    feeds = samples(gemm)
    assert sqnr(Reference(gemm.graph).run(feeds)["y"], Reference(dynamic(gemm)).run(feeds)["y"]) > 35


@pytest.mark.parametrize(
    ("text", "shapes", "layer", "words"),
    [
        ("g (float[3, 32] x) => (float[3, 16] y) { y = Gemm<alpha = 2.0>(x, weight) }", {"weight": (32, 16)}, "linear.y", "alpha or beta"),
        ("g (float[32, 3] x) => (float[3, 16] y) { y = Gemm<transA = 1>(x, weight) }", {"weight": (32, 16)}, "linear.y", "transposes"),
        ("g (float[3, 32] x) => (float[3] y) { y = MatMul(x, weight) }", {"weight": (32,)}, "linear.y", "no constant matrix"),
        ("g (float[3, 32] x) => (float[3, 4] y) { y = MatMul(x, weight) }", {"weight": (32, 1)}, "linear.y", "only 32 numbers"),
        ("g (float[2, 32] x, float[32, 8] w) => (float[2, 8] y) { y = MatMul(x, w) }", {}, "linear.y", "no constant matrix"),
        (
            "g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) { y = Conv(x, weight) }",
            {"weight": (4, 4, 1, 1)},
            "conv.y",
            "no dynamic INT8 kernel",
        ),
    ],
)
def test_products_without_a_dynamic_form_say_why(text, shapes, layer, words, model, cpu):
    assert words in eligible(model(text, shapes), cpu, "int8_dynamic")[layer]


def test_static_and_dynamic_layers_live_in_one_graph(transformer, cpu, samples, ranged, sqnr):
    plan = Plan("any", "cpu", "fp32", {"linear.q0": "int8", "linear.k0": "int8_dynamic", "linear.o": "int8_dynamic"})
    feeds = samples(transformer)
    graph = typed(transformer, ranged(transformer, plan, cpu, feeds), cpu)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    assert sqnr(Reference(transformer.graph).run(feeds)["y"], Reference(graph, optimized=True).run(feeds)["y"]) > 35


BIASED = "g (float[1, 5, 8] x) => (float[1, 5, 16] y) { p = MatMul(x, weight)  shifted = Add(p, bias)  y = Tanh(shifted) }"


def test_a_bias_behind_a_product_is_added_by_its_kernel(model, dynamic, samples, sqnr, kernels):
    biased = model(BIASED, {"weight": (8, 16), "bias": (16,)})
    graph = dynamic(biased)
    feeds = samples(biased)
    assert sqnr(Reference(biased.graph).run(feeds)["y"], Reference(graph).run(feeds)["y"]) > 30
    assert "Add" not in kernels(graph)
    assert "shifted" in [node.name for node in graph.graph], "the layer stays, to be told as folded"


@pytest.mark.parametrize("bias", [(1,), (5, 1), (1, 5, 16)])
def test_what_is_no_row_of_the_product_is_added_as_before(bias, model, dynamic, kernels):
    assert "Add" in kernels(dynamic(model(BIASED, {"weight": (8, 16), "bias": bias})))
