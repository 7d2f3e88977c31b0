"""A fast plan that loses too much is given back as little as it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from optimizer.engine import Built, Candidate, Realised
from optimizer.errors import InputError
from optimizer.plan import Plan
from optimizer.planner import repairs
from optimizer.planner.plans import everywhere, ranged
from optimizer.planner.problem import Problem
from optimizer.planner.state import Mended, Proposal, State

Problems = Callable[..., Problem]
Searching = Callable[..., State]
Played = Callable[..., list[Proposal]]
Measured = Callable[..., Candidate]

LONG = 12
CHAIN = (
    f"net (float[1,8] x0) => (float[1,8] x{LONG}) <{', '.join(f'float[8,8] w{i}' for i in range(LONG))}> {{ "
    + " ".join(f"[layer{i}] x{i + 1} = MatMul(x{i}, w{i})" for i in range(LONG))
    + " }"
)


def broken(state: State, candidate: Measured) -> Candidate:
    """INT8 everywhere, far from its parent; beside it the unquantized candidate, with the time of each layer."""
    problem = state.bases[0]
    ms = {"first": 5.0, "second": 3.0, "third": 1.0, "last": 1.0}
    built = Built(tuple(Realised(name, "MatMul", "fp32", "fp32", ms=time) for name, time in ms.items()))
    state.candidates.append(candidate("fp32", problem.plan("fp32", ""), 1.0, distance=0.0, built=built))
    whole = everywhere(problem, "int8")
    assert whole is not None
    state.candidates.append(candidate("int8", ranged(problem, whole, "minmax"), 2.0, distance=0.5))
    return state.candidates[-1]


def lowered(plan: Plan) -> set[str]:
    return {layer for layer, how in plan.precisions.items() if how != "fp32"}


def measured(candidate: Measured, distance: float = 0.5) -> Callable[[Proposal], Candidate]:
    return lambda proposal: candidate(proposal.name, proposal.plan, 2.0, distance=distance)


@pytest.mark.parametrize("needed", range(1, LONG))
def test_as_few_of_the_first_layers_as_it_takes_are_found_by_bisection(
    needed: int, problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = problem(text=CHAIN)
    state = searching(net)
    of = broken(state, candidate)
    order = [layer.name for layer in net.model.layers]

    def given_back(plan: Plan) -> int:
        return LONG - len(lowered(plan))

    monkeypatch.setattr(State, "honest", lambda _, found: given_back(found.plan) >= needed)
    found = played(state, repairs.behind(state, net, of), measured(candidate))
    tried = [given_back(one.plan) for one in found]
    assert needed in tried
    assert needed == 1 or needed - 1 in tried
    assert len(tried) <= 4  # log2(12), rounded up
    for one, count in zip(found, tried, strict=True):
        assert lowered(one.plan) == set(order[count:])
        assert set(one.plan.ranges) < set(of.plan.ranges)
        assert one.name == f"int8 behind {count} layers"


def test_one_layer_alone_has_nothing_before_it(problem: Problems, searching: Searching, played: Played, candidate: Measured) -> None:
    net = problem(text="net (float[1,8] x) => (float[1,8] y) <float[8,8] w> { [only] y = MatMul(x, w) }")
    state = searching(net)
    of = broken(state, candidate)
    assert played(state, repairs.behind(state, net, of), measured(candidate)) == []


def test_only_the_dearest_layers_stay_lowered(problem: Problems, searching: Searching, played: Played, candidate: Measured) -> None:
    net = problem()
    state = searching(net)
    of = broken(state, candidate)
    found = played(state, repairs.dearest(state, net, of), measured(candidate))
    assert [lowered(one.plan) & {"first", "second", "third", "last"} for one in found] == [
        {"first", "second", "third"},
        {"first", "second"},
        {"first"},
    ]
    assert [one.name for one in found] == ["int8 in 3 layers", "int8 in 2 layers", "int8 in 1 layers"]


def test_without_times_of_layers_none_is_dearest(problem: Problems, searching: Searching, played: Played, candidate: Measured) -> None:
    net = problem()
    state = searching(net)
    of = broken(state, candidate)
    state.candidates[0] = replace(state.candidates[0], built=None)
    assert played(state, repairs.dearest(state, net, of), measured(candidate)) == []


def test_the_layer_that_loses_most_by_itself_is_left_in_float(
    problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = problem()
    state = searching(net)
    of = broken(state, candidate)
    monkeypatch.setattr(State, "error", lambda _state, _problem, plan, _samples: 0.5 if plan.precision("second") == "int8" else 0.001)
    found = played(state, repairs.without_broken(state, net, of), measured(candidate))
    assert found
    assert lowered(of.plan) - lowered(found[0].plan) == {"second"}
    assert found[0].name == "int8 without 1 layer"
    assert "second" in found[0].plan.reasons
    assert set(found[0].plan.ranges) <= set(of.plan.ranges)


def steps(monkeypatch: pytest.MonkeyPatch, *names: str, nothing: Sequence[str] = ()) -> None:
    """Steps of recovery of these names, of which some find nothing to do."""

    def step_called(name: str) -> Any:
        def step(*_: object) -> None: ...

        step.__name__ = name
        return step

    def recovering(_state: State, plan: Plan, step: Any) -> Mended | None:
        name = step.__name__
        return None if name in nothing else Mended(replace(plan, recovery=(*plan.recovery, name)), f"{name} did something")

    monkeypatch.setattr(repairs, "STEPS", tuple(map(step_called, names)))
    monkeypatch.setattr(State, "recovering", recovering)


def test_a_step_of_recovery_is_kept_only_where_it_brings_the_outputs_nearer_by_more_than_chance(
    problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = problem()
    state = searching(net)
    of = broken(state, candidate)
    steps(monkeypatch, "a", "b", "c", "d", "e", nothing=["d"])
    distances = {
        ("a",): 0.5 * repairs.WORTH - 0.001,  # just enough of a gain
        ("a", "b"): (0.5 * repairs.WORTH - 0.001) * (repairs.WORTH + 0.001),  # hardly any
        ("a", "c"): 0.1,
        ("a", "c", "e"): 0.2,
    }
    found = played(
        state,
        repairs.recovery(state, net, of),
        lambda proposal: candidate(proposal.name, proposal.plan, 2.0, distance=distances[proposal.plan.recovery]),
    )
    assert [one.plan.recovery for one in found] == list(distances)
    assert [one.name for one in found] == ["int8 with a", "int8 with a and b", "int8 with a and c", "int8 with a and c and e"]
    assert found[2].plan.reason.endswith("; a did something; c did something")


def test_a_step_that_can_not_be_built_is_not_built_upon(
    problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = problem()
    state = searching(net)
    of = broken(state, candidate)
    steps(monkeypatch, "a", "b")
    found = played(
        state,
        repairs.recovery(state, net, of),
        lambda proposal: candidate(proposal.name, proposal.plan, outcome="not built"),
    )
    assert [one.plan.recovery for one in found] == [("a",), ("b",)]


def test_a_step_that_fails_is_told_and_the_others_go_on(
    problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = problem()
    state = searching(net)
    of = broken(state, candidate)
    steps(monkeypatch, "a", "b")
    well = State.recovering

    def failing(state: State, plan: Plan, step: Any) -> Mended | None:
        if step.__name__ == "a":
            raise InputError("Twin a can't be run.", "Tell us.")
        return well(state, plan, step)

    monkeypatch.setattr(State, "recovering", failing)
    found = played(state, repairs.recovery(state, net, of), measured(candidate, 0.1))
    assert [one.plan.recovery for one in found] == [("b",)]
    told = next(one for one in state.candidates if one.outcome == "not built")
    assert (told.name, told.reason) == ("int8 with a", "Twin a can't be run. Tell us.")


def test_dynamic_int8_has_nothing_to_recover(problem: Problems, searching: Searching, played: Played, candidate: Measured) -> None:
    net = problem()
    state = searching(net)
    of = broken(state, candidate)
    dynamic = everywhere(net, "int8_dynamic")
    assert dynamic is not None
    assert played(state, repairs.recovery(state, net, replace(of, plan=dynamic)), measured(candidate)) == []


def test_nothing_is_given_back_that_would_leave_no_layer_in_integers(problem: Problems, searching: Searching, candidate: Measured) -> None:
    text = "net (float[1,2,2,2] x) => (float[1,8] y) <float[8,8] w> "
    net = problem(text=text + "{ [pool] p = MaxPool<kernel_shape = [1, 1]>(x) [flat] f = Flatten(p) [product] y = MatMul(f, w) }")
    of = broken(searching(net), candidate)
    assert lowered(of.plan) == {"pool", "flat", "product"}
    assert repairs.again(net, of.plan, ["product"], "") is None
    left = repairs.again(net, of.plan, ["pool"], "why")
    assert left is not None
    assert left.reasons["pool"] == "why"


def test_a_half_precision_plan_is_not_given_back_as_a_whole(problem: Problems) -> None:
    net = problem()
    net = replace(net, capability=replace(net.capability, precisions=net.capability.precisions | {"bf16"}, refusals={}))
    layers = [layer.name for layer in net.model.layers]
    half = net.plan("fp32", "").with_precision(layers, "bf16", "")
    assert repairs.again(net, half, layers, "") is None
    assert repairs.again(net, half, layers[1:], "") is not None
