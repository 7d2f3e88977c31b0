"""Engines that nothing was lowered in, but whose kernels are farther off than rounding: the held-out data or another backend decide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from optimizer.engine import Candidate, Parity
from optimizer.graph import clone
from optimizer.parity.budget import budget_from_words
from optimizer.parity.gate import NoQuestion, Question, ask
from optimizer.parity.metrics import METRICS
from optimizer.planner import finals
from optimizer.planner.finals import Evidence, gated
from optimizer.planner.problem import Problem
from optimizer.planner.state import Proposal, State
from optimizer.reference import Reference

Problems = Callable[..., Problem]
Searching = Callable[..., State]


@dataclass(frozen=True)
class Drawn:
    """Held-out samples for the model of these tests."""

    count: int
    labels: None = None
    batch: int = 1
    preprocessing: None = None

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        draw = np.random.default_rng(3)
        return ({"x": draw.standard_normal((1, 32)).astype(np.float32)} for _ in range(self.count))


def evidence(net: Problem, off: float, asked: bool = True) -> Evidence:
    """As if the parent's last weight were so much larger: an engine of the model is off by that."""
    parent = clone(net.model.graph)
    weight = parent.graph.initializers["d"]
    assert weight.const_value is not None
    weight.const_value = type(weight.const_value)((weight.const_value.numpy() * np.float32(1 + off)).astype(np.float32))
    samples: Any = Drawn(600)
    question: Question | NoQuestion = NoQuestion("there is no evaluation data")
    if asked:
        question = ask(Reference(parent).run, samples, METRICS["agreement"], budget_from_words("1%"))
    return Evidence(parent, net.screening, lambda: question, samples if asked else None)


@pytest.fixture(autouse=True)
def _stateless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finals, "_block", lambda *_: 1)


def unquantized(state: State, net: Problem) -> list[Candidate]:
    state.measured(Proposal(net, "fp32", net.plan("fp32", "")))
    state.raced = frozenset({"fp32"})
    return state.candidates


def test_within_rounding_no_data_are_asked(problem: Problems, searching: Searching) -> None:
    net = problem()
    state = searching(net)
    _, subject = gated(state, unquantized(state, net), evidence(net, 0.0))
    assert subject.outcome == "shipped"
    assert subject.parity is not None
    assert subject.parity.metric == "max_abs"


def test_farther_off_than_rounding_the_held_out_data_decide_and_it_is_told(problem: Problems, searching: Searching) -> None:
    net = problem()
    state = searching(net)
    _, subject = gated(state, unquantized(state, net), evidence(net, 1e-4))
    assert subject.outcome == "shipped"
    assert subject.parity is not None
    assert (subject.parity.metric, subject.parity.verdict) == ("agreement", "pass")
    assert any("more than 8 times" in note and "held-out data decided" in note for note in subject.parity.notes)


def test_farther_off_than_rounding_without_held_out_data_is_refused(problem: Problems, searching: Searching) -> None:
    net = problem()
    state = searching(net)
    _, subject = gated(state, unquantized(state, net), evidence(net, 1e-4, asked=False))
    assert subject.outcome == "refused"
    assert subject.parity is not None
    assert (subject.parity.metric, subject.parity.verdict) == ("max_abs", "fail")


def test_where_the_fastest_unquantized_engine_is_refused_another_backend_s_ships(
    problem: Problems, searching: Searching, candidate: Callable[..., Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = problem()
    state = searching(net)
    first, second = (candidate(name, net.plan("fp32", name), 1.0) for name in ("fast fp32", "near fp32"))
    state.candidates.extend([first, second])
    state.raced = frozenset({first.name, second.name})
    asked: list[str] = []

    def rounding(_problem: Problem, one: Candidate, _: Evidence) -> Parity:
        asked.append(one.name)
        verdict: Any = "pass" if one.name == second.name else "fail"
        return replace(Parity(verdict, "max_abs", 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4, None, "", ""), reason="by rounding")

    monkeypatch.setattr(finals, "_plain", lambda _state: [first, second])
    monkeypatch.setattr(finals, "_rounding", rounding)
    monkeypatch.setattr(State, "ready", lambda _state, one: one)
    candidates, subject = gated(state, [first, second], evidence(net, 0.0, asked=False))
    assert asked == ["fast fp32", "near fp32"]
    assert {one.name: one.outcome for one in candidates} == {"fast fp32": "refused", "near fp32": "shipped"}
    assert subject.name == "near fp32"
