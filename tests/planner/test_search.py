"""The loop with real engines: what comes first, who is in the contest, plans that are repeated, and what the clock cuts off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernels.timing import glance
from optimizer.engine import Candidate
from optimizer.errors import InputError, UnavailableError
from optimizer.fusion.rewrites import EVERYWHERE
from optimizer.plan import Plan, Rewrite
from optimizer.planner import moves, repairs
from optimizer.planner import state as room
from optimizer.planner.distance import Distance
from optimizer.planner.engines import build
from optimizer.planner.finals import timed
from optimizer.planner.given import refuse_what_does_not_fit
from optimizer.planner.journal import Journal
from optimizer.planner.moves import Move
from optimizer.planner.plans import everywhere, ranged
from optimizer.planner.problem import Problem
from optimizer.planner.search import search
from optimizer.planner.state import GIVEN, Clock, State
from optimizer.provenance import from_json, to_json

Problems = Callable[..., Problem]
Searching = Callable[..., State]

GATE = """net (float[1,2,3,4] x) => (float[1,8] y) <float[24,8] w, int64[2] flat = {1, 24}> {
  s = GlobalAveragePool(x) [mul] m = Mul(x, s) [add] a = Add(x, m) r = Reshape(a, flat) [last] y = MatMul(r, w)
}"""


def names(state: State) -> list[str]:
    return [one.name for one in search(state)]


def test_the_unquantized_engine_comes_first_and_then_what_is_lowered(problem: Problems, searching: Searching) -> None:
    state = searching(problem())
    found = list(search(state))
    assert found[0].name == "fp32"
    assert found[0].plan.lossless
    assert {"int8", "int8 dynamic"} <= {one.name for one in found}
    assert [one.name for one in state.candidates] == [one.name for one in found]
    assert state.left_out == []


def test_backends_race_in_one_contest_each_with_its_unquantized_engine_first(problem: Problems, searching: Searching) -> None:
    pytest.importorskip("openvino")
    state = searching(problem(), problem("openvino"))
    found = names(state)
    assert found[:2] == ["onnxruntime fp32", "openvino fp32"]
    assert {"onnxruntime int8", "openvino int8"} <= set(found)
    assert all(name.split()[0] == one.plan.backend for name, one in zip(found, state.candidates, strict=True))
    told = timed(state)
    assert {one.name for one in told} == set(found)
    assert told[0].name in found[:2]
    assert all(one.timing.versus == told[0].name for one in told if one.timing is not None)


def lacking(of: Problem, wanted: str) -> Problem:
    """The problem with a precision asked for that its backend does not have."""
    precisions = {precision for precision in of.capability.precisions if not precision.startswith(wanted)}
    return replace(of, wanted=wanted, capability=replace(of.capability, precisions=frozenset(precisions)))


@pytest.mark.parametrize("wanted", ["bf16", "int8"])
def test_a_backend_that_lacks_what_was_asked_for_by_name_leaves_it_to_the_other(
    wanted: str, problem: Problems, searching: Searching
) -> None:
    pytest.importorskip("openvino")
    other = problem("openvino", wanted=wanted)
    able = replace(other, capability=replace(other.capability, precisions=frozenset({*other.capability.precisions, wanted})))
    state = searching(lacking(problem(), wanted), able)
    next(search(state))
    assert [one.backend for one in state.problems] == ["openvino"]


def test_what_no_backend_has_is_refused_with_the_precisions_that_there_are(problem: Problems, searching: Searching) -> None:
    with pytest.raises(UnavailableError) as refused:
        next(search(searching(lacking(problem(), "bf16"))))
    assert refused.value.remedy == "Choose another precision: fp32, int8, or auto."


def test_static_int8_by_name_without_calibration_data_is_refused_where_there_is_no_other(problem: Problems, searching: Searching) -> None:
    net = problem(calibrated=False, wanted="int8")
    static = replace(net, capability=replace(net.capability, precisions=frozenset({"fp32", "int8"})))
    with pytest.raises(InputError, match="INT8 needs calibration data"):
        next(search(searching(static)))


def given(of: Problem, plan: Plan) -> Problem:
    """The problem with a plan that came out of a file."""
    return replace(of, given=from_json(to_json(plan), Plan, "plan.json"))


def plans(of: Problem) -> Mapping[str, Plan]:
    whole = everywhere(of, "int8")
    assert whole is not None
    int8 = ranged(of, whole, "minmax")
    form = of.rewritten([Rewrite("gate x + x s", "add")])
    below = everywhere(form, "int8")
    assert below is not None
    return {
        "plain": of.plan("fp32", "as it is"),
        "int8": int8,
        "with recovery": replace(int8, recovery=("gptq",)),
        "with rewrites": ranged(form, below, "entropy"),
    }


@pytest.mark.parametrize("kind", ["plain", "int8", "with recovery", "with rewrites"])
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_plan_that_was_given_is_repeated_as_it_is(name: str, kind: str, problem: Problems, searching: Searching) -> None:
    pytest.importorskip(name)
    net = problem(name, GATE)
    plan = plans(net)[kind]
    state = searching(given(net, plan))
    found = names(state)
    assert found in (["fp32", GIVEN], ["fp32"])
    repeated = state.candidates[-1]
    assert replace(repeated.plan, reason="", knobs={}) == replace(plan, reason="", knobs={})
    assert repeated.outcome == "tried"
    assert repeated.distance is not None
    assert repeated.distance < 0.2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rewrites": (Rewrite("gate x + x s", "nowhere"),)}, "no such layer"),
        ({"rewrites": (Rewrite("gate x + x s", "last"),)}, "does not apply there"),
        ({"rewrites": (Rewrite("no such rule", "add"),)}, "which this version does not have"),
        ({"recovery": ("prayer",)}, "a recovery step 'prayer', which does not exist"),
        ({"ranges": {}}, "has no range for the tensor"),
        ({"backend": "openvino"}, "is for the backend openvino"),
        ({"precisions": {"nowhere": "int8"}}, "a layer 'nowhere'"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_in_words(change: Any, told: str, problem: Problems, searching: Searching) -> None:
    net = problem(text=GATE)
    bad = replace(plans(net)["int8"], **change)

    def taken() -> None:
        form = net.rewritten(bad.rewrites)
        refuse_what_does_not_fit(bad, form.model, net.backend, net.capability, net.target, {})
        list(search(searching(given(net, bad))))

    with pytest.raises(InputError, match=told) as refused:
        taken()
    assert refused.value.remedy


def test_when_the_time_is_up_what_is_optional_is_left_out_and_told_and_the_rest_is_done(problem: Problems, searching: Searching) -> None:
    state = searching(problem(text=GATE), clock=Clock(0.0))
    found = names(state)
    assert found[0] == "fp32"
    assert "int8" in found
    assert not any(one.plan.rewrites for one in state.candidates)
    assert set(state.left_out) <= {"exact rewrites", "mending"}


def test_a_move_is_stopped_between_two_proposals(problem: Problems, searching: Searching, monkeypatch: pytest.MonkeyPatch) -> None:
    net, now = problem(), [0.0]

    def slow(_state: State) -> Iterator[Any]:
        for number in range(5):
            yield room.Proposal(net, f"fp32 {number}", net.plan("fp32", str(number)))
            now[0] += 4.0

    monkeypatch.setattr("optimizer.planner.search.MOVES", (Move("slow", slow), Move("more", slow)))  # type: ignore[arg-type]
    state = searching(net, clock=Clock(10.0, lambda: now[0]))
    assert names(state) == ["fp32 0", "fp32 1", "fp32 2"]
    assert state.left_out == ["slow", "more"]


def test_a_repeated_search_ends_where_the_first_had_no_time_left_and_a_larger_budget_goes_on(
    problem: Problems, searching: Searching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, now, file = problem(), [0.0], tmp_path / "timings.jsonl"

    def slow(_state: State) -> Iterator[Any]:
        for number in range(5):
            yield room.Proposal(net, f"fp32 {number}", net.plan("fp32", str(number)))
            now[0] += taking

    def found(budget: float) -> list[str]:
        clock = Clock(budget, lambda: now[0], budget=budget)
        return names(searching(net, journal=Journal(file, {}, (file,)), clock=clock))

    monkeypatch.setattr("optimizer.planner.search.MOVES", (Move("slow", slow),))  # type: ignore[arg-type]
    taking = 4.0
    assert found(10.0) == ["fp32 0", "fp32 1", "fp32 2"]
    taking = 0.001
    assert found(10.0) == ["fp32 0", "fp32 1", "fp32 2"]
    assert found(20.0) == [f"fp32 {number}" for number in range(5)]


def test_a_search_that_is_repeated_measures_nothing_anew_and_finds_the_same(
    problem: Problems, searching: Searching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, file = problem(), tmp_path / "timings.jsonl"
    found: list[list[Candidate]] = []
    for again in (False, True):
        if again:
            for name in ("build", "glance", "quick", "distance"):
                monkeypatch.setattr(room, name, lambda *_, **__: pytest.fail("measured anew"))
        state = searching(net, journal=Journal(file, {}, (file,)))
        found.append([replace(one, folder=None) for one in search(state)])
    assert found[0] == found[1]


def test_a_search_killed_anywhere_goes_on_and_measures_only_what_it_had_not(
    problem: Problems, searching: Searching, tmp_path: Path
) -> None:
    net, file = problem(), tmp_path / "timings.jsonl"
    whole = names(searching(net, journal=Journal(file, {})))
    lines = file.read_bytes().splitlines(keepends=True)
    records = len(lines) - 1
    for kept in range(1, len(lines)):
        part = tmp_path / f"killed after {kept}.jsonl"
        part.write_bytes(b"".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])
        state = searching(net, journal=Journal(part, {}, (part,)))
        assert names(state) == whole
        assert state.journal.found.total() == records - (kept - 1)
        assert len(part.read_bytes().splitlines()) == records + 1


def test_an_exact_rewrite_that_is_faster_is_what_lower_precisions_are_built_on(
    problem: Problems, searching: Searching, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = problem(text=GATE)
    monkeypatch.setattr(moves, "NEARLY", 0.0)
    monkeypatch.setattr(State, "faster", lambda *_: True)
    state = searching(net)
    found = {one.name: one for one in search(state)}
    rewritten = [one for one in found.values() if one.plan.rewrites]
    assert rewritten
    assert {layer.layer for one in rewritten for layer in one.plan.rewrites} <= {"add", EVERYWHERE}
    assert "int8 rewritten" in found
    assert found["int8 rewritten"].distance is not None
    assert found["int8 rewritten"].distance < 0.2


def test_what_loses_too_much_is_mended_until_it_does_not(problem: Problems, searching: Searching, monkeypatch: pytest.MonkeyPatch) -> None:
    net = problem()

    def int8_is_faster(*runs: Any, **words: Any) -> Any:
        return replace(glance(*runs, **words), ratio=1.0 if current[-1].lossless else 2.0)

    def far_with_the_second_layer(*_: object) -> Distance:
        return Distance(0.5 if current[-1].precision("second") == "int8" else 0.01)

    current: list[Plan] = []

    def noting(of: Problem, plan: Plan, *words: Any) -> Any:
        current.append(plan)
        return build(of, plan, *words)

    monkeypatch.setattr(room, "glance", int8_is_faster)
    monkeypatch.setattr(room, "build", noting)
    monkeypatch.setattr(room, "distance", far_with_the_second_layer)
    monkeypatch.setattr(repairs, "STEPS", ())
    monkeypatch.setattr(repairs.Switches, "error", lambda _, layers, _samples: 0.5 if "second" in layers else 0.01 if layers else 0.0)
    monkeypatch.setattr(moves, "_int8", lambda form: {"int8": everywhere(form, "int8")})
    state = searching(net)
    found = list(search(state))
    honest = [one for one in found if state.honest(one) and not one.plan.lossless]
    assert honest
    assert all(one.plan.precision("second") != "int8" for one in honest)
    assert any(one.plan.precision("third") == "int8" for one in honest)


def test_a_search_that_goes_on_times_every_candidate_against_the_first(problem: Problems, searching: Searching, tmp_path: Path) -> None:
    net, file = problem(), tmp_path / "timings.jsonl"
    list(search(searching(net, journal=Journal(file, {}))))
    lines = file.read_bytes().splitlines(keepends=True)
    part = tmp_path / "killed.jsonl"
    part.write_bytes(b"".join(lines[:2]))
    state = searching(net, journal=Journal(part, {}, (part,)))
    assert [one.timing is not None for one in search(state)] == [False, *[True] * (len(state.candidates) - 1)]
