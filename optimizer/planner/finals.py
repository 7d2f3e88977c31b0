"""The finals: candidates timed against each other, the front gated on held-out data from the safest to the fastest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial

import onnx_ir as ir

from kernels.load import Load
from kernels.timing import Timing, race
from optimizer.backends import open_engine
from optimizer.data import Samples
from optimizer.engine import Arrays, Candidate, Engine, Parity
from optimizer.errors import UnavailableError
from optimizer.parity.gate import Gated, NoQuestion, Question, gate, judge, judge_lossless, undecided, with_minimum
from optimizer.parity.lossless import FEEDS
from optimizer.plan import Knobs
from optimizer.planner.engines import opened, running
from optimizer.planner.objective import better, worth
from optimizer.planner.pareto import finalists, leaner, likeliest, safety, undominated
from optimizer.planner.problem import Problem
from optimizer.planner.serving import raced, streamed
from optimizer.planner.state import State, speed
from optimizer.progress import Track, silent
from optimizer.reference import Reference
from optimizer.sequence import error_over_time, independent_after, states_of

RACE_SECONDS = 20.0

ROOM = 1 << 30
"""Bytes of weights that engines in a race may hold together; beyond that they are opened in turn, each where it is visited."""


HEAT_SECONDS = 5.0
"""For the race among unquantized engines of several backends, of which the fastest is the baseline of all."""

CONTENDERS = 8
"""Candidates in the last race, beside the unquantized engine of each backend."""


def timed(state: State, track: Track = silent) -> list[Candidate]:
    """All candidates with their timings against the fastest engine of the model as it came, which is the first of them.

    Those that may win are raced once more, in interleaved pairs; the others keep what a first look showed.  Where the target is not
    here nothing is timed, and the candidates come back as they were.
    """
    names = [one.name for one in _contenders(state)]
    if not names:
        return list(state.candidates)
    contenders = [one for one in state.candidates if one.name in names]
    state.raced = frozenset(names)
    found = state.journal.once(
        "race", [state.objective, *([one.name, one.plan] for one in contenders)], _Race, partial(_race, state, contenders, track)
    )
    rebased = [_rebased(one, state.candidates, found.baseline) for one in state.candidates]
    told = [_with(one, found) for one in rebased]
    return sorted(told, key=lambda one: one.name != found.baseline)


def _contenders(state: State) -> list[Candidate]:
    """The unquantized engine of each backend, and the front of what may ship."""
    able = [one for one in state.candidates if one.outcome != "not built" and state.base(one.plan).capability.runs_here]
    if not able or not state.timeable:
        return able
    plain = _plain(state)
    good = worth(state.objective) if state.objective == "size" else speed
    best = undominated([one for one in able if state.may_ship(one) and one not in plain], good)
    return [*plain, *likeliest(sorted(best, key=safety), CONTENDERS, state.bases[0].allowed, good)]


def _plain(state: State) -> list[Candidate]:
    """The unquantized engine of each backend that could build it."""
    return [one for one in map(state.plain, state.bases) if one.outcome != "not built"]


@dataclass(frozen=True)
class _Race:
    baseline: str
    timings: dict[str, Timing]
    served: dict[str, _Served] = field(default_factory=dict)


@dataclass(frozen=True)
class _Served:
    """How a candidate serves the most samples a second."""

    knobs: dict[str, int | float | str | bool]
    load: Load | None
    told: str


def _with(one: Candidate, race: _Race) -> Candidate:
    """A candidate with what the race found of it, if it was in it."""
    if one.name not in race.timings:
        return one
    one = replace(one, timing=race.timings[one.name])
    if (served := race.served.get(one.name)) is None:
        return one
    plan = replace(one.plan, knobs=served.knobs, reason="; ".join(filter(None, (one.plan.reason, served.told))))
    return replace(one, plan=plan, loads=(served.load,) if served.load is not None else ())


def _race(state: State, contenders: Sequence[Candidate], track: Track) -> _Race:
    device = state.bases[0].target.device
    candidates = [state.ready(one) for one in contenders]
    if state.objective == "throughput":
        return _race_of_streams(state, candidates, track)
    with _Garage(state, candidates) as garage:
        runs = {one.name: partial(garage.run, one.name) for one in candidates}
        baseline = _baseline([one.name for one in _plain(state)], runs, garage.ready, device, track)
        return _Race(baseline, race(runs, baseline, seconds=RACE_SECONDS, timed_on=device, ready=garage.ready, track=track))


def _race_of_streams(state: State, candidates: Sequence[Candidate], track: Track) -> _Race:
    """Each with the streams, threads and batch that serve most, all streams busy: ratios are those of samples a second."""
    served, engines = dict[str, _Served](), dict[str, tuple[Engine, Knobs]]()
    with ExitStack() as stack:
        for one in candidates:
            knobs, load, told = streamed(state.owner(one.plan), one, state.feed, track)
            served[one.name] = _Served(dict(knobs), load, told)
            assert one.folder is not None
            engines[one.name] = (stack.enter_context(closing(open_engine(one.plan.backend, one.folder, knobs))), knobs)
        rates = {one.name: served[one.name].load for one in _plain(state)}
        baseline = max(rates, key=lambda name: 0.0 if (load := rates[name]) is None else load.throughput)
        device = state.bases[0].target.device
        return _Race(baseline, raced(engines, baseline, state.feed, seconds=RACE_SECONDS, timed_on=device, track=track), served)


def _baseline(
    names: Sequence[str], runs: Mapping[str, Callable[[], object]], ready: Callable[[str], None], device: str, track: Track
) -> str:
    """The fastest of the backends' unquantized engines; the first of them where that is not certain."""
    if len(names) == 1:
        return names[0]
    heat = {name: runs[name] for name in names}
    timings = race(heat, names[0], seconds=HEAT_SECONDS, timed_on=device, ready=ready, track=track)
    best = max(names, key=lambda name: timings[name].ratio)
    return best if timings[best].low > 1.0 else names[0]


