"""A build that was killed goes on, one that is repeated measures nothing twice, and what no longer holds is told and measured anew."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer import delivery, preparation
from optimizer.planner import finals, state
from optimizer.planner.moves import MOVES, Move
from optimizer.planner.state import Proposal, State

Run = Callable[..., Any]

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
net (float[1,8] x) => (float[1,4] y) <float[8,8] a, float[8,4] b> { [first] h = MatMul(x, a) r = Relu(h) [last] y = MatMul(r, b) }"""

HURRIED = """
from optimizer.planner import finals, state
finals.RACE_SECONDS = finals.HEAT_SECONDS = state.QUICK_SECONDS = state.PAIR_SECONDS = 0.05
"""

KILLED = """
import os, signal
from optimizer.planner.journal import Journal
once = Journal.once
def until(self, kind, *words):
    value = once(self, kind, *words)
    if self._file.name == "timings.jsonl" and len(self._records) == {records}:
        os.kill(os.getpid(), signal.SIGKILL)
    return value
Journal.once = until
"""

RECALLED = "measurements are those of an earlier build of the same model on this machine"
CALIBRATED = "The calibration of an earlier build is used"


def labelled(folder: Path, name: str, count: int, seed: int) -> None:
    weights = np.load(folder / "weights.npz")
    x = np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)
    np.savez(folder / f"{name}.npz", x=x, y=(np.maximum(x @ weights["a"], 0) @ weights["b"]).argmax(1))


@pytest.fixture
def drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small classifier and its data."""
    draw = np.random.default_rng(1)
    weights = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in {"a": (8, 8), "b": (8, 4)}.items()}
    np.savez(tmp_path / "weights.npz", **weights)
    graph = ir.from_onnx_text(TEXT, initializers=[ir.tensor(array, name=name) for name, array in weights.items()])
    onnx.save(ir.to_proto(graph), tmp_path / "model.onnx")
    labelled(tmp_path, "calibration", 24, seed=2)
    labelled(tmp_path, "evaluation", 300, seed=3)
    for module, name in ((finals, "RACE_SECONDS"), (finals, "HEAT_SECONDS"), (state, "QUICK_SECONDS"), (state, "PAIR_SECONDS")):
        monkeypatch.setattr(module, name, 0.05)
    return tmp_path


def command(drop: Path) -> list[str]:
    data = [word for name in ("calibration", "evaluation") for word in (f"--{name}", str(drop / f"{name}.npz"))]
    alone = ["--threads", "1", "--backend", "onnxruntime"]
    return ["build", str(drop / "model.onnx"), "-o", str(drop / "out"), *data, *alone]


def report(drop: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((drop / "out" / "report.json").read_text())
    return found


def notes(drop: Path) -> str:
    return "\n".join(report(drop)["notes"])


def kill_after(drop: Path, records: int) -> Path:
    """A build in a process of its own that dies by SIGKILL with so many records made; the journal that it leaves."""
    script = HURRIED + KILLED.format(records=records) + "from optimizer.cli.main import main\nmain()"
    done = subprocess.run([sys.executable, "-c", script, *command(drop)], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return drop / ".out.partial" / "kept" / "timings.jsonl"


def test_a_killed_build_goes_on_with_resume_and_leaves_nothing_half_written(drop: Path, optimize: Run) -> None:
    left = kill_after(drop, records=2)
    assert not (drop / "out").exists()
    assert len(left.read_bytes().splitlines()) == 3
    left.write_bytes(left.read_bytes()[:-7])  # the last line was being written
    assert optimize(*command(drop), "--resume").code == 0
    assert f"\n1 {RECALLED}" in "\n" + notes(drop)
    assert CALIBRATED in notes(drop)
    assert not (drop / ".out.partial").exists()
    assert optimize("verify", drop / "out").code == 0


def test_without_resume_what_a_killed_build_left_is_cleared(drop: Path, optimize: Run) -> None:
    kill_after(drop, records=2)
    assert optimize(*command(drop)).code == 0
    assert RECALLED not in notes(drop)
    assert CALIBRATED not in notes(drop)
    assert not (drop / ".out.partial").exists()


def test_resume_where_nothing_was_killed_builds_as_ever(drop: Path, optimize: Run) -> None:
    assert optimize(*command(drop), "--resume").code == 0
    assert RECALLED not in notes(drop)
    assert (drop / "out" / "timings.jsonl").exists()


@pytest.mark.slow
def test_a_build_that_is_repeated_recalls_what_still_holds_and_tells_what_does_not(drop: Path, optimize: Run) -> None:
    assert optimize(*command(drop)).code == 0
    first = report(drop)
    assert not [note for note in first["notes"] if RECALLED in note or CALIBRATED in note]

    assert optimize(*command(drop)).code == 0
    second = report(drop)
    assert RECALLED in notes(drop)
    assert CALIBRATED in notes(drop)
    assert [one["latency_ms"] for one in second["candidates"]] == [one["latency_ms"] for one in first["candidates"]]
    assert optimize("verify", drop / "out").code == 0

    # Another evaluation set: what was timed still holds, the verdict does not.
    labelled(drop, "evaluation", 200, seed=4)
    assert optimize(*command(drop)).code == 0
    third = report(drop)
    assert RECALLED in notes(drop)
    assert third["provenance"]["evaluation"]["samples"] == 200
    assert [one["latency_ms"] for one in third["candidates"]] == [one["latency_ms"] for one in first["candidates"]]

    # Another ONNX Runtime: nothing that was timed holds.
    timings = drop / "out" / "timings.jsonl"
    head, *lines = timings.read_bytes().splitlines(keepends=True)
    known = json.loads(head)
    known["key"]["version of onnxruntime"] = "0.1"
    timings.write_bytes(json.dumps(known).encode() + b"\n" + b"".join(lines))
    assert optimize(*command(drop)).code == 0
    assert "timings.jsonl of an earlier build is not used: it differs in version of onnxruntime." in notes(drop)
    assert RECALLED not in notes(drop)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often something was judged, climbed, weighed or asked of the parent since it was cleared."""
    seen = Counter[str]()
    for module, name in (
        (finals, "_judged"),
        (delivery, "climb_to_engine"),
        (preparation, "climb_to_fused"),
        (preparation, "question_from_words"),
        (delivery, "weighed"),
    ):
        monkeypatch.setattr(module, name, counting(getattr(module, name), seen))
    return seen


