"""Typed graphs in the style of TensorRT, built by the real TensorRT-RTX in a child process, no GPU needed."""

from dataclasses import replace

import onnx_ir as ir
import pytest

from kernels.targets import target_from_name
from optimizer.engine import Built
from optimizer.plan import Plan
from optimizer.precision import eligible, typed

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (extra tensorrt-rtx)")
tensorrt = pytest.importorskip("optimizer.backends.tensorrt")


@pytest.fixture
def built(samples, ranged, tmp_path):
    """What TensorRT-RTX makes of a model for an L4 with all in INT8 that its capability allows, but `without`."""
    target = target_from_name("l4")
    capability = replace(tensorrt.capability(target), attention_head_sizes=frozenset({16, 32, 64}), attention_length=512)

    def build(model, precision="int8", without=()) -> Built:
        feeds = samples(model)
        for value in model.graph.graph.inputs:
            value.shape = ir.Shape(feeds[value.name].shape)
        layers = [name for name, reason in eligible(model, capability, precision).items() if reason is None and name not in without]
        plan = ranged(model, Plan("tensorrt", "l4", "fp16", dict.fromkeys(layers, precision)), capability, feeds)
        return tensorrt.build(typed(model, plan, capability), target, {}, tmp_path)

    return build


def test_every_layer_planned_in_int8_runs_in_int8(residual, built):
    found = {layer.layer: layer for layer in built(residual).realised}
    assert {name for name, layer in found.items() if layer.planned == "int8"} == {"conv.c1", "conv.c2", "conv.c3"}
    assert {layer.realised for layer in found.values() if layer.planned == "int8"} == {"int8"}


def test_ratios_biases_and_relus_cost_no_launch_of_their_own(residual, built):
    launches = built(residual).launches
    convolutions = [launch for launch in launches if any(layer.startswith("conv.") for layer in launch.layers)]
    assert len(launches) <= 10, [launch.name for launch in launches]
    assert sum(launch.kind == "correlation" for launch in convolutions) == 3


@pytest.mark.parametrize("without", [(), ("linear.o",)])
def test_an_int8_attention_fuses_to_one_kernel(transformer, built, without):
    launches = built(transformer, without=without).launches
    fused = [launch for launch in launches if {"linear.s0", "linear.m0"} <= set(launch.layers)]
    assert len(fused) == 1
    assert fused[0].precision == "int8"
    assert "s" in fused[0].layers, "the softmax is inside"


@pytest.mark.parametrize("name", ["recommender", "recurrent"])
def test_fp16_graphs_of_other_shapes_build_too(name, built, request):
    found = built(request.getfixturevalue(name), precision="fp16")
    assert found.launches
    assert {layer.realised for layer in found.realised} & {"fp16"}