def _rebased(candidate: Candidate, candidates: Sequence[Candidate], baseline: str) -> Candidate:
    """A first look's ratio is to the first candidate's time; told is the one to the baseline's."""
    against = next((one.timing for one in candidates if one.name == baseline), None)
    timing = candidate.timing
    if timing is None or against is None:
        return candidate
    low, ratio, high = timing.low / against.ratio, timing.ratio / against.ratio, timing.high / against.ratio
    return replace(candidate, timing=replace(timing, versus=baseline, ratio=ratio, low=low, high=high))


class _Garage:
    """The engines of a race, as many of them open at once as there is room for; leaving closes all."""

    def __init__(self, state: State, candidates: Sequence[Candidate]) -> None:
        self._state = state
        self._candidates = {one.name: one for one in candidates}
        self._open: dict[str, Engine] = {}

    def __enter__(self) -> _Garage:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def ready(self, name: str) -> None:
        """The engine is open and has run once; others that it leaves no room for are closed, the one opened first before."""
        if name in self._open:
            return
        self._make_room(self._weights(name))
        self._open[name] = opened(self._state.owner(self._candidates[name].plan), self._candidates[name])
        self.run(name)

    def run(self, name: str) -> Arrays:
        return self._open[name].run(self._state.feed)

    def _make_room(self, needed: int) -> None:
        while self._open and needed + sum(map(self._weights, self._open)) > ROOM:
            self._open.pop(next(iter(self._open))).close()

    def _weights(self, name: str) -> int:
        built = self._candidates[name].built
        return built.memory.get("weights", 0) if built is not None else 0


@dataclass(frozen=True)
class Evidence:
    """What the gate judges by: held-out samples and the question that the parent answers on them (None without any).

    It is asked once, and only where there is something to judge: `ask` has to remember what it gave.
    `feeds` are a few samples, of any origin, for engines with no lossy step, which are judged numerically.  `key` says in clear what a
    verdict depends on beside the plan that it is of, and what the journal's own key says.
    """

    parent: ir.Model
    feeds: Sequence[Arrays]
    ask: Callable[[], Question | NoQuestion | None]
    samples: Samples | None
    key: Mapping[str, str] = field(default_factory=dict)

    @property
    def question(self) -> Question | NoQuestion | None:
        return self.ask()


