"""Engines in a race hold no more weights at once than there is room for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from kernels.target import this_cpu
from optimizer.backends import backend
from optimizer.engine import Candidate, Engine
from optimizer.model import Model, Source
from optimizer.planner import finals
from optimizer.planner.engines import opened
from optimizer.planner.journal import Journal
from optimizer.planner.problem import Problem
from optimizer.planner.state import Clock, State
from optimizer.precision import typed

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
net (float[1,64] x) => (float[1,64] y) <float[64,64] w> { [product] y = MatMul(x, w) }"""


@pytest.fixture(scope="module")
def problem() -> Problem:
    graph = ir.from_onnx_text(TEXT, initializers=[ir.tensor(np.ones((64, 64), np.float32), name="w")])
    builder, target = backend("onnxruntime"), this_cpu()
    model = Model(graph, Source("onnx", "net.onnx", "0" * 64))
    return Problem(model, "onnxruntime", target, builder.capability(target), {"threads": 1, "spinning": False}, wanted="auto")


@pytest.mark.parametrize(("engines", "most"), [(4.5, 4), (2.5, 2), (0.5, 1)])
def test_engines_that_do_not_fit_together_are_opened_in_turn(
    engines: float, most: int, problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = []
    for name in "abcd":
        plan = problem.plan("fp32", "")
        (tmp_path / name).mkdir()
        built = backend("onnxruntime").build(typed(problem.model, plan, problem.capability), problem.target, problem.knobs, tmp_path / name)
        candidates.append(Candidate(name, plan, folder=tmp_path / name, built=built))
    assert candidates[0].built is not None
    alive: list[int] = []
    seen: list[int] = []

    def counted(of: Problem, candidate: Candidate) -> Engine:
        engine: Any = opened(of, candidate)
        close = engine.close

        def closed() -> None:
            alive.remove(id(engine))
            close()

        engine.close = closed
        alive.append(id(engine))
        seen.append(len(alive))
        return engine  # type: ignore[no-any-return]

    monkeypatch.setattr(finals, "opened", counted)
    monkeypatch.setattr(finals, "RACE_SECONDS", 0.05)
    monkeypatch.setattr(finals, "ROOM", int(engines * candidates[0].built.memory["weights"]))
    # Candidates that differ in nothing but their names, which no search would propose.
    monkeypatch.setattr(finals, "_contenders", lambda state: state.candidates)
    state = State([problem], {"x": np.ones((1, 64), np.float32)}, tmp_path, Journal(tmp_path / "journal", {}), Clock(60.0))
    state.candidates.extend(candidates)
    found = finals.timed(state)
    assert [one.timing is not None for one in found] == [True] * 4
    assert max(seen) == most
    assert alive == []
