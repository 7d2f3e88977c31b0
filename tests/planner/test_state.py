"""What a search knows of a plan: measured once, recalled after that, and on disk only as long as it may be needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernels.timing import Gain, glance
from optimizer.engine import Candidate
from optimizer.errors import OptimizeError, UnavailableError
from optimizer.plan import Plan, Rewrite
from optimizer.planner import state as room
from optimizer.planner.distance import Distance
from optimizer.planner.engines import build
from optimizer.planner.flips import Flips
from optimizer.planner.journal import Journal
from optimizer.planner.plans import everywhere, ranged
from optimizer.planner.problem import Problem
from optimizer.planner.state import Clock, Proposal, State

Problems = Callable[..., Problem]
Searching = Callable[..., State]

GATES = "net (float[1,2,3,4] x) => (float[1,2,3,4] y) { [pool] s = GlobalAveragePool(x) [mul] m = Mul(x, s) [add] y = Add(x, m) }"
GATE = Rewrite("gate x + x s", "add")


def float_(problem: Problem) -> Proposal:
    return Proposal(problem, "fp32", problem.plan("fp32", "nothing lowered"))


def int8(problem: Problem, layers: tuple[str, ...] = ("first", "second", "third", "last")) -> Proposal:
    whole = everywhere(problem, "int8")
    assert whole is not None
    plan = replace(whole, precisions={layer: how for layer, how in whole.precisions.items() if layer in layers})
    return Proposal(problem, f"int8 in {len(layers)}", ranged(problem, plan, "minmax"))


def timed_as(monkeypatch: pytest.MonkeyPatch, speeds: list[float]) -> None:
    """Looks at candidates' times give these speeds, one after the other."""
    left = iter(speeds)

    def said(*runs: Any, **words: Any) -> Any:
        return replace(glance(*runs, **words), ratio=next(left))

    monkeypatch.setattr(room, "glance", said)


def screened_as(monkeypatch: pytest.MonkeyPatch, *found: Distance) -> None:
    left = iter(found)
    monkeypatch.setattr(room, "distance", lambda *_: next(left))


def recalling(tmp_path: Path) -> Callable[[], Journal]:
    """Journals of one build after the other into the same place."""
    file = tmp_path / "timings.jsonl"
    return lambda: Journal(file, {}, (file,))


def test_the_first_candidate_is_the_yardstick_of_those_after_it(problem: Problems, searching: Searching) -> None:
    net = problem()
    state = searching(net)
    first, second = state.measured(float_(net)), state.measured(int8(net))
    assert (first.timing, first.outcome) == (None, "tried")
    assert first.distance is not None
    assert first.distance < 1e-5
    assert second.timing is not None
    assert second.timing.versus == "fp32"
    assert second.distance is not None
    assert 0.0 < second.distance < 0.2
    assert second.seconds is not None


def test_the_same_plan_is_the_same_candidate_under_whatever_name(problem: Problems, searching: Searching) -> None:
    net = problem()
    state = searching(net)
    first = state.measured(float_(net))
    assert state.measured(replace(float_(net), name="another")) == first
    assert state.candidates == [first]


def test_another_plan_of_the_same_name_gets_a_number(problem: Problems, searching: Searching) -> None:
    net = problem()
    state = searching(net)
    for reason in "abc":
        state.measured(Proposal(net, "fp32", net.plan("fp32", reason)))
    assert [one.name for one in state.candidates] == ["fp32", "fp32 (2)", "fp32 (3)"]


