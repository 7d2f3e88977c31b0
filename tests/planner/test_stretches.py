"""Which backend runs which layers: by made-up times, and from a state to a plan that can be built."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from optimizer.engine import Built, Candidate, Realised
from optimizer.errors import InputError, UnavailableError
from optimizer.model import Model
from optimizer.plan import Plan, Region
from optimizer.planner import given
from optimizer.planner.engines import build, opened, parts, simulation
from optimizer.planner.given import refuse_other_backends, refuse_what_does_not_fit
from optimizer.planner.plans import everywhere, ranged
from optimizer.planner.problem import Problem
from optimizer.planner.search import search
from optimizer.planner.state import Proposal, State
from optimizer.planner.stretches import COPY_MS, HAND_OVER_MS, MOST, Stretch, Timed, by_engine, carried, cheapest
from optimizer.progress import silent

Problems = Callable[..., Problem]
Searching = Callable[..., State]
Played = Callable[..., list[Proposal]]
Measured = Callable[..., Candidate]

LAYERS = ("first", "cut1", "second", "cut2", "third", "cut3", "last")


def timed(backend: str, *ms: float | None) -> Timed:
    name = f"{backend} {ms}"
    return Timed(Candidate(name, Plan(backend, "cpu", "fp32")), {f"{place}": one for place, one in enumerate(ms) if one is not None})


def shown(path: tuple[Stretch, ...]) -> list[tuple[str, str]]:
    return [(one.of.plan.backend, "".join(one.layers)) for one in path]


def order(count: int, *megabytes: float) -> dict[str, float]:
    return {f"{place}": megabytes[place] if place < len(megabytes) else 0.0 for place in range(count)}


def test_each_stretch_goes_where_it_is_fastest_by_more_than_the_hand_over() -> None:
    one, other = timed("a", 1.0, 1.0, 5.0, 5.0), timed("b", 3.0, 3.0, 1.0, 1.0)
    cost, path = cheapest([one, other], order(4))
    assert shown(path) == [("a", "01"), ("b", "23")]
    assert cost == pytest.approx(4.0 + HAND_OVER_MS)
    little = timed("b", 3.0, 3.0, 5.0, 5.0 - HAND_OVER_MS / 2)
    assert shown(cheapest([one, little], order(4))[1]) == [("a", "0123")]


def test_what_crosses_a_cut_has_its_price() -> None:
    one, other = timed("a", 1.0, 1.0, 5.0), timed("b", 3.0, 1.2, 1.0)
    assert shown(cheapest([one, other], order(3))[1]) == [("a", "01"), ("b", "2")]
    assert shown(cheapest([one, other], order(3, 0.0, 0.0, 0.3 / COPY_MS))[1]) == [("a", "0"), ("b", "12")]
    assert shown(cheapest([one, other], order(3, 0.0, 9.0 / COPY_MS, 9.0 / COPY_MS))[1]) == [("b", "012")]


def test_a_stretch_begins_with_a_kernel_and_two_of_one_backend_do_not_meet() -> None:
    assert shown(cheapest([timed("a", 1.0, None, 5.0), timed("b", 3.0, None, 1.0)], order(3))[1]) == [("a", "01"), ("b", "2")]
    assert shown(cheapest([timed("a", 1.0, 5.0), timed("a", 5.0, 2.0)], order(2))[1]) == [("a", "01")]


def test_the_cheapest_stretches_are_those_that_trying_all_finds() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        rows = [timed(backend, *draw.uniform(0.0, 0.2, 6)) for backend in ("a", "b", "a", "c")]
        places = order(6, *draw.uniform(0.0, 1.0, 6))
        best = math.inf
        for choice in product(range(len(rows)), repeat=6):
            cuts = [place for place in range(1, 6) if choice[place] != choice[place - 1]]
            alike = any(rows[choice[at]].candidate.plan.backend == rows[choice[at - 1]].candidate.plan.backend for at in cuts)
            if len(cuts) < MOST and not alike:
                price = sum(HAND_OVER_MS + COPY_MS * places[str(at)] for at in cuts)
                best = min(best, price + sum(rows[row].ms[str(place)] for place, row in enumerate(choice)))
        assert cheapest(rows, places)[0] == pytest.approx(best)


def test_what_a_cut_hands_over_is_all_that_is_made_before_and_read_behind_it(model: Callable[..., Model]) -> None:
    net = model("""net (float[1,250] x) => (float[1,500] y) {
      [one] a = Neg(x) [two] b = Relu(a) [three] c = Concat<axis = 1>(b, a) [four] y = Neg(c) }""")
    assert carried(net) == {"one": 0.0, "two": 0.001, "three": 0.002, "four": 0.002}


def seen(problem: Problem, **ms: float) -> Built:
    return Built(tuple(Realised(layer.name, layer.op, "fp32", "fp32", ms=ms.get(layer.name, 0.5)) for layer in problem.model.layers))


def contest(state: State, candidate: Measured, front: float = 1.0, back: float = 6.0) -> State:
    """OpenVINO is faster in the first layers, ONNX Runtime in dynamic INT8 in the last."""
    ort, vino = state.bases
    dynamic, plain = everywhere(ort, "int8_dynamic"), ort.plan("fp32", "nothing lowered")
    assert dynamic is not None
    state.candidates += [
        candidate("onnxruntime fp32", plain, distance=0.0, built=seen(ort, first=8.0, last=8.0)),
        candidate("openvino fp32", vino.plan("fp32", ""), 1.0, distance=0.0, built=seen(vino, first=front, last=9.0)),
        candidate("onnxruntime int8 dynamic", dynamic, 1.5, distance=0.001, built=seen(ort, first=back, last=1.0)),
    ]
    return state


@pytest.fixture
def state(problem: Problems, searching: Searching) -> State:
    pytest.importorskip("openvino")
    return searching(problem("onnxruntime"), problem("openvino"))


def test_a_plan_takes_each_stretch_as_it_was_fastest_and_says_so(state: State, played: Played, candidate: Measured, tmp_path: Path) -> None:
    (proposal,) = played(contest(state, candidate), by_engine(state), lambda one: candidate(one.name, one.plan, 3.0, distance=0.001))
    plan = proposal.plan
    assert proposal.name == "fp32 then onnxruntime int8 dynamic"
    assert state.named(proposal.problem, proposal.name).startswith("openvino fp32 then")
    assert [region.backend for region in plan.regions] == ["openvino", "onnxruntime"]
    assert plan.backend == "openvino"
    assert plan.backends == ("openvino", "onnxruntime")
    assert plan.regions[0].layers[0] == "first"
    lowered = {layer for layer, how in plan.precisions.items() if how == "int8_dynamic"}
    assert "last" in lowered <= set(plan.regions[1].layers)
    assert "engine by layer: openvino from first on, then onnxruntime from" in plan.reason
    assert state.owner(plan) == proposal.problem
    folder, built = build(proposal.problem, plan, tmp_path / "engine", silent)
    assert [layer.layer for layer in built.realised] == list(LAYERS)
    assert {layer.layer: layer.realised for layer in built.realised}["last"] == "int8_dynamic"
    assert built.memory["weights"] > 0
    engine, simulated = opened(state.bases[0], Candidate("", plan, folder)), simulation(proposal.problem, plan, optimized=False)
    for feed, parent in zip(proposal.problem.screening, proposal.problem.parent, strict=True):
        found = engine.run(feed)["y"]
        assert np.linalg.norm(found - parent["y"]) < 0.05 * np.linalg.norm(parent["y"])
        np.testing.assert_allclose(found, simulated.run(feed)["y"], rtol=1e-3, atol=1e-3)
    engine.close()


def test_what_promises_most_is_tried_with_fewer_cuts_too(state: State, played: Played, candidate: Measured) -> None:
    ort, vino = state.bases
    state.candidates += [
        candidate("onnxruntime fp32", ort.plan("fp32", ""), distance=0.0, built=seen(ort, first=9.0, second=1.0, last=9.0)),
        candidate("openvino fp32", vino.plan("fp32", ""), 1.0, distance=0.0, built=seen(vino, first=1.0, second=9.0, last=5.0)),
    ]
    proposals = played(state, by_engine(state), lambda one: candidate(one.name, one.plan, 1.5, distance=0.0))
    assert [len(one.plan.regions) for one in proposals] == [2, 3]
    assert list(by_engine(state)) == []  # nothing is tried twice


def test_static_int8_keeps_its_ranges_and_a_tensor_at_a_cut_gets_one(state: State, played: Played, candidate: Measured) -> None:
    contest(state, candidate)
    ort = state.bases[0]
    static = everywhere(ort, "int8")
    assert static is not None
    static = ranged(ort, static, "percentile")
    static = replace(static, ranges={tensor: replace(one, high=one.high + 1.0) for tensor, one in static.ranges.items()})
    state.candidates[-1] = candidate("onnxruntime int8", static, 1.5, distance=0.001, built=seen(ort, first=6.0, last=1.0))
    (proposal,) = played(state, by_engine(state), lambda one: candidate(one.name, one.plan, 3.0, distance=0.001))
    assert proposal.plan.ranges
    assert all(one.method == "percentile" for one in proposal.plan.ranges.values())
    assert all(static.ranges.get(tensor, one) == one for tensor, one in proposal.plan.ranges.items())
    assert all(ranged(part, own, "percentile").ranges.keys() <= proposal.plan.ranges.keys() for part, own in parts(ort, proposal.plan))


def test_nothing_is_proposed_where_it_promises_nothing_or_there_is_one_backend(
    state: State, problem: Problems, searching: Searching, played: Played, candidate: Measured
) -> None:
    assert played(contest(state, candidate, front=8.5), by_engine(state), lambda one: candidate(one.name, one.plan, 3.0)) == []
    alone = searching(problem("onnxruntime"))
    alone.candidates.append(candidate("fp32", alone.bases[0].plan("fp32", ""), distance=0.0))
    assert list(by_engine(alone)) == []


def test_what_loses_too_much_gives_no_stretch(state: State, played: Played, candidate: Measured) -> None:
    contest(state, candidate)
    state.candidates[-1] = replace(state.candidates[-1], distance=0.9)
    proposals = played(state, by_engine(state), lambda one: candidate(one.name, one.plan, 3.0))
    assert all(one.plan.lossless for one in proposals)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"regions": (Region("openvino", LAYERS[:3]),)}, "is in no region"),
        ({"regions": (Region("openvino", (*LAYERS, "nowhere")),)}, "a layer 'nowhere'"),
        ({"regions": (Region("openvino", LAYERS[3:]), Region("onnxruntime", LAYERS[:3]))}, "reads what"),
        ({"regions": (Region("openvino", LAYERS[:3]), Region("nothing", LAYERS[3:]))}, "a backend 'nothing', which there is not"),
        ({"regions": (Region("onnxruntime", LAYERS),)}, "its first region for onnxruntime"),
        ({"recovery": ("gptq",)}, "regions and recovery by gptq"),
        ({"precisions": {"last": "int8"}}, "no range for the tensor"),
    ],
)
def test_regions_that_do_not_fit_are_refused_in_words(change: dict[str, object], told: str, problem: Problems) -> None:
    pytest.importorskip("openvino")
    net = problem("openvino")
    fits = replace(net.plan("fp32", ""), regions=(Region("openvino", LAYERS[:3]), Region("onnxruntime", LAYERS[3:])))

    def refuse(plan: Plan) -> None:
        refuse_other_backends(plan, ("onnxruntime", "openvino"), net.target)
        refuse_what_does_not_fit(plan, net.model, "openvino", net.capability, net.target, {})

    refuse(fits)
    with pytest.raises(InputError, match=told) as refused:
        refuse(replace(fits, **change))  # type: ignore[arg-type]
    assert refused.value.remedy


def test_a_backend_of_a_region_that_was_left_out_or_is_not_here_is_told(problem: Problems, monkeypatch: pytest.MonkeyPatch) -> None:
    net = problem("onnxruntime")
    plan = replace(net.plan("fp32", ""), regions=(Region("onnxruntime", LAYERS[:3]), Region("openvino", LAYERS[3:])))
    monkeypatch.setattr(given, "missing", lambda _name, _target: None)
    with pytest.raises(InputError, match="for the backend openvino, which --backend leaves out"):
        refuse_other_backends(plan, ("onnxruntime",), net.target)
    monkeypatch.setattr(given, "missing", lambda name, _target: "it is not installed" if name == "openvino" else None)
    with pytest.raises(UnavailableError, match="for the backend openvino: it is not installed"):
        refuse_other_backends(plan, ("onnxruntime",), net.target)


def test_a_precision_that_the_backend_of_its_region_lacks_ends_the_build(problem: Problems, searching: Searching) -> None:
    pytest.importorskip("openvino")
    net = problem("onnxruntime")
    plan = replace(
        net.plan("fp32", ""),
        precisions={"last": "int8_dynamic"},
        regions=(Region("onnxruntime", LAYERS[:3]), Region("openvino", LAYERS[3:])),
    )
    with pytest.raises(UnavailableError, match="last can't run in INT8_DYNAMIC"):
        list(search(searching(replace(net, given=plan))))
