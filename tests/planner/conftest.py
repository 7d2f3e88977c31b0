"""Small problems on this CPU with real engines, a state to search from, and a way to play the loop for one move alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from kernels.target import this_cpu
from kernels.timing import Timing
from optimizer.backends import backend
from optimizer.calibrate import calibrate
from optimizer.engine import Candidate
from optimizer.graph import infer_shapes
from optimizer.model import Model, Source
from optimizer.plan import Plan
from optimizer.planner import finals, state
from optimizer.planner.journal import Journal
from optimizer.planner.problem import Problem
from optimizer.planner.state import Clock, Proposal, State
from optimizer.reference import Reference

HEAD = '<ir_version: 10, opset_import: ["" : 20]>'

LAYERS = """net (float[1,32] x) => (float[1,8] y) <float[32,32] a, float[32,32] b, float[32,32] c, float[32,8] d> {
  [first] f = MatMul(x, a) [cut1] g = Relu(f) [second] h = MatMul(g, b) [cut2] i = Relu(h)
  [third] j = MatMul(i, c) [cut3] k = Relu(j) [last] y = MatMul(k, d)
}"""

Answer = Callable[[Proposal], Candidate]
"""What the loop would have measured of a proposal."""


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here asks what is faster: those that need a winner say which it is."""
    for module, seconds in ((state, ("QUICK_SECONDS", "PAIR_SECONDS")), (finals, ("RACE_SECONDS", "HEAT_SECONDS"))):
        for name in seconds:
            monkeypatch.setattr(module, name, 0.05)


@pytest.fixture
def model() -> Callable[..., Model]:
    """`model(text)`: a graph from text, its weights, `float[...]` between `<` and `>`, filled at random."""

    def made(text: str = LAYERS) -> Model:
        draw = np.random.default_rng(2)
        weights = []
        for rows, columns, name in re.findall(r"float\[(\d+),(\d+)\] (\w+)[,>]", text):
            numbers = draw.standard_normal((int(rows), int(columns))) / np.sqrt(int(rows))
            weights.append(ir.tensor(numbers.astype(np.float32), name=name))
        graph = ir.from_onnx_text(f"{HEAD}\n{text}", initializers=weights)
        infer_shapes(graph)
        return Model(graph, Source("onnx", "net.onnx", "0" * 64))

    return made


@pytest.fixture
def problem(model: Callable[..., Model]) -> Callable[..., Problem]:
    """`problem(backend, text)`: what a search starts from; `calibrated=False` leaves out all data, further words are its fields."""

    def made(name: str = "onnxruntime", text: str = LAYERS, calibrated: bool = True, **words: Any) -> Problem:
        builder, target = backend(name), this_cpu()
        knobs = {knob: choices[0] for knob, choices in builder.knobs(target).items()} | {"threads": 1}
        net = model(text)
        if calibrated:
            feeds = samples(net)
            table = calibrate(net, feeds, key={})
            with closing(Reference(net.graph)) as reference:
                parent = [reference.run(feed) for feed in feeds]
            words = {"table": table, "screening": feeds, "feeds": feeds, "parent": parent, **words}
        return Problem(net, name, target, builder.capability(target), knobs, **{"wanted": "auto", **words})

    return made


def samples(net: Model, count: int = 6) -> list[Mapping[str, Any]]:
    draw = np.random.default_rng(7)
    shapes = {spec.name: tuple(int(size) for size in spec.shape) for spec in net.inputs}
    return [{name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(count)]


@pytest.fixture
def searching(tmp_path: Path) -> Iterator[Callable[..., State]]:
    """`searching(*problems)`: the state at the start of a search, with an hour left; closed after the test."""
    made: list[State] = []

    def state_of(*problems: Problem, journal: Journal | None = None, clock: Clock | None = None) -> State:
        journal = journal or Journal(tmp_path / f"{len(made)}.jsonl", {})
        feed = samples(problems[0].model, 1)[0]
        made.append(State(problems, feed, tmp_path / f"engines {len(made)}", journal, clock or Clock(3600.0)))
        return made[-1]

    yield state_of
    for one in made:
        one.close()


@pytest.fixture
def played() -> Callable[..., list[Proposal]]:
    """`played(state, proposals, answer)`: plays the loop with invented measurements; what was proposed."""

    def play(of: State, proposals: Any, answer: Answer) -> list[Proposal]:
        seen: list[Proposal] = []
        with suppress(StopIteration):
            proposal = next(proposals)
            while True:
                seen.append(proposal)
                found = answer(proposal)
                of.candidates.append(found)
                proposal = proposals.send(found)
        return seen

    return play


@pytest.fixture
def candidate() -> Callable[..., Candidate]:
    """`candidate(name, plan, speed=2.0, distance=0.1)`: one that was measured so."""

    def made(name: str, plan: Plan, speed: float | None = None, **words: Any) -> Candidate:
        if speed is not None:
            words["timing"] = Timing(1 / speed, 1 / speed, 1 / speed, "fp32", speed, 0.99 * speed, 1.01 * speed, 9, "", "")
        return replace(Candidate(name, plan), **words)

    return made
