"""A fast plan that loses too much is given back as little as it takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from optimizer.engine import Built, Candidate, Realised
from optimizer.errors import InputError
from optimizer.plan import Plan
from optimizer.planner import repairs
from optimizer.planner.plans import everywhere, ranged
from optimizer.planner.problem import Problem
from optimizer.planner.repairs import Broken
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


PRODUCTS = ("first", "second", "third", "last")


def broken(state: State, candidate: Measured) -> Broken:
    """INT8 everywhere, far from its parent; beside it the unquantized candidate, with the time of each layer."""
    problem = state.bases[0]
    ms = {"first": 5.0, "second": 3.0, "third": 1.0, "last": 1.0}
    built = Built(tuple(Realised(name, "MatMul", "fp32", "fp32", ms=time) for name, time in ms.items()))
    state.candidates.append(candidate("fp32", problem.plan("fp32", ""), 1.0, distance=0.0, built=built))
    whole = everywhere(problem, "int8")
    assert whole is not None
    built = Built(tuple(Realised(name, "MatMul", "int8", "int8", ms=time / 2) for name, time in ms.items()))
    found = candidate("int8", ranged(problem, whole, "minmax"), 2.0, distance=0.5, built=built)
    state.candidates.append(found)
    return Broken(problem, found, found, problem.plan("fp32", ""))


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
    found = played(state, repairs.behind(state, of), measured(candidate))
    tried = [given_back(one.plan) for one in found]
    assert needed in tried
    assert needed == 1 or needed - 1 in tried
    assert len(tried) <= 4  # log2(12), rounded up
    for one, count in zip(found, tried, strict=True):
        assert lowered(one.plan) == set(order[count:])
        assert set(one.plan.ranges) < set(of.found.plan.ranges)
        assert one.name == f"int8 behind {count} layers"


def test_one_layer_alone_has_nothing_before_it(problem: Problems, searching: Searching, played: Played, candidate: Measured) -> None:
    net = problem(text="net (float[1,8] x) => (float[1,8] y) <float[8,8] w> { [only] y = MatMul(x, w) }")
    state = searching(net)
    of = broken(state, candidate)
    assert played(state, repairs.behind(state, of), measured(candidate)) == []


def losses(monkeypatch: pytest.MonkeyPatch, **of: float) -> None:
    """How far each layer alone takes the outputs."""

    class Known:
        def __init__(self, *_: object) -> None: ...

        def error(self, layers: Collection[str], _samples: int) -> float:
            return float(np.sqrt(sum(of.get(layer, 0.0) ** 2 for layer in layers)))

        def close(self) -> None: ...

    monkeypatch.setattr(repairs, "Switches", Known)


def test_the_layers_that_lose_most_for_what_they_save_are_given_back_as_few_as_it_takes(
    problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = problem()
    state = searching(net)
    of = broken(state, candidate)
    # By loss alone the first would go before the third; it saves five times as much.
    losses(monkeypatch, first=0.2, second=0.01, third=0.15, last=0.3)
    monkeypatch.setattr(State, "honest", lambda _, found: {"last", "third"} <= back(of, found.plan))
    found = played(state, repairs.cheapest(state, of), measured(candidate))
    fewest = min((one for one in found if {"last", "third"} <= back(of, one.plan)), key=lambda one: len(back(of, one.plan)))
    assert back(of, fewest.plan) & set(PRODUCTS) == {"third", "last"}
    assert fewest.name.startswith("int8 without ")
    assert "third" in fewest.plan.reasons


def test_what_runs_inside_another_layer_s_kernel_is_given_back_with_it(
    problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = problem()
    state = searching(net)
    of = broken(state, candidate)
    whole = of.found.plan.with_precision(["cut1", "cut2", "cut3"], "int8", "")
    of = replace(of, found=replace(of.found, plan=whole))
    losses(monkeypatch, first=0.2, cut1=0.3, second=0.1, third=0.1, last=0.1)
    found = played(state, repairs.cheapest(state, of), measured(candidate))
    gone = [back(of, one.plan) for one in found]
    assert {"first", "cut1"} <= set().union(*gone)
    assert all(("first" in one) == ("cut1" in one) for one in gone)


def test_without_times_of_layers_those_that_lose_most_are_given_back(
    problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = problem()
    state = searching(net)
    of = broken(state, candidate)
    of = replace(of, found=replace(of.found, built=None))
    losses(monkeypatch, first=0.2, second=0.01, third=0.15, last=0.3)
    monkeypatch.setattr(State, "honest", lambda _, found: {"last", "first"} <= back(of, found.plan))
    found = played(state, repairs.cheapest(state, of), measured(candidate))
    fewest = min((one for one in found if {"last", "first"} <= back(of, one.plan)), key=lambda one: len(back(of, one.plan)))
    assert back(of, fewest.plan) & set(PRODUCTS) == {"last", "first"}


def test_what_is_left_in_integers_is_recovered_as_the_whole_was(
    problem: Problems, searching: Searching, played: Played, candidate: Measured
) -> None:
    net = problem()
    state = searching(net)
    of = broken(state, candidate)
    plan = of.found.plan
    recovered = replace(plan, recovery=("ranges", "gptq"), ranges={name: replace(one, method="mse") for name, one in plan.ranges.items()})
    of = replace(of, best=candidate("int8 with ranges and gptq", recovered, 2.0, distance=0.2))
    found = played(state, repairs.behind(state, of), measured(candidate))
    assert found
    for one in found:
        assert one.plan.recovery == ("ranges", "gptq")
        assert {chosen.method for chosen in one.plan.ranges.values()} == {"mse"}
        assert one.name.startswith("int8 with ranges and gptq behind")


def test_a_step_that_fails_on_what_is_left_is_told_and_left_out(
    problem: Problems, searching: Searching, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = problem()
    state = searching(net)
    of = broken(state, candidate)
    of = replace(of, best=candidate("int8 with gptq", replace(of.found.plan, recovery=("gptq",)), 2.0, distance=0.2))

    def failing(_state: State, _plan: Plan, _step: Any) -> Mended | None:
        raise InputError("It can't be rounded.", "Tell us.")

    monkeypatch.setattr(State, "recovering", failing)
    left = repairs.given_back(of, ["first"], "")
    assert left is not None
    assert repairs.recovered_anew(state, of, left) == left
    told = state.candidates[-1]
    assert (told.name, told.outcome, told.reason) == (
        "int8 with gptq with layers given back with gptq",
        "not built",
        "It can't be rounded. Tell us.",
    )


def back(of: Broken, plan: Plan) -> set[str]:
    """The layers that were given back."""
    return lowered(of.found.plan) - lowered(plan)


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
        repairs.recovery(state, net, of.found),
        lambda proposal: candidate(proposal.name, proposal.plan, 2.0, distance=distances[proposal.plan.recovery]),
    )
    assert [one.plan.recovery for one in found] == list(distances)
    assert [one.name for one in found] == ["int8 with a", "int8 with a and b", "int8 with a and c", "int8 with a, c and e"]
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
        repairs.recovery(state, net, of.found),
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
    found = played(state, repairs.recovery(state, net, of.found), measured(candidate, 0.1))
    assert [one.plan.recovery for one in found] == [("b",)]
    told = next(one for one in state.candidates if one.outcome == "not built")
    assert (told.name, told.reason) == ("int8 with a", "Twin a can't be run. Tell us.")


def test_dynamic_int8_has_nothing_to_recover(problem: Problems, searching: Searching, played: Played, candidate: Measured) -> None:
    net = problem()
    state = searching(net)
    of = broken(state, candidate)
    dynamic = everywhere(net, "int8_dynamic")
    assert dynamic is not None
    assert played(state, repairs.recovery(state, net, replace(of.found, plan=dynamic)), measured(candidate)) == []


def test_nothing_is_given_back_that_would_leave_no_layer_in_integers(problem: Problems, searching: Searching, candidate: Measured) -> None:
    text = "net (float[1,2,2,2] x) => (float[1,8] y) <float[8,8] w> "
    net = problem(text=text + "{ [pool] p = MaxPool<kernel_shape = [1, 1]>(x) [flat] f = Flatten(p) [product] y = MatMul(f, w) }")
    of = broken(searching(net), candidate)
    assert lowered(of.found.plan) == {"pool", "flat", "product"}
    assert repairs.given_back(of, ["product"], "") is None
    left = repairs.given_back(of, ["pool"], "why")
    assert left is not None
    assert left.reasons["pool"] == "why"


def in_half(net: Problem) -> Problem:
    return replace(net, capability=replace(net.capability, precisions=net.capability.precisions | {"bf16"}, refusals={}))


def test_a_half_precision_plan_is_not_given_back_as_a_whole(problem: Problems, candidate: Measured) -> None:
    net = in_half(problem())
    layers = [layer.name for layer in net.model.layers]
    found = candidate("bf16", net.plan("bf16", ""))
    of = Broken(net, found, found, net.plan("fp32", ""))
    assert repairs.given_back(of, layers, "") is None
    left = repairs.given_back(of, layers[1:], "")
    assert left is not None
    assert [left.precision(name) for name in layers] == ["bf16"] + ["fp32"] * (len(layers) - 1)


def test_below_integers_on_half_precision_stands_the_fastest_honest_plan_in_it(
    problem: Problems, searching: Searching, candidate: Measured
) -> None:
    net = in_half(problem())
    state = searching(net)
    state.candidates.append(candidate("fp32", net.plan("fp32", ""), 1.0, distance=0.0))
    half = net.plan("bf16", "")
    whole = half.with_precision(["first", "second"], "int8", "")
    for name, speed, distance in (("bf16", 3.0, 0.9), ("slow", 1.5, 0.001), ("fast", 2.0, 0.001)):
        assert repairs.floor(state, net, whole) is None or name == "fast"
        exact = half.with_precision(["last"] if name == "fast" else ["last", "third"] if name == "slow" else [], "fp32", name)
        state.candidates.append(candidate(name, exact, speed, distance=distance))
    below = repairs.floor(state, net, whole)
    assert below is not None
    assert below.reason == "fast"
    found = candidate("int8 on bf16", whole, 4.0, distance=0.9)
    left = repairs.given_back(Broken(net, found, found, below), ["second"], "")
    assert left is not None
    assert [left.precision(name) for name in ("first", "second", "third", "last")] == ["int8", "bf16", "bf16", "fp32"]
    assert repairs.floor(state, net, replace(whole, base="fp32")) == net.plan("fp32", "")
