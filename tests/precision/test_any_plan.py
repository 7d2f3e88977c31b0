"""Whatever layers a plan names, what it quantizes is what calibration has seen."""

from __future__ import annotations

import random

import pytest

from optimizer.calibrate import watched
from optimizer.model import Model
from optimizer.plan import Capability, Plan
from optimizer.precision import eligible, quantized_tensors, settled


@pytest.mark.parametrize("network", ["residual", "transformer", "recommender"])
@pytest.mark.parametrize("kernels", ["cpu", "gpu"])
def test_every_tensor_that_any_plan_quantizes_is_calibrated(network: str, kernels: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(network)
    capability: Capability = request.getfixturevalue(kernels)
    able = [layer for layer, why in eligible(model, capability, "int8").items() if why is None]
    seen = set(watched(model))
    draw = random.Random(0)
    for _ in range(60):
        chosen = draw.sample(able, draw.randint(1, len(able)))
        for plan in (Plan("any", "any", capability.base, dict.fromkeys(chosen, "int8")), _left_out(able, chosen, capability)):
            assert set(quantized_tensors(model, plan, capability)) <= seen
            once = settled(model, plan, capability)
            assert settled(model, once, capability).precisions == once.precisions


def _left_out(able: list[str], chosen: list[str], capability: Capability) -> Plan:
    return Plan("any", "any", capability.base, dict.fromkeys(able, "int8")).with_precision(chosen, capability.base, "left out")