def gated(state: State, candidates: Sequence[Candidate], evidence: Evidence, track: Track = silent) -> tuple[list[Candidate], Candidate]:
    """All candidates with what became of them, and the one that ships or, where none passed, that the verdict is about.

    The finalists are asked from the safest to the fastest (see `parity.gate.gate`).  After that, when nothing depends on it any
    more, the most tempting plan that stayed behind is measured too, so that the report can tell what it would have lost.

    Raises:
        UnavailableError: no candidate has the precision that was asked for by name.
    """
    baseline, problem = candidates[0].name, state.bases[0]
    wanted = [one for one in candidates if one.outcome != "not built" and state.may_ship(one)]
    if not wanted:
        raise _nothing_to_ship(problem, candidates)
    if any(one.timing for one in candidates):
        order = finalists(
            [one for one in wanted if one.name in state.raced],
            baseline,
            problem.allowed,
            worth(state.objective),
            partial(better, state.objective),
        )
    else:
        order = leaner(wanted, baseline, problem.allowed)
    judged = gate([(one.name, partial(_verdict, _judged, state, one, evidence, track)) for one in order])
    if judged.shipped is None and order[0].plan.lossless:
        # What is judged by rounding alone is no further look at the held-out data.
        others = [one for one in sorted(_plain(state), key=speed, reverse=True) if one in wanted and one.plan.lossless]
        order = [*order, *(one for one in others if one not in order)]
        judged = _or_else(judged, [(one.name, partial(_verdict, _judged_exactly, state, one, evidence, track)) for one in others])
    parities = {name: parity for name, parity in judged.tries if parity is not None}
    shipped = judged.shipped or next(name for name, parity in reversed(judged.tries) if parity is not None)
    if (tempting := _tempting(candidates, parities, shipped)) is not None:
        parities[tempting.name] = _verdict(_judged, state, tempting, evidence, track)
    asked = {one.name for one in order}
    told = [_told(one, parities.get(one.name), asked, order, baseline) for one in candidates]
    told = [state.ready(one) if one.name == shipped else one for one in told]
    told = [replace(one, outcome="shipped") if one.name == judged.shipped else one for one in told]
    return told, next(one for one in told if one.name == shipped)


def _nothing_to_ship(problem: Problem, candidates: Sequence[Candidate]) -> UnavailableError:
    """The refusal where no candidate has the precision that was asked for by name."""
    why = next((one.reason for one in candidates if one.outcome == "not built"), "no layer of this model can run in it")
    device = problem.target.device or problem.target.name
    return UnavailableError(
        f"{problem.wanted.upper()} can't be had for this model on {device}: {why.rstrip('.')}.",
        "optimize inspect tells why of each layer; --precision auto takes what can be had.",
    )


def _tempting(candidates: Sequence[Candidate], parities: Mapping[str, Parity], shipped: str) -> Candidate | None:
    """Of the candidates that were not asked and are faster than the baseline for sure, the one farthest from the parent.

    None where what ships is as far.
    """
    near = next((one.distance or 0.0 for one in candidates if one.name == shipped), 0.0)
    left = [one for one in candidates if one.name not in parities and one.timing is not None and one.timing.low > 1.0]
    far = [one for one in left if (one.distance or 0.0) > near]
    return max(far, key=lambda one: one.distance or 0.0, default=None)


def _or_else(judged: Gated, others: Sequence[tuple[str, Callable[[], Parity]]]) -> Gated:
    """The first of the others that passes, where none did."""
    tries = list(judged.tries)
    asked = {name for name, _ in tries}
    for name, verdict in others:
        if name in asked:
            continue
        tries.append((name, parity := verdict()))
        if parity.verdict == "pass":
            return Gated(tuple(tries), name)
    return Gated(tuple(tries), None)


Judged = Callable[[State, Candidate, Evidence, Track], Parity]


def _verdict(judged: Judged, state: State, candidate: Candidate, evidence: Evidence, track: Track) -> Parity:
    """The verdict on a candidate, or that of an earlier build on the same plan by the same evidence."""
    about = [judged.__name__, candidate.plan, evidence.key]
    return state.journal.once("verdict", about, Parity, partial(judged, state, candidate, evidence, track))


