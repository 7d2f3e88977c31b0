"""An INT8 plan for a CPU without VNNI: with all 8 bits its loss shows in the simulation, with weights of 7 bits there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from kernels.cpus import CPUS
from optimizer.backends import onnxruntime as backend
from optimizer.model import Model
from optimizer.plan import Capability, Plan
from optimizer.precision import typed
from optimizer.reference import Reference, simulated

OLD = [name for name in CPUS if name in {"cpu:sse4", "cpu:avx2", "cpu:avx512"}]


@pytest.fixture
def positive(residual: Model) -> Model:
    """The residual network with weights whose neighbours have one sign and nearly one size, so that pairs of them saturate."""
    draw = np.random.default_rng(2)
    for value in residual.graph.graph.initializers.values():
        if value.const_value is not None and value.const_value.numpy().ndim == 4:
            size = value.const_value.numpy().shape
            even = draw.uniform(0.8, 1, size) * np.where(draw.random((size[0], 1, *size[2:])) < 0.5, -1, 1)
            value.const_value = ir.tensor((even / size[1]).astype(np.float32), name=value.name)
    return residual


@pytest.mark.parametrize("name", OLD)
def test_all_eight_bits_lose_what_seven_keep(name: str, positive: Model, ranged, samples, sqnr) -> None:
    capability = backend.capability(CPUS[name])
    plan = Plan("onnxruntime", name, "fp32").with_precision(["conv.c1", "conv.c2", "conv.c3"], "int8", "")
    feeds = {name: 3 + np.tanh(array) for name, array in samples(positive).items()}
    exact = Reference(positive.graph).run(feeds)["logits"]

    def quality(capability: Capability) -> float:
        observed = ranged(positive, plan, capability, feeds)
        return sqnr(exact, Reference(simulated(typed(positive, observed, capability))).run(feeds)["logits"])

    full = replace(capability, weight_limit=127)
    assert quality(full) < 15
    assert quality(capability) > 30
    assert quality(replace(full, saturates="")) > 30, "nothing else loses as much"


def test_a_plan_for_such_a_cpu_can_not_saturate(positive: Model, ranged, samples) -> None:
    capability = backend.capability(CPUS["cpu:avx2"])
    plan = Plan("onnxruntime", "cpu:avx2", "fp32").with_precision(["conv.c1", "conv.c2", "conv.c3"], "int8", "")
    graph = typed(positive, ranged(positive, plan, capability, samples(positive)), capability)
    assert len(simulated(graph).graph) == len(graph.graph)


@pytest.mark.parametrize("name", sorted(set(CPUS) - set(OLD)))
def test_a_cpu_with_vnni_keeps_all_eight_bits(name: str) -> None:
    capability = backend.capability(CPUS[name])
    assert (capability.saturates, capability.weight_limit) == ("", 127)