def counting(own: Callable[..., Any], seen: Counter[str]) -> Callable[..., Any]:
    @wraps(own)
    def counted(*words: Any) -> Any:
        seen[own.__name__] += 1
        return own(*words)

    return counted


LOSSY = ("--precision", "int8", "--max-drop", "20%")
"""What only held-out data can judge, and a budget that it keeps."""

UNTIMED = ("verdict", "headline", "gate", "ladder", "outlook", "front", "exit_code")


def test_a_repeated_build_asks_nothing_again_and_tells_the_same(drop: Path, optimize: Run, looks: Counter[str]) -> None:
    assert optimize(*command(drop), *LOSSY).code == 0
    first = report(drop)
    assert set(looks) == {"_judged", "climb_to_engine", "climb_to_fused", "question_from_words", "weighed"}
    looks.clear()
    assert optimize(*command(drop), *LOSSY).code == 0
    second = report(drop)
    assert not looks
    assert {name: second[name] for name in UNTIMED} == {name: first[name] for name in UNTIMED}
    for told in ("name", "outcome", "reason", "latency_ms", "drop"):
        assert [one.get(told) for one in second["candidates"]] == [one.get(told) for one in first["candidates"]]
    # A verdict that is recalled is no further look at the data.
    assert second["provenance"]["evaluation"]["judged"] == first["provenance"]["evaluation"]["judged"] == 1
    for told in ("of the gate's verdicts are those", "ladder of the engine is that", "What the parent answers is known"):
        assert told in notes(drop)
        assert told not in "".join(first["notes"])
    assert optimize("verify", drop / "out").code == 0


def test_other_evidence_another_question_and_a_line_that_was_changed_are_judged_anew(
    drop: Path, optimize: Run, looks: Counter[str]
) -> None:
    def judged(*words: str) -> bool:
        looks.clear()
        assert optimize(*command(drop), *LOSSY, *words).code == 0
        return looks["_judged"] > 0 and looks["climb_to_engine"] > 0

    assert judged()
    assert judged("--max-drop", "19%")
    assert judged("--metric", "agreement")
    assert report(drop)["provenance"]["evaluation"]["judged"] == 3
    labelled(drop, "evaluation", 310, seed=4)
    assert judged()
    timings = drop / "out" / "timings.jsonl"
    timings.write_bytes(timings.read_bytes().replace(b'"verdict":"pass"', b'"verdict":"fail"'))
    looks.clear()
    assert optimize(*command(drop), *LOSSY).code == 0
    assert looks["_judged"] > 0
    assert looks["climb_to_engine"] == 0


def test_what_the_users_own_code_has_a_part_in_is_judged_anew(drop: Path, optimize: Run, looks: Counter[str]) -> None:
    (drop / "score.py").write_text("def right(outputs, label):\n    return outputs['y'].argmax(-1) == label\n")
    for _ in range(2):
        looks.clear()
        assert optimize(*command(drop), "--metric", f"{drop / 'score.py'}:right").code in (0, 4)
        assert looks["_judged"] > 0
        assert looks["question_from_words"] > 0


def test_a_tiny_time_budget_ships_an_honest_engine_and_tells_what_was_left_out(
    drop: Path, optimize: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(search: State) -> Iterator[Proposal]:
        for number in count():
            yield Proposal(search.bases[0], f"fp32 {number}", search.bases[0].plan("fp32", str(number)))

    monkeypatch.setattr("optimizer.planner.search.MOVES", (*MOVES, Move("the long way", endless)))  # type: ignore[arg-type]
    assert optimize(*command(drop), "--time-budget", "0.001s").code == 0
    found = report(drop)
    assert found["verdict"] == "pass"
    assert [one["outcome"] for one in found["candidates"]].count("shipped") == 1
    assert "The time was up before all was tried (the long way): a larger --time-budget may find more." in found["notes"]
    assert optimize("verify", drop / "out").code == 0


@pytest.mark.parametrize("words", ["90", "ten minutes", "0s", "-5m", "nans", "infs", "m", "", "1d", "1e999h"])
def test_a_time_budget_that_is_no_time_is_refused_with_the_way_to_say_it(words: str, drop: Path, optimize: Run) -> None:
    ended = optimize(*command(drop), "--time-budget", words)
    assert ended.code == 2
    assert "90s, 10m or 2h" in ended.err
    assert "Traceback" not in ended.err
    assert not (drop / "out").exists()


@pytest.mark.parametrize(("words", "seconds"), [("90s", 90.0), ("10m", 600.0), ("2h", 7200.0), (" 1.5m ", 90.0)])
def test_a_time_budget_is_a_number_with_its_unit(
    words: str, seconds: float, drop: Path, optimize: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def build(request: Any, _track: Any) -> Any:
        asked.append(request)
        raise KeyboardInterrupt

    monkeypatch.setattr("optimizer.pipeline.build", build)
    optimize(*command(drop), "--time-budget", words)
    assert [request.time_budget for request in asked] == [seconds]
