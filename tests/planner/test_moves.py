"""What each move proposes, and what it makes of the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from kernels.timing import race
from optimizer.engine import Candidate
from optimizer.errors import UnavailableError
from optimizer.fusion.rewrites import EVERYWHERE
from optimizer.plan import Rewrite
from optimizer.planner import moves, repairs, tuning
from optimizer.planner.journal import Journal
from optimizer.planner.problem import Problem
from optimizer.planner.repairs import Broken, method_of
from optimizer.planner.state import Clock, Proposal, State

Problems = Callable[..., Problem]
Searching = Callable[..., State]
Played = Callable[..., list[Proposal]]
Measured = Callable[..., Candidate]

RULE = "gate x + x s"
GATES = (
    "net (float[1,2,3,4] x0) => (float[1,2,3,4] x5) { "
    + " ".join(f"s{i} = GlobalAveragePool(x{i}) [mul{i}] m{i} = Mul(x{i}, s{i}) [add{i}] x{i + 1} = Add(x{i}, m{i})" for i in range(5))
    + " }"
)


def begun(state: State, candidate: Measured) -> State:
    """A state in which the unquantized engine of each backend was measured."""
    for problem in state.bases:
        name = state.named(problem, "fp32")
        state.candidates.append(candidate(name, problem.plan("fp32", "nothing lowered"), distance=0.0))
    return state


def as_fast(candidate: Measured, speed: float = 1.0) -> Callable[[Proposal], Candidate]:
    return lambda proposal: candidate(proposal.name, proposal.plan, speed)


def rewriting(state: State, played: Played, candidate: Measured, speed: float = 1.0) -> list[tuple[Rewrite, ...]]:
    return [one.problem.rewrites for one in played(state, moves.rewritten(state), as_fast(candidate, speed))]


def faster_where(monkeypatch: pytest.MonkeyPatch, wins: Callable[[tuple[Rewrite, ...]], bool]) -> list[tuple[Any, Any]]:
    """Pairs give this verdict from here on; those that were asked about."""
    asked: list[tuple[Any, Any]] = []

    def faster(_state: State, new: Candidate, old: Candidate) -> bool:
        asked.append((new.plan.rewrites, old.plan.rewrites))
        return wins(new.plan.rewrites)

    monkeypatch.setattr(State, "faster", faster)
    return asked


def test_a_rewrite_is_tried_at_all_its_places_and_kept_where_that_is_faster(
    problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = problem(text=GATES)
    state = begun(searching(net), candidate)
    faster_where(monkeypatch, lambda _: True)
    assert rewriting(state, played, candidate) == [(Rewrite(RULE, EVERYWHERE),)]
    assert [form.rewrites for form in state.preferred(net)] == [(Rewrite(RULE, EVERYWHERE),), ()]
    assert state.candidates[-1].name == f"fp32 with {RULE}"
    assert state.candidates[-1].plan.reason == "exact rewrites at every place"


def test_where_all_places_together_do_not_pay_a_few_are_tried_alone_and_each_is_built_upon(
    problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = problem(text=GATES)
    state = begun(searching(net), candidate)
    asked = faster_where(monkeypatch, lambda rewrites: rewrites[-1].layer in ("add1", "add2"))
    tried = rewriting(state, played, candidate)
    assert tried[0] == (Rewrite(RULE, EVERYWHERE),)
    alone = [chosen[-1].layer for chosen in tried[1:]]
    assert len(alone) == len(set(alone)) == moves.ALONE
    kept = tuple(Rewrite(RULE, layer) for layer in alone if layer in ("add1", "add2"))
    assert kept
    assert state.preferred(net)[0].rewrites == kept
    # What is kept is what the next one is held against.
    assert all(new[:-1] == old for new, old in asked)


def test_a_rewrite_that_is_not_faster_for_sure_is_not_kept(
    problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = problem(text=GATES)
    state = begun(searching(net), candidate)
    faster_where(monkeypatch, lambda _: False)
    assert len(rewriting(state, played, candidate)) == 1 + moves.ALONE
    assert state.preferred(net) == [net]


def test_what_looks_slower_is_not_asked_about_in_pairs(
    problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = problem(text=GATES)
    state = begun(searching(net), candidate)
    asked = faster_where(monkeypatch, lambda _: True)
    rewriting(state, played, candidate, speed=0.9)
    assert asked == []
    assert state.preferred(net) == [net]


def test_a_rewrite_that_can_not_be_built_is_not_kept(
    problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = problem(text=GATES)
    state = begun(searching(net), candidate)
    asked = faster_where(monkeypatch, lambda _: True)
    played(state, moves.rewritten(state), lambda proposal: candidate(proposal.name, proposal.plan, outcome="not built"))
    assert asked == []
    assert state.preferred(net) == [net]


@pytest.mark.parametrize("why", ["a plan was given", "nothing can be timed", "its part of the time is over"])
def test_rewrites_are_left_alone_where(
    why: str, problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = problem(text=GATES)
    if why == "a plan was given":
        net = replace(net, given=net.plan("fp32", ""))
    if why == "nothing can be timed":
        net = replace(net, capability=replace(net.capability, runs_here=False))
    faster_where(monkeypatch, lambda _: True)
    ticks = count(0.0, 31.0 if why.startswith("its part") else 0.0)
    state = begun(searching(net, clock=Clock(100.0, lambda: next(ticks))), candidate)
    assert rewriting(state, played, candidate) == []


def test_the_knobs_that_the_unquantized_engine_runs_fastest_with_are_those_of_all_plans_after_it(
    problem: Problems, searching: Searching, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = problem(choices={"threads": (1, 2)})

    def second_is_faster(runs: Any, baseline: str, **words: Any) -> Any:
        timings = race(runs, baseline, **{**words, "seconds": 0.05})
        return {name: replace(timing, ratio=float(name), low=float(name)) for name, timing in timings.items()}

    monkeypatch.setattr(tuning, "race", second_is_faster)
    state = searching(net)
    proposals = moves.unlowered(state)
    with pytest.raises(StopIteration):
        proposals.send(state.measured(next(proposals)))
    assert state.bases[0].knobs["threads"] == 2
    assert state.candidates[0].plan.knobs["threads"] == 2
    assert state.candidates[0].plan.reason == "nothing lowered; threads 2: 2.00x the speed of 1"


def test_the_range_method_is_the_one_that_keeps_the_outputs_nearest(
    problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = problem()
    state = begun(searching(net), candidate)
    errors = {"minmax": 0.5, "entropy": 0.25}
    monkeypatch.setattr(State, "error", lambda _state, _problem, plan, _samples: errors.get(method_of(plan), 0.75))
    found = {one.name: one.plan for one in played(state, moves.integers(state), as_fast(candidate))}
    assert method_of(found["int8"]) == "entropy"
    assert "ranges by entropy: output error 0.25 on calibration samples" in found["int8"].reason
    assert "minmax 0.5" in found["int8"].reason
    assert set(found["int8 dynamic"].precisions.values()) >= {"int8_dynamic"}
    assert not found["int8 dynamic"].ranges


def test_integers_are_tried_on_the_preferred_form_too(
    problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    gate = "net (float[1,2,3,4] x) => (float[1,8] y) <float[24,8] w, int64[2] flat = {1, 24}> "
    gate += "{ s = GlobalAveragePool(x) [mul] m = Mul(x, s) [add] a = Add(x, m) r = Reshape(a, flat) [last] y = MatMul(r, w) }"
    net = problem(text=gate)
    state = begun(searching(net), candidate)
    form = state.form(net.rewritten([Rewrite(RULE, "add")]))
    state.prefer(form)
    monkeypatch.setattr(State, "error", lambda *_: 0.1)
    found = {one.name: one.problem for one in played(state, moves.integers(state), as_fast(candidate))}
    assert {"int8", "int8 rewritten"} <= set(found)
    assert (found["int8"], found["int8 rewritten"]) == (net, form)


def test_without_calibration_static_int8_is_noted_as_left_out_and_dynamic_is_tried(
    problem: Problems, searching: Searching, played: Played, candidate: Measured
) -> None:
    state = begun(searching(problem(calibrated=False)), candidate)
    names = [one.name for one in played(state, moves.integers(state), as_fast(candidate))]
    assert names == ["int8 dynamic"]
    assert [(one.name, one.outcome) for one in state.candidates[1:2]] == [("int8", "not built")]
    assert "--calibration" in state.candidates[1].reason


def test_int8_by_name_of_a_model_that_has_no_layer_for_it_is_refused(problem: Problems, searching: Searching, candidate: Measured) -> None:
    state = begun(searching(problem(text="net (float[1,4] x) => (float[1,4] y) { [only] y = Sin(x) }", wanted="int8")), candidate)
    with pytest.raises(UnavailableError, match="No layer of this model can run in INT8"):
        next(moves.integers(state))


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_another_precision_asked_for_by_name_leaves_integers_alone(
    wanted: str, problem: Problems, searching: Searching, played: Played, candidate: Measured
) -> None:
    state = begun(searching(problem(wanted=wanted)), candidate)
    assert played(state, moves.integers(state), as_fast(candidate)) == []
    assert played(state, moves.halves(state), as_fast(candidate)) == []


def test_half_precision_is_tried_where_the_backend_has_it(
    problem: Problems, searching: Searching, played: Played, candidate: Measured
) -> None:
    net = problem()
    state = begun(searching(net), candidate)
    assert played(state, moves.halves(state), as_fast(candidate)) == []
    able = replace(net, capability=replace(net.capability, precisions=net.capability.precisions | {"bf16", "fp16"}))
    found = played(begun(searching(able), candidate), moves.halves(searching(able)), as_fast(candidate))
    assert [(one.name, one.plan.base) for one in found] == [("bf16", "bf16"), ("fp16", "fp16")]


def test_a_float_precision_by_name_is_proposed_once(problem: Problems, searching: Searching, played: Played, candidate: Measured) -> None:
    for wanted, names in (("fp32", []), ("bf16", ["bf16"]), ("auto", []), ("int8", [])):
        state = begun(searching(problem(wanted=wanted)), candidate)
        assert [one.name for one in played(state, moves.by_name(state), as_fast(candidate))] == names


def lossy(state: State, candidate: Measured, *found: tuple[str, float, float]) -> None:
    """INT8 candidates of these names, speeds and distances."""
    plan = state.bases[0].plan("fp32", "").with_precision(["first"], "int8", "")
    for name, speed, distance in found:
        state.candidates.append(candidate(name, replace(plan, reason=name), speed, distance=distance))


def mending(monkeypatch: pytest.MonkeyPatch, *found: tuple[str, float, float]) -> list[tuple[str, str]]:
    """Two repairs of which the second proposes nothing, and no recovery; what they were asked to mend."""
    asked: list[tuple[str, str]] = []
    left = iter(found)

    def first(_state: State, broken: Broken) -> Iterator[Proposal]:
        asked.append(("first", broken.name))
        for name, _, _ in left:
            yield Proposal(broken.problem, name, replace(broken.found.plan, reason=name))
            return

    def second(_state: State, broken: Broken) -> Iterator[Proposal]:
        asked.append(("second", broken.name))
        return
        yield

    monkeypatch.setattr(repairs, "STEPS", ())
    monkeypatch.setattr(moves, "REPAIRS", (first, second))
    return asked


def mended_as(candidate: Measured, *found: tuple[str, float, float]) -> Callable[[Proposal], Candidate]:
    known = {name: (speed, distance) for name, speed, distance in found}
    return lambda proposal: candidate(proposal.name, proposal.plan, known[proposal.name][0], distance=known[proposal.name][1])


def test_no_more_than_a_few_plans_are_mended_the_fastest_first(
    problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = begun(searching(problem()), candidate)
    lossy(state, candidate, *((f"int8 {speed}", float(speed), 0.9) for speed in range(2, 8)))
    asked = mending(monkeypatch)
    played(state, moves.repaired(state), mended_as(candidate))
    assert [name for repair, name in asked if repair == "first"] == ["int8 7", "int8 6", "int8 5"][: moves.REPAIRED]
    assert len(asked) == 2 * moves.REPAIRED


def test_a_plan_that_is_mended_at_hardly_any_cost_needs_no_further_repair_and_slower_ones_none_at_all(
    problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = begun(searching(problem()), candidate)
    lossy(state, candidate, ("fast", 4.0, 0.9), ("slower", 3.5, 0.9))
    good = ("mended", 4.0 * (moves.ALMOST + 0.01), 0.01)
    asked = mending(monkeypatch, good)
    played(state, moves.repaired(state), mended_as(candidate, good))
    assert asked == [("first", "fast")]


@pytest.mark.parametrize("found", [("slow", 3.0, 0.01), ("still broken", 4.0, 0.9)])
def test_a_repair_that_costs_much_or_mends_nothing_is_followed_by_the_next(
    found: tuple[str, float, float],
    problem: Problems,
    searching: Searching,
    played: Played,
    candidate: Measured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = begun(searching(problem()), candidate)
    lossy(state, candidate, ("fast", 4.0, 0.9))
    asked = mending(monkeypatch, found)
    played(state, moves.repaired(state), mended_as(candidate, found))
    # What a repair proposed is not mended in its turn.
    assert asked == [("first", "fast"), ("second", "fast")]


def test_what_is_honest_or_no_faster_than_what_is_honest_is_not_mended(
    problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = begun(searching(problem()), candidate)
    lossy(state, candidate, ("honest", 3.0, 0.01), ("broken and no faster", 3.0, 0.9))
    asked = mending(monkeypatch)
    played(state, moves.repaired(state), mended_as(candidate))
    assert asked == []


def in_half(problem: Problem) -> Problem:
    """As if the backend had BF16."""
    return replace(problem, capability=replace(problem.capability, precisions=problem.capability.precisions | {"bf16"}, refusals={}))


def test_half_precision_is_mended_before_the_faster_plan_that_stands_on_it(
    problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = in_half(problem())
    state = begun(searching(net), candidate)
    half = net.plan("bf16", "")
    state.candidates.append(candidate("bf16", half, 2.0, distance=0.9))
    state.candidates.append(candidate("int8 on bf16", half.with_precision(["first"], "int8", ""), 4.0, distance=0.9))
    exact = half.with_precision(["last"], "fp32", "mended")

    def first(_state: State, broken: Broken) -> Iterator[Proposal]:
        if not repairs.in_int8(broken.found.plan):
            yield Proposal(broken.problem, "bf16 mended", exact)

    monkeypatch.setattr(repairs, "STEPS", ())
    monkeypatch.setattr(moves, "REPAIRS", (first,))
    known = {"bf16 mended": (1.9, 0.01), "int8 on bf16 mended": (3.8, 0.01)}
    found = played(state, moves.repaired(state), lambda one: candidate(one.name, one.plan, known[one.name][0], distance=known[one.name][1]))
    assert [one.name for one in found] == ["bf16 mended", "int8 on bf16 mended"]
    assert {name: found[1].plan.precision(name) for name in ("first", "second", "last")} == {
        "first": "int8",
        "second": "bf16",
        "last": "fp32",
    }


def test_integers_on_half_precision_that_can_not_be_mended_are_left_alone(
    problem: Problems, searching: Searching, played: Played, candidate: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = in_half(problem())
    state = begun(searching(net), candidate)
    half = net.plan("bf16", "")
    state.candidates.append(candidate("bf16", half, 2.0, distance=0.9))
    state.candidates.append(candidate("int8 on bf16", half.with_precision(["first"], "int8", ""), 4.0, distance=0.9))
    asked = mending(monkeypatch)
    assert played(state, moves.repaired(state), mended_as(candidate)) == []
    assert {name for _, name in asked} == {"bf16"}


@pytest.fixture
def two_threads_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tuner finds an engine as many times as fast as it has threads."""
    race = tuning.race

    def as_many_times_as_threads(runs: Any, baseline: str, **words: Any) -> Any:
        timings = race(runs, baseline, **{**words, "seconds": 0.05})
        return {name: replace(timing, ratio=float(name), low=float(name)) for name, timing in timings.items()}

    monkeypatch.setattr(tuning, "race", as_many_times_as_threads)


