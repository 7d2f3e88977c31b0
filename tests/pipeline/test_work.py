"""What a build does only once, because its user waits for it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import optimizer
from optimizer.planner import finals, state

TEXT = """<ir_version: 10, opset_import: ["" : 20]> g (float[1, 4, 8, 8] x) => (float[1, 64] y) {
    a = Conv<kernel_shape = [3, 3]>(x, v) b = Relu(a) c = Conv<kernel_shape = [3, 3]>(b, w)
    d = Flatten(c) y = MatMul(d, u)
}"""


def test_no_plan_is_simulated_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    proto = onnx.parser.parse_model(TEXT)
    for name, shape in (("v", (8, 4, 3, 3)), ("w", (8, 8, 3, 3)), ("u", (128, 64))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(draw.standard_normal(shape).astype(np.float32), name))
    onnx.save(proto, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=draw.standard_normal((12, 4, 8, 8)).astype(np.float32))
    simulated, plans = state.simulation, Counter[Any]()

    def counted(problem: Any, plan: Any, optimized: bool) -> Any:
        plans[frozenset(plan.precisions.items()), frozenset(plan.ranges.items())] += 1
        return simulated(problem, plan, optimized)

    monkeypatch.setattr(state, "simulation", counted)
    monkeypatch.setattr(state.State, "honest", lambda _, candidate: candidate.plan.lossless)
    monkeypatch.setattr(state, "QUICK_SECONDS", 0.1)
    monkeypatch.setattr(finals, "RACE_SECONDS", 0.3)
    outcome = optimizer.build(
        tmp_path / "model.onnx", tmp_path / "out", calibration=str(tmp_path / "data.npz"), threads=1, backends=["onnxruntime"]
    )
    assert {"int8", "int8 static and dynamic"} <= {one.name for one in outcome.report.candidates}
    assert max(plans.values()) == 1
