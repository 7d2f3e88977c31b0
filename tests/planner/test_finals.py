"""Engines in a race hold no more weights at once than there is room for."""

from __future__ import annotations

from typing import Any

import pytest

from kernels.target import this_cpu
from optimizer.engine import Built, Candidate
from optimizer.plan import Plan
from optimizer.planner import finals

GIGABYTE = 1 << 30


class Engine:
    def __init__(self, name: str, alive: list[str]) -> None:
        self.name, self.alive = name, alive
        alive.append(name)

    def run(self, _feeds: Any) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.alive.remove(self.name)


class Problem:
    target = this_cpu()

    class capability:  # noqa: N801
        runs_here = True


@pytest.mark.parametrize(("weights", "most"), [(GIGABYTE // 4, 4), (GIGABYTE // 2, 2), (3 * GIGABYTE, 1)])
def test_engines_that_do_not_fit_together_are_opened_in_turn(
    weights: int, most: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[str] = []
    seen: list[int] = []

    def opened(_problem: Any, candidate: Candidate) -> Engine:
        engine = Engine(candidate.name, alive)
        seen.append(len(alive))
        return engine

    monkeypatch.setattr(finals, "opened", opened)
    monkeypatch.setattr(finals, "RACE_SECONDS", 0.01)
    built = Built((), memory={"weights": weights})
    candidates = [Candidate(name, Plan("any", "cpu", "fp32"), folder=tmp_path, built=built) for name in ("a", "b", "c", "d")]
    found = finals.timed(Problem(), candidates, {})  # type: ignore[arg-type]
    assert [one.timing is not None for one in found] == [True] * 4
    assert max(seen) == most
    assert alive == []