@pytest.mark.usefixtures("two_threads_win")
def test_the_knobs_of_an_unquantized_engine_that_was_recalled_are_the_same_again(
    problem: Problems, searching: Searching, tmp_path: Path
) -> None:
    net, file = problem(choices={"threads": (1, 2)}), tmp_path / "timings.jsonl"
    found = []
    for _ in range(2):
        state = searching(net, journal=Journal(file, {}, (file,)))
        proposals = moves.unlowered(state)
        with pytest.raises(StopIteration):
            proposals.send(state.measured(next(proposals)))
        found.append(state.candidates[0].plan)
    assert found[0] == found[1]
    assert found[1].knobs["threads"] == 2


@pytest.mark.usefixtures("two_threads_win")
def test_a_build_killed_while_it_tuned_tunes_when_it_goes_on(problem: Problems, searching: Searching, tmp_path: Path) -> None:
    net, file = problem(choices={"threads": (1, 2)}), tmp_path / "timings.jsonl"
    before = searching(net, journal=Journal(file, {}))
    before.measured(next(moves.unlowered(before)))
    state = searching(net, journal=Journal(file, {}, (file,)))
    proposals = moves.unlowered(state)
    with pytest.raises(StopIteration):
        proposals.send(state.measured(next(proposals)))
    assert state.candidates[0].plan.knobs["threads"] == 2
