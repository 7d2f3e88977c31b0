"""Streams, threads and batch are chosen by samples a second, and only where they change no answer and fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from kernels.load import Load, Quantile
from kernels.target import this_cpu
from kernels.targets import target_from_name
from kernels.timing import Timing
from optimizer.backends import backend
from optimizer.engine import Built, Candidate
from optimizer.latency import MaxLatency
from optimizer.model import Model, Source
from optimizer.plan import Plan, Shape
from optimizer.planner import serving
from optimizer.planner.objective import better, worth
from optimizer.planner.problem import Problem
from optimizer.planner.serving import streamed, under_load
from optimizer.precision import typed

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'
FREE = HEAD + "net (float[n,8] x) => (float[n,8] y) { s = Sigmoid(x)  y = Add(s, x) }"
FIXED = HEAD + "net (float[1,8] x) => (float[1,8] y) { s = Sigmoid(x)  y = Add(s, x) }"
MIXING = HEAD + "net (float[n,8] x) => (float[n,8] y) { s = Softmax<axis = 0>(x)  y = Add(s, x) }"
BAKED = HEAD + "net (float[n,8] x) => (float[1,8] y) <int64[2] sizes = {1, 8}> { s = Reshape(x, sizes)  y = Sigmoid(s) }"
FEED = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(1, 8)}


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of a few microseconds need no seconds."""
    for seconds in ("TUNING_SECONDS", "LOAD_SECONDS", "_BURST"):
        monkeypatch.setattr(serving, seconds, 0.001)


@pytest.fixture
def served(tmp_path: Path) -> Callable[..., tuple[Problem, Candidate]]:
    """A function that makes the problem of a graph, and its engine as a candidate."""

    def make(text: str, threads: tuple[int, ...] = (2, 1), **words: Any) -> tuple[Problem, Candidate]:
        builder, target = backend("onnxruntime"), this_cpu()
        knobs = {"threads": threads[0], "spinning": False}
        model = Model(ir.from_onnx_text(text), Source("onnx", "net.onnx", "0" * 64))
        problem = Problem(
            model, "onnxruntime", target, builder.capability(target), knobs, wanted="auto", choices={"threads": threads}, **words
        )
        plan = problem.plan("fp32", "")
        builder.build(typed(model, plan, problem.capability), target, knobs, tmp_path)
        return problem, Candidate("fp32", plan, folder=tmp_path)

    return make


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, float]], list[list[str]]]:
    """A function that puts a race in place in which each contender has the speed given for it, certain to 10 %, else 1."""

    def put(speeds: Mapping[str, float]) -> list[list[str]]:
        races: list[list[str]] = []

        def race(runs: Mapping[str, Callable[[], object]], baseline: str, **_: Any) -> dict[str, Timing]:
            races.append(list(runs))
            assert baseline == next(iter(runs))
            for run in runs.values():
                run()
            found = {name: speeds.get(name, 1.0) / speeds.get(baseline, 1.0) for name in runs}
            return {name: Timing(1, 1, 1, baseline, one, one - 0.1, one + 0.1, 9, "", "") for name, one in found.items()}

        monkeypatch.setattr(serving, "race", race)
        return races

    return put


@pytest.mark.usefixtures("quickly")
def test_a_real_engine_is_tuned_and_told_with_its_latency(served: Callable[..., tuple[Problem, Candidate]]) -> None:
    problem, candidate = served(FREE)
    knobs, load, _ = streamed(problem, candidate, FEED)
    assert load is not None
    assert (knobs["streams"], knobs["threads"]) in {(1, 2), (2, 1), (1, 1)}
    assert (load.concurrency, load.samples) == (knobs["streams"], knobs["batch"])
    assert load.timed_on == problem.target.device
    assert load.p99.high is not None
    assert knobs["spinning"] is False


@pytest.mark.usefixtures("quickly")
def test_the_batch_is_chosen_first_and_then_the_streams(
    served: Callable[..., tuple[Problem, Candidate]], decided: Callable[..., list[list[str]]]
) -> None:
    races = decided({"1 stream of 4 threads, batch 8": 3.0, "4 streams of 1 thread, batch 8": 6.0})
    knobs, load, told = streamed(*served(FREE, threads=(4, 2, 1)), FEED)
    assert knobs == {"threads": 1, "spinning": False, "streams": 4, "batch": 8}
    assert load is not None
    assert (load.concurrency, load.samples) == (4, 8)
    assert races[0] == ["1 stream of 4 threads", *(f"1 stream of 4 threads, batch {batch}" for batch in (2, 4, 8, 16, 32))]
    shares = ("1 stream of 4 threads", "2 streams of 2 threads", "4 streams of 1 thread", "1 stream of 1 thread")
    assert races[1] == [f"{share}, batch 8" for share in shares]
    assert "4 streams of 1 thread, batch 8: 2.00x the samples a second of 1 stream of 4 threads, batch 8" in told


