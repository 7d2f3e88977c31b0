from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from kernels.target import this_cpu
from optimizer.backends import NAMES, backend, missing
from optimizer.engine import Built, Candidate
from optimizer.errors import OptimizeError
from optimizer.memory import measured, weighed
from optimizer.plan import Plan

CPU = [name for name in NAMES if missing(name, this_cpu()) is None]
SIDE = 1024
KNOBS = {"threads": 1}

GROWING = f"""<ir_version: 9, opset_import: ["":20]> g (float[1,{SIDE}] x) => (float y) {{
  grown = Constant<value_ints=[{SIDE},{SIDE}]>()
  large = Expand(x, grown)
  other = Exp(large)
  both = MatMul(large, other)
  y = ReduceMax<keepdims=0>(both) }}"""


@pytest.fixture(params=CPU)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Candidate:
    model = ir.from_onnx_text(GROWING)
    for node in model.graph:
        node.name = node.outputs[0].name
    built = backend(request.param).build(model, this_cpu(), KNOBS, tmp_path)
    return Candidate("fp32", Plan(request.param, "cpu", "fp32", knobs=KNOBS), folder=tmp_path, built=built)


def test_what_a_run_takes_is_measured_and_is_about_what_lives_at_once(engine: Candidate) -> None:
    found = weighed(engine, {"x": np.ones((1, SIDE), np.float32)})
    assert found.built is not None
    memory, square = found.built.memory, 4 * SIDE * SIDE
    assert memory["activations"] == 3 * square
    assert (
        2 * square < memory["run"] < 8 * square
    )  # outputs over inputs, kernels with buffers of their own, an arena that grows by doubling
    assert memory["loaded"] > 0


def test_an_engine_that_can_not_be_run_is_told_so_and_none_at_all_is_left_alone(engine: Candidate, tmp_path: Path) -> None:
    with pytest.raises(OptimizeError, match="shape 1x2"):
        weighed(engine, {"x": np.ones((1, 2), np.float32)})
    unbuilt = Candidate("int8", engine.plan, built=Built(()))
    assert weighed(unbuilt, {}) is unbuilt
    assert measured(engine.plan.backend, tmp_path, KNOBS, {"x": np.array(["a"], object)}) == {}
