"""Rounding with the data in view: less error at each layer, on the very grid that precision writes, whatever the backend wants."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.graph import constant, sha256
from optimizer.precision import typed
from optimizer.precision.rounded import mark
from optimizer.precision.weights import per_channel
from optimizer.recovery import moments, rounding
from optimizer.recovery.correction import correction
from optimizer.recovery.layers import bias, bias_place, in_int8, matrix, rows
from optimizer.recovery.rounding import adaround, gptq
from optimizer.reference import Reference


def dequantized(graph: ir.Model, layer: str, weight: str) -> np.ndarray:
    """The weight of a layer as the typed graph computes it, its ratio included."""
    wanted = f"{weight}/dequantize/out"
    ratio = next((value for name, value in graph.graph.initializers.items() if name == f"{layer}/ratio"), None)
    numbers = Reference(graph, watch=[wanted]).run(
        {one.name: np.zeros([int(s) for s in one.shape], np.float32) for one in graph.graph.inputs}
    )
    return numbers[wanted] * (1 if ratio is None else ratio.const_value.numpy().reshape(-1, *[1] * (numbers[wanted].ndim - 1)))


@pytest.mark.parametrize("limit", [127, 63])
def test_precision_keeps_the_grid_that_the_weights_lie_on(depthwise, capability, limit, feeds, planned):
    capability = replace(capability, weight_limit=limit)
    samples = feeds(depthwise)
    form, plan = planned(depthwise, capability, samples)
    found = gptq(form, plan, capability, samples)
    graph = typed(found.form.model, found.plan, capability)
    rounded = [node for node in found.form.model.graph.graph if len(node.inputs) > 1 and node.inputs[1].name.endswith("/gptq")]
    assert rounded
    for node in (node for node in rounded if node.op_type == "Conv"):
        # Ratios are FP16 numbers where one scale a weight is wanted: the integers are the same, their step is off by 2**-11.
        relative = 1e-6 if not capability.scalar_weight_scale else 2.0**-11
        written = dequantized(graph, node.name, node.inputs[1].name)
        np.testing.assert_allclose(written, constant(node.inputs[1]), rtol=relative, atol=0)


def test_scales_that_came_with_a_weight_are_kept_where_its_numbers_would_suggest_others(even, capability, feeds, planned):
    form, plan = planned(even, capability, feeds(even))
    graph = form.model.graph.clone()
    scales = np.geomspace(0.01, 0.1, 16).astype(np.float32)
    integers = np.random.default_rng(0).integers(-50, 51, (16, 16, 1, 1))  # none as large as the limit
    weight = graph.graph.initializers["wide_weight"]
    weight.const_value = ir.tensor((integers * scales.reshape(-1, 1, 1, 1)).astype(np.float32), name=weight.name)
    mark(weight, scales)
    written = typed(form.model.with_graph(graph), plan, capability)
    np.testing.assert_array_equal(written.graph.initializers["wide_weight/integers"].const_value.numpy(), integers)
    smaller = replace(capability, weight_limit=31)
    clipped = typed(form.model.with_graph(graph), plan, smaller).graph.initializers["wide_weight/integers"].const_value.numpy()
    assert np.abs(clipped).max() <= 31, "a grid that does not fit is left"
    assert (np.abs(clipped).max(axis=(1, 2, 3)) == 31).all()


def test_dynamic_products_keep_the_grid_too(encoder, outputs_too, feeds, planned):
    samples = feeds(encoder)
    form, plan = planned(encoder, outputs_too, samples, "int8_dynamic")
    found = gptq(form, plan, outputs_too, samples)
    graph = typed(found.form.model, found.plan, outputs_too).graph
    weight = next(node for node in found.form.model.graph.graph if node.name == "q").inputs[1]
    node = next(node for node in graph if node.name == "q")
    assert node.op_type == "MatMulIntegerToFloat"
    integers, scale = (constant(node.inputs[place]) for place in (1, 3))
    np.testing.assert_allclose(integers * scale, constant(weight), rtol=1e-6)


@pytest.mark.parametrize(("step", "name"), [(gptq, "even"), (gptq, "encoder"), (adaround, "encoder")])
def test_each_layer_is_less_off_on_unseen_samples_than_rounded_to_nearest(step, name, inputs_only, feeds, planned, request):
    model = request.getfixturevalue(name)
    samples, unseen = feeds(model, 48), feeds(model, 24, seed=5)
    form, plan = planned(model, inputs_only, samples)
    found = step(form, plan, inputs_only, samples)
    before, after = ({node.name: node for node in one.model.graph.graph} for one in (form, found.form))
    rounded = [name for name, node in after.items() if len(node.inputs) > 1 and node.inputs[1].name.endswith(f"/{step.__name__}")]
    assert len(rounded) >= 2
    left = []
    for layer in rounded:
        old, new = before[layer], after[layer]
        reference = Reference(model.graph, watch=[old.inputs[0].name])
        met = np.concatenate([rows(old, reference.run(feed)[old.inputs[0].name], 1000) for feed in unseen], axis=1)
        weight = matrix(old)
        integers, scale = per_channel(weight.reshape(-1, weight.shape[2]).astype(np.float32), 0, "minmax", 127)
        nearest = (integers * scale[:, None]).reshape(weight.shape)
        moved = (bias(new) - bias(old)).reshape(len(weight), 1, -1) if bias_place(old) is not None else 0.0
        left.append(error(met, matrix(new) - weight, moved) / error(met, nearest - weight, 0.0))
    # Inputs that are noise, as the first layer's, leave next to nothing to win.
    assert max(left) < 1
    assert np.mean(left) < 0.8


def error(met, difference, moved):
    """Mean square of what another weight and bias do to the output for these rows."""
    return float(np.square(met @ difference.transpose(0, 2, 1) + moved).mean())


def test_gptq_leaves_alone_what_adaround_has_rounded(encoder, inputs_only, feeds, planned):
    samples = feeds(encoder)
    form, plan = planned(encoder, inputs_only, samples)
    first = adaround(form, plan, inputs_only, samples)
    second = gptq(first.form, first.plan, inputs_only, samples)
    assert second.plan.recovery == ("adaround", "gptq")
    before, after = ({node.name: node for node in found.form.model.graph.graph} for found in (first, second))
    kept = [name for name, node in before.items() if len(node.inputs) > 1 and node.inputs[1].name.endswith("/adaround")]
    assert kept
    for name in kept:
        assert after[name].inputs[1].name == before[name].inputs[1].name


def test_a_layer_that_is_too_large_for_adaround_is_left_to_gptq(encoder, inputs_only, feeds, planned, monkeypatch):
    monkeypatch.setattr(rounding, "_MOST", 0)
    samples = feeds(encoder)
    form, plan = planned(encoder, inputs_only, samples)
    assert adaround(form, plan, inputs_only, samples) is None
    assert gptq(form, plan, inputs_only, samples) is not None


@pytest.mark.parametrize("step", [gptq, adaround, correction])
def test_layers_in_float_are_left_alone(step, even, inputs_only, feeds, planned):
    samples = feeds(even)
    form, plan = planned(even, inputs_only, samples)
    assert step(form, replace(plan, precisions={}), inputs_only, samples) is None


def test_a_layer_whose_weight_is_not_finite_is_left_alone(even, inputs_only, feeds, planned):
    samples = feeds(even)
    form, plan = planned(even, inputs_only, samples)
    graph = form.model.graph.clone()
    broken = graph.graph.initializers["deep_weight"]
    numbers = broken.const_value.numpy().copy()
    numbers[0] = np.nan
    broken.const_value = ir.tensor(numbers, name=broken.name)
    left = [node.name for node in in_int8(form.model.with_graph(graph), plan, inputs_only)]
    assert left == ["c1", "c3", "y"]


def test_moments_are_the_same_in_several_passes_and_by_blocks(even, inputs_only, feeds, planned, monkeypatch):
    samples = feeds(even, 6)
    form, plan = planned(even, inputs_only, samples)
    layers = list(in_int8(form.model, plan, inputs_only))
    once = {node.name: found for node, found in moments.moments(form.model.graph, layers, samples)}
    monkeypatch.setattr(moments, "_BYTES", 1)
    monkeypatch.setattr(moments, "WIDEST", 5)
    again = {node.name: found for node, found in moments.moments(form.model.graph, layers, samples)}
    assert list(once) == list(again)
    for node in layers:
        np.testing.assert_allclose(again[node.name].mean, once[node.name].mean, rtol=1e-6)
        whole = once[node.name].products[0]
        for cut, products in again[node.name].blocks():
            np.testing.assert_allclose(products, whole[:, cut, cut], rtol=1e-4, atol=1e-6)
        assert again[node.name].products[-1].shape[1] == (matrix(node).shape[2] - 1) % 5 + 1
    assert gptq(form, plan, inputs_only, samples) is not None, "a weight is rounded block by block"


def test_the_same_samples_give_the_same_bits(even, outputs_too, feeds, planned):
    samples = feeds(even)
    form, plan = planned(even, outputs_too, samples)
    before = sha256(form.model.graph)
    first, second = (gptq(form, plan, outputs_too, samples) for _ in range(2))
    assert sha256(first.form.model.graph) == sha256(second.form.model.graph)
    assert sha256(form.model.graph) == before, "what was given has changed"