@pytest.mark.usefixtures("quickly")
def test_what_is_not_faster_for_sure_changes_nothing(
    served: Callable[..., tuple[Problem, Candidate]], decided: Callable[..., list[list[str]]]
) -> None:
    decided({"1 stream of 2 threads, batch 4": 1.05, "2 streams of 1 thread": 1.09})
    knobs, _, told = streamed(*served(FREE), FEED)
    assert (knobs["streams"], knobs["threads"], knobs["batch"]) == (1, 2, 1)
    assert "none of 5 others serves more for sure" in told


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(
    ("text", "why"),
    [
        (FIXED, "no free first dimension"),
        (MIXING, "do not give what each gives alone"),
        (BAKED, "can't run on this input"),
    ],
)
def test_samples_share_a_call_only_where_that_changes_no_answer(
    text: str, why: str, served: Callable[..., tuple[Problem, Candidate]], decided: Callable[..., list[list[str]]]
) -> None:
    races = decided({})
    knobs, load, told = streamed(*served(text), FEED)
    assert knobs["batch"] == 1
    assert why in told
    assert not any("batch" in name for names in races for name in names)
    assert load is not None
    assert load.samples == 1


@pytest.mark.usefixtures("quickly")
def test_dynamic_int8_whose_range_spans_the_batch_is_not_batched(
    served: Callable[..., tuple[Problem, Candidate]], decided: Callable[..., list[list[str]]]
) -> None:
    decided({})
    problem, candidate = served(FREE)
    lowered = replace(candidate.plan, precisions={"product": "int8_dynamic"})
    knobs, _, told = streamed(problem, replace(candidate, plan=lowered), FEED)
    assert knobs["batch"] == 1
    assert "over the whole batch" in told


@pytest.mark.usefixtures("quickly")
def test_a_batch_starts_where_the_feed_does_and_ends_with_the_shapes(
    served: Callable[..., tuple[Problem, Candidate]], decided: Callable[..., list[list[str]]]
) -> None:
    races = decided({})
    problem, candidate = served(FREE, shapes={"x": Shape((1, 8), (3, 8), (12, 8))})
    knobs, load, _ = streamed(problem, candidate, {"x": np.repeat(FEED["x"], 3, axis=0)})
    assert races[0] == [f"1 stream of 2 threads, batch {batch}" for batch in (3, 4, 8)]
    assert knobs["batch"] == 3
    assert load is not None
    assert load.samples == 3


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(("room", "heavy", "streams"), [(4 * 8, 1 << 20, [1, 2]), (1 << 20, 1, [1])])
def test_no_more_copies_are_opened_than_there_is_room_for(
    room: int,
    heavy: int,
    streams: list[int],
    served: Callable[..., tuple[Problem, Candidate]],
    decided: Callable[..., list[list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decided({})
    monkeypatch.setattr(serving, "weights_bytes", lambda _: 8)
    monkeypatch.setattr(serving, "ROOM", room)
    monkeypatch.setattr(serving, "HEAVY", heavy)
    opened: list[int] = []
    original = serving.open_engine

    def noted(name: str, folder: Path, knobs: Mapping[str, Any]) -> Any:
        opened.append(knobs["streams"])
        return original(name, folder, knobs)

    monkeypatch.setattr(serving, "open_engine", noted)
    *_, told = streamed(*served(FIXED, threads=(4, 2, 1)), FEED)
    assert opened == streams
    assert "leave no room for more streams" in told


@pytest.mark.usefixtures("quickly")
def test_the_load_of_a_demand_is_put_to_the_engine_as_it_ships(served: Callable[..., tuple[Problem, Candidate]]) -> None:
    problem, candidate = served(FREE)
    load = under_load(problem, candidate, FEED, MaxLatency(5.0, "p90", concurrency=3))
    assert load is not None
    assert (load.concurrency, load.rate, load.samples) == (3, None, 1)
    assert load.p90.high is not None
    ships = replace(candidate, plan=replace(candidate.plan, knobs={"threads": 1, "streams": 2}))
    load = under_load(problem, ships, FEED, MaxLatency(5.0, "p50", rate=2000.0))
    assert load is not None
    assert (load.concurrency, load.rate) == (2, 2000.0)


def test_nothing_is_loaded_where_the_target_is_not_here(served: Callable[..., tuple[Problem, Candidate]]) -> None:
    problem, candidate = served(FREE)
    away = replace(problem, target=target_from_name("l4"), capability=replace(problem.capability, runs_here=False))
    assert under_load(away, candidate, FEED, MaxLatency(5.0, "p90")) is None
    knobs, load, told = streamed(away, candidate, FEED)
    assert (knobs["streams"], load, told) == (1, None, "")


def test_each_objective_sorts_by_what_it_is_about() -> None:
    def one(name: str, ratio: float, throughput: float, memory: Mapping[str, int]) -> Candidate:
        timing = Timing(1, 1, 1, "a", ratio, ratio, ratio, 9, "", "")
        none = Quantile(1.0, 1.0, 1.0)
        return Candidate(
            name,
            Plan("onnxruntime", "cpu", "fp32"),
            timing=timing,
            built=Built((), memory),
            loads=(Load(9, 1, None, 1, throughput, none, none, none, ""),),
        )

    fast = one("fast", 3.0, 10.0, {"weights": 100, "activations": 100})
    broad = one("broad", 2.0, 30.0, {"weights": 100, "activations": 50})
    small = one("small", 1.0, 20.0, {"weights": 20, "activations": 50})
    unknown = Candidate("unknown", Plan("onnxruntime", "cpu", "fp32"))
    tried = [unknown, small, broad, fast]
    assert max(tried, key=worth("latency")).name == max(tried, key=worth("throughput")).name == "fast"
    assert max(tried, key=worth("size")).name == "small"
    assert better("size", small, fast)
    assert not better("size", unknown, fast)
    assert better("latency", fast, broad)
    for objective in ("latency", "throughput", "size"):
        assert min(tried, key=worth(objective)).name == "unknown"