def test_what_was_measured_is_recalled_with_all_that_was_seen_and_without_an_engine(
    problem: Problems, searching: Searching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, journal = problem(), recalling(tmp_path)
    flips = Flips(observed=0.25, rate=0.1, low=0.05, high=0.2, samples=4, whole=0.1)
    screened_as(monkeypatch, Distance(0.0), Distance(0.125, flips))
    before = searching(net, journal=journal())
    seen = [before.measured(one) for one in (float_(net), int8(net))]
    monkeypatch.setattr(room, "build", lambda *_: pytest.fail("built anew"))
    after = searching(net, journal=journal())
    again = [after.measured(one) for one in (float_(net), int8(net))]
    assert [replace(one, folder=None) for one in seen] == again
    assert (again[1].distance, again[1].flip_rate) == (0.125, flips.rate)
    assert after.journal.recalled.total() == 2


def test_outputs_that_are_not_finite_are_as_far_after_a_recall(
    problem: Problems, searching: Searching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, journal = problem(), recalling(tmp_path)
    screened_as(monkeypatch, Distance(math.inf))
    for _ in range(2):
        assert searching(net, journal=journal()).measured(float_(net)).distance == math.inf


def test_a_plan_that_can_not_be_built_is_a_candidate_with_the_reason_also_after_a_recall(
    problem: Problems, searching: Searching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, journal = problem(), recalling(tmp_path)

    def refusing(of: Problem, plan: Plan, *words: Any) -> Any:
        if plan.precisions:
            raise UnavailableError("No kernel takes it.", "Take another.")
        return build(of, plan, *words)

    monkeypatch.setattr(room, "build", refusing)
    for _ in range(2):
        state = searching(net, journal=journal())
        state.measured(float_(net))
        found = state.measured(int8(net))
        assert (found.outcome, found.reason, found.folder) == ("not built", "No kernel takes it. Take another.", None)
        assert not state.honest(found)
        assert state.ready(found) == found


@pytest.mark.parametrize(("wanted", "name"), [("bf16", "bf16"), ("auto", "fp32")])
def test_what_was_asked_for_by_name_and_the_only_unquantized_engine_end_the_build_where_they_can_not_be_built(
    wanted: str, name: str, problem: Problems, searching: Searching, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: object) -> Any:
        raise UnavailableError("No kernel takes it.", "Take another.")

    net = problem(wanted=wanted)
    monkeypatch.setattr(room, "build", refusing)
    with pytest.raises(OptimizeError, match="No kernel takes it"):
        searching(net).measured(Proposal(net, name, net.plan("fp32", "")))


def test_engines_that_are_beaten_in_speed_and_loss_are_cleared_from_the_disk(
    problem: Problems, searching: Searching, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = problem()
    timed_as(monkeypatch, [2.0, 3.0, 4.0])
    screened_as(monkeypatch, Distance(0.0), Distance(0.3), Distance(0.2), Distance(0.5))
    state = searching(net)
    plans = [float_(net), *(int8(net, layers) for layers in (("first",), ("second",), ("third",)))]
    for proposal in plans:
        state.measured(proposal)
    there = [one.folder is not None and one.folder.exists() for one in state.candidates]
    assert there == [True, False, True, True]  # the second is slower than the third, and farther
    built = state.ready(state.candidates[1])
    assert built.folder is not None
    assert built.folder.exists()
    assert state.candidates[1] == built


def test_the_unquantized_engine_of_every_backend_stays(problem: Problems, searching: Searching, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    one, other = problem(), problem("openvino")
    timed_as(monkeypatch, [0.5, 2.0, 3.0])
    state = searching(one, other)
    for net in (one, other):
        state.measured(float_(net))
    for layers in (("first",), ("second",)):
        state.measured(int8(one, layers))
    assert [folder.folder is not None and folder.folder.exists() for folder in state.candidates][:2] == [True, True]


def test_a_recalled_engine_is_built_again_when_it_is_needed(problem: Problems, searching: Searching, tmp_path: Path) -> None:
    net, journal = problem(), recalling(tmp_path)
    searching(net, journal=journal()).measured(float_(net))
    state = searching(net, journal=journal())
    recalled = state.measured(float_(net))
    assert recalled.folder is None
    ready = state.ready(recalled)
    assert ready.folder is not None
    assert any(ready.folder.iterdir())
    assert state.ready(ready) is ready


def test_which_of_two_is_faster_is_asked_once(
    problem: Problems, searching: Searching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, journal = problem(), recalling(tmp_path)
    calls: list[object] = []

    def quick(*_: object, **__: object) -> Gain:
        calls.append(1)
        return Gain(2.0, 2.0, 2.0, len(calls) == 1, 8)

    monkeypatch.setattr(room, "quick", quick)
    for _ in range(2):
        state = searching(net, journal=journal())
        old, new = state.measured(float_(net)), state.measured(int8(net))
        assert state.faster(new, old)
    assert not state.faster(old, new)  # the other way round is another question
    assert len(calls) == 2


def test_a_simulated_error_is_measured_once_and_may_be_infinite(
    problem: Problems, searching: Searching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, journal = problem(), recalling(tmp_path)
    plan = int8(net).plan
    real = searching(net).error(net, plan, 4)
    assert 0.0 < real < 0.2
    assert searching(net).error(net, net.plan("fp32", ""), 4) < 1e-6
    screened_as(monkeypatch, Distance(math.inf))
    assert [searching(net, journal=journal()).error(net, plan, 4) for _ in range(2)] == [math.inf, math.inf]


def test_a_plan_finds_the_form_that_it_is_of(problem: Problems, searching: Searching) -> None:
    net = problem(text=GATES)
    state = searching(net)
    plan = replace(net.plan("fp32", ""), rewrites=(GATE,))
    form = state.owner(plan)
    assert form.rewrites == (GATE,)
    assert state.owner(plan) is form
    assert state.owner(net.plan("fp32", "")) is net
    assert list(state.bases) == [net]
    assert form.table is not None
    assert net.table is not None
    assert set(form.table.statistics) >= {"x", "s"}


def test_a_plan_with_recovery_finds_the_model_that_recovery_made(problem: Problems, searching: Searching) -> None:
    net = problem()
    state = searching(net)
    plan = replace(int8(net).plan, recovery=("gptq",))
    recovered = state.owner(plan)
    assert recovered.model is not net.model
    assert state.owner(plan) is recovered
    assert state.owner(int8(net).plan) is net


def test_lower_precisions_are_tried_on_the_preferred_form_and_on_the_model_as_it_was(problem: Problems, searching: Searching) -> None:
    net = problem(text=GATES)
    state = searching(net)
    assert state.preferred(net) == [net]
    state.prefer(net)
    assert state.preferred(net) == [net]
    form = state.form(net.rewritten([GATE]))
    state.prefer(form)
    assert state.preferred(form) == [form, net]


def test_candidates_carry_the_name_of_their_backend_where_there_are_several(problem: Problems, searching: Searching) -> None:
    pytest.importorskip("openvino")
    one, other = problem(), problem("openvino")
    assert searching(one).named(one, "int8") == "int8"
    assert searching(one, other).named(other, "int8") == "openvino int8"


@pytest.mark.parametrize(
    ("wanted", "allowed"),
    [
        ("auto", ["fp32", "bf16", "int8", "int8 dynamic", "int8 on bf16"]),
        ("fp32", ["fp32"]),
        ("bf16", ["bf16"]),
        ("int8", ["int8", "int8 dynamic", "int8 on bf16"]),
    ],
)
def test_with_a_precision_asked_for_by_name_only_plans_that_have_it_may_ship(
    wanted: str, allowed: list[str], problem: Problems, searching: Searching
) -> None:
    net = problem(wanted=wanted)
    state = searching(net)
    plans = {
        "fp32": net.plan("fp32", ""),
        "bf16": net.plan("bf16", ""),
        "int8": net.plan("fp32", "").with_precision(["first"], "int8", ""),
        "int8 dynamic": net.plan("fp32", "").with_precision(["first"], "int8_dynamic", ""),
        "int8 on bf16": net.plan("bf16", "").with_precision(["first"], "int8", ""),
    }
    assert [name for name, plan in plans.items() if state.may_ship(Candidate(name, plan))] == allowed


def test_where_a_plan_was_given_it_alone_may_ship(problem: Problems, searching: Searching) -> None:
    net = problem()
    net = replace(net, given=net.plan("fp32", ""))
    state = searching(net)
    assert state.may_ship(Candidate("given plan", net.plan("fp32", "")))
    assert not state.may_ship(Candidate("fp32", net.plan("fp32", "")))


@pytest.mark.parametrize(("allowed", "distance", "honest"), [(None, 0.1, True), (None, 0.2, False), (0.1, 0.2, True), (0.001, 0.1, False)])
def test_what_loses_no_more_than_is_allowed_is_honest(
    allowed: float | None, distance: float, honest: bool, problem: Problems, searching: Searching
) -> None:
    net = problem(allowed=allowed)
    plan = net.plan("fp32", "").with_precision(["first"], "int8", "")
    assert searching(net).honest(Candidate("int8", plan, distance=distance)) == honest


def test_a_clock_tells_what_is_left() -> None:
    now = [5.0]
    clock = Clock(10.0, lambda: now[0])
    now[0] = 9.0
    assert (clock.left, clock.seconds) == (6.0, 10.0)
    now[0] = 16.0
    assert clock.left < 0


def test_what_is_new_beside_recalled_candidates_is_timed_against_the_first_of_them(
    problem: Problems, searching: Searching, tmp_path: Path
) -> None:
    net, file = problem(), tmp_path / "timings.jsonl"
    first = Proposal(net, "fp32", net.plan("fp32", "nothing lowered"))
    searching(net, journal=Journal(file, {}, (file,))).measured(first)
    state = searching(net, journal=Journal(file, {}, (file,)))
    assert state.measured(first).timing is None
    assert state.journal.recalled.total() == 1
    new = state.measured(int8(net))
    assert new.timing is not None
    assert new.timing.versus == "fp32"


def test_what_was_timed_beside_one_backends_engine_is_timed_anew_beside_anothers(
    problem: Problems, searching: Searching, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    net, other, file = problem(), problem("openvino"), tmp_path / "timings.jsonl"
    plain = [Proposal(one, "fp32", one.plan("fp32", "nothing lowered")) for one in (net, other)]
    both = searching(net, other, journal=Journal(file, {}, (file,)))
    for one in (*plain, int8(net)):
        both.measured(one)
    alone = searching(net, journal=Journal(file, {}, (file,)))
    recalled = [alone.measured(one) for one in (plain[0], int8(net))][1]
    assert alone.journal.found.total() == 0  # ONNX Runtime's engine was the first of both, too
    assert recalled.timing is not None
    assert recalled.timing.versus == "fp32"
    turned = searching(other, net, journal=Journal(file, {}, (file,)))
    for one in (*reversed(plain), int8(net)):
        turned.measured(one)
    assert turned.journal.found["candidate"] == 3


def test_a_first_candidate_that_could_not_be_built_is_no_yardstick(
    problem: Problems, searching: Searching, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    one, other = problem(), problem("openvino")

    def refusing(of: Problem, *words: Any) -> Any:
        if of.backend == "onnxruntime":
            raise UnavailableError("No kernel takes it.", "Take another.")
        return build(of, *words)

    monkeypatch.setattr(room, "build", refusing)
    state = searching(one, other)
    for net in (one, other):
        state.measured(Proposal(net, "fp32", net.plan("fp32", "")))
    found = state.measured(int8(other))
    assert [each.timing is None for each in state.candidates] == [True, True, False]
    assert found.timing is not None
    assert found.timing.versus == "openvino fp32"