def _judged(state: State, candidate: Candidate, evidence: Evidence, track: Track) -> Parity:
    """The verdict on a candidate: by rounding alone where no step of it is lossy, else on the held-out data.

    An engine whose kernels are farther off than rounding, though nothing was lowered, is as lossy as any: the data decide.
    """
    candidate, problem = state.ready(candidate), state.owner(candidate.plan)
    track(f"gate: {candidate.name}", 0, 0)
    exact = _rounding(problem, candidate, evidence) if candidate.plan.lossless else None
    if exact is not None and (exact.verdict == "pass" or not isinstance(evidence.question, Question)):
        return _with_minimum(exact, problem, candidate, evidence, track)
    with running(problem, candidate) as engine:
        if evidence.question is None or evidence.samples is None:
            why = "there is no evaluation data, and what a lower precision loses can't be told without held-out samples"
            return undecided("none", _gated_on(problem), why)
        block = _block(evidence.parent, engine, evidence.samples)
        parity = judge(evidence.question, engine.run, evidence.samples, gated_on=_gated_on(problem), block=block, track=track)
    return parity if exact is None else replace(parity, notes=(*parity.notes, f"{exact.reason}: so the held-out data decided"))


def _judged_exactly(state: State, candidate: Candidate, evidence: Evidence, track: Track) -> Parity:
    """The verdict on an engine with no lossy step by rounding alone, and by what --min-metric asks of it."""
    candidate, problem = state.ready(candidate), state.owner(candidate.plan)
    track(f"gate: {candidate.name}", 0, 0)
    return _with_minimum(_rounding(problem, candidate, evidence), problem, candidate, evidence, track)


def _rounding(problem: Problem, candidate: Candidate, evidence: Evidence) -> Parity:
    with running(problem, candidate) as engine:
        found = iter([engine.run(feed) for feed in evidence.feeds[:FEEDS]])
    # Closed before the truth is computed, which takes memory of its own.
    return judge_lossless(evidence.parent, lambda _: next(found), evidence.feeds, gated_on=_gated_on(problem))


def _with_minimum(parity: Parity, problem: Problem, candidate: Candidate, evidence: Evidence, track: Track) -> Parity:
    if not isinstance(evidence.question, Question) or evidence.samples is None:
        return parity
    with running(problem, candidate) as engine:
        return with_minimum(parity, evidence.question, engine.run, evidence.samples, track)


def _gated_on(problem: Problem) -> str:
    return problem.target.device if problem.capability.runs_here else "simulation"


def _block(parent: ir.Model, engine: Engine, samples: Samples) -> int:
    """How many consecutive samples count as one, told by running both over them where the model carries a state."""
    if not states_of(samples.preprocessing):
        return 1
    with closing(Reference(parent, optimized=True)) as reference:
        return independent_after(error_over_time(reference.run, engine.run, samples))


def _told(candidate: Candidate, parity: Parity | None, asked: Set[str], order: Sequence[Candidate], baseline: str) -> Candidate:
    """A candidate with what became of it, and why."""
    timing = candidate.timing
    if candidate.outcome == "not built":
        return candidate
    if parity is not None and candidate.name in asked:
        return replace(candidate, parity=parity, outcome="passed" if parity.verdict == "pass" else "refused", reason=parity.reason)
    if candidate.name in asked:
        return replace(candidate, outcome="not finalist", reason="a safer candidate did not pass, which ended the sequence")
    if parity is not None:
        told = "another candidate is as fast and nearer to the parent; measured on the held-out data to tell what it would have lost"
        return replace(candidate, parity=parity, outcome="not finalist" if parity.verdict == "pass" else "refused", reason=told)
    if candidate.name == baseline:
        return replace(candidate, outcome="not finalist", reason="another precision was asked for by name; the others are timed against it")
    if timing is not None and timing.low <= 1.0:
        why = f"not faster than {baseline} here: {timing.ratio:.2f}x [{timing.low:.2f}, {timing.high:.2f}]"
        return replace(candidate, outcome="slower", reason=why)
    if timing is None:
        return replace(candidate, outcome="not finalist", reason=_heavier(candidate, order))
    return replace(candidate, outcome="not finalist", reason="another candidate is as fast and nearer to the parent")


def _heavier(candidate: Candidate, order: Sequence[Candidate]) -> str:
    if candidate.built is None or not candidate.built.launches:
        return "not timed, and its launches can't be counted here"
    counts: Mapping[str, tuple[int, int]] = {
        one.name: (len(one.built.launches), sum(launch.bytes for launch in one.built.launches))
        for one in (candidate, *order)
        if one.built is not None
    }
    own = counts[candidate.name]
    others = "; ".join(
        f"{name} {launches} launches, {moved / 1e6:.2f} MB" for name, (launches, moved) in counts.items() if name != candidate.name
    )
    return f"not timed, and by static counts not leaner: {own[0]} launches, {own[1] / 1e6:.2f} MB moved, against {others}"
