"""The state of a search: the forms of the model, what was measured of each plan so far, and the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from shutil import rmtree

from kernels.timing import Timing, glance, quick
from optimizer.backends import backend
from optimizer.engine import Arrays, Built, Candidate, Engine
from optimizer.errors import OptimizeError
from optimizer.graph import HEAVY, weights_bytes
from optimizer.plan import Plan
from optimizer.planner.distance import Distance, distance, screened
from optimizer.planner.engines import build, running, simulation
from optimizer.planner.flips import Flips
from optimizer.planner.journal import Journal
from optimizer.planner.pareto import predicted, undominated
from optimizer.planner.plans import unquantized
from optimizer.planner.problem import Problem
from optimizer.process import Workers
from optimizer.progress import Track, silent
from optimizer.recovery import Form, Step, few, recovered
from optimizer.request import Objective

GIVEN = "given plan"

USUAL = 0.01
"""What may be lost where nothing was said of it that can be predicted."""

HOPE = 0.7
"""The part of what is allowed that may be predicted of a candidate that hopes for the gate, which wants its upper bound below all of it."""

QUICK_SECONDS = 0.6
"""For a first look at a candidate's time, beside the baseline."""

PAIR_SECONDS = 1.0
"""For telling whether one of two candidates is faster, of which one is to be built upon."""


@dataclass(frozen=True)
class Proposal:
    """A plan worth building, for a form of the model, under a short name of its own."""

    problem: Problem
    name: str
    plan: Plan


@dataclass(frozen=True)
class Measured:
    """What is recorded of a candidate. A distance that is not finite is recorded as None."""

    built: Built | None
    timing: Timing | None
    distance: float | None
    flips: Flips | None
    outcome: str
    reason: str
    seconds: float


@dataclass(frozen=True)
class Mended:
    """A plan with one more step of recovery, and what that did, in words."""

    plan: Plan
    note: str


class Clock:
    """Seconds left for the search; `clock` tells the time, from any start, `budget` is what the user gave the whole build."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic, budget: float | None = None) -> None:
        self.seconds, self.budget = seconds, budget
        self._clock, self._end = clock, clock() + seconds

    @property
    def left(self) -> float:
        return self._end - self._clock()


class State:
    """What a search knows. Engines and processes that it holds are given back by `close`."""

    def __init__(
        self,
        problems: Sequence[Problem],
        feed: Arrays,
        folder: Path,
        journal: Journal,
        clock: Clock,
        objective: Objective = "latency",
        track: Track = silent,
    ) -> None:
        self.problems: list[Problem] = list(problems)
        self.candidates: list[Candidate] = []
        self.feed, self.clock, self.track, self.journal, self.objective = feed, clock, track, journal, objective
        self._folder, self._count = folder, 0
        self._open = ExitStack()
        self._workers = self._open.enter_context(Workers(folder))
        self._yardstick: tuple[str, Engine] | None = None
        self._preferred: dict[str, Problem] = {}
        self._recovered: list[tuple[Plan, Problem]] = []
        self.left_out: list[str] = []
        self.raced: frozenset[str] = frozenset()

    def close(self) -> None:
        self._open.close()

    @property
    def bases(self) -> Sequence[Problem]:
        """The model as it was fused, for each backend."""
        return [problem for problem in self.problems if not problem.rewrites]

    @property
    def timeable(self) -> bool:
        """Whether candidates can be timed one after the other: the target is here, and two engines fit into memory."""
        return all(problem.capability.runs_here and weights_bytes(problem.model.graph) <= HEAVY for problem in self.bases)

    def form(self, problem: Problem) -> Problem:
        """The form as the state keeps it, which knows it from then on."""
        known = next((one for one in self.problems if one.solves(problem.plan("fp32", ""))), None)
        if known is None:
            self.problems.append(problem)
        return known or problem

    def base(self, plan: Plan) -> Problem:
        """The model as it was fused, for a plan's backend: what was asked, and what the backend can do."""
        return next(one for one in self.bases if one.backend == plan.backend)

    def owner(self, plan: Plan) -> Problem:
        """The problem that a plan solves: its backend's, with the rewrites and the recovery that it asks for.

        Raises:
            InputError: the plan asks for what does not apply (a plan from a file that does not fit).
        """
        known = next((problem for of, problem in self._recovered if of == plan), None)
        if known is not None:
            return known
        problem = next((one for one in self.problems if one.solves(plan)), None)
        if problem is None:
            problem = self.form(self.base(plan).rewritten(plan.rewrites))
        if not plan.recovery or problem.table is None:
            return problem
        form = recovered(Form(problem.model, problem.table), plan, problem.capability, problem.feeds)
        return self._remember(plan, problem, form)

    def _remember(self, plan: Plan, problem: Problem, form: Form) -> Problem:
        """Keep the form that recovery made for a plan; of several the last two, since each may hold weights of its own."""
        problem = replace(problem, model=form.model, table=form.table)
        self._recovered = [*self._recovered[-1:], (plan, problem)]
        return problem

    def recovering(self, plan: Plan, step: Step) -> Mended | None:
        """What a step of recovery makes of a plan, None where there is nothing for it."""

        def measure() -> Mended | None:
            problem = self.owner(plan)
            assert problem.table is not None
            found = step(Form(problem.model, problem.table), plan, problem.capability, problem.feeds)
            if found is None:
                return None
            self._remember(found.plan, problem, found.form)
            return Mended(found.plan, found.note)

        return self.journal.once("recovery", [plan, step.__name__], Mended | None, measure)

    def prefer(self, form: Problem) -> None:
        """The form that lower precisions are tried on, beside the model as it was fused."""
        if form.rewrites:
            self._preferred[form.backend] = form

    def preferred(self, problem: Problem) -> list[Problem]:
        """The forms of a backend that are worth lowering: the fastest one first, and the model as it was fused."""
        base = next(one for one in self.bases if one.backend == problem.backend)
        return [self._preferred[problem.backend], base] if problem.backend in self._preferred else [base]

    def not_built(self, problem: Problem, name: str, why: str) -> None:
        """Note a plan that is not even tried, with the reason."""
        plan = problem.plan(problem.capability.base, "left out")
        self.candidates.append(Candidate(self.named(problem, name), plan, outcome="not built", reason=why))

    def settle_knobs(self, problem: Problem, candidate: Candidate, plan: Plan) -> None:
        """The knobs of `plan` are those of the backend from now on, and of the candidate they were found on."""
        place = self.problems.index(problem)
        self.problems[place] = replace(problem, knobs=plan.knobs)
        self.candidates = [replace(one, plan=plan) if one.name == candidate.name else one for one in self.candidates]

    def named(self, problem: Problem, name: str) -> str:
        """How a candidate is called: by its backend, too, where there are several."""
        return f"{problem.backend} {name}" if len(self.bases) > 1 else name

    def _unused(self, name: str) -> str:
        taken = {one.name for one in self.candidates}
        numbered = (f"{name} ({number})" for number in count(2))
        return name if name not in taken else next(each for each in numbered if each not in taken)

    def time_is_up(self, before: object, until: float = 0.0) -> bool:
        """Whether no more than `until` seconds are left for what comes next, or were when an earlier build that asked the same stood there.

        So that is done with the search where the earlier one was; with a larger budget it goes on.
        """
        asked = [[one.backend, one.wanted, one.choices, one.given, one.allowed, one.reading] for one in self.bases]
        about = [self.clock.budget, self.objective, asked, before]
        return self.journal.once("time is up", about, bool, lambda: self.clock.left <= until)

    @property
    def able(self) -> Sequence[Problem]:
        """Those of `bases` but the backends that could not build the unquantized engine."""
        first = {one.plan.backend: one.outcome for one in reversed(self.candidates)}
        return [problem for problem in self.bases if first.get(problem.backend) != "not built"]

    def plain(self, problem: Problem) -> Candidate:
        """The unquantized candidate of a backend, of the model as it was fused."""
        return next(one for one in self.candidates if one.plan.backend == problem.backend)

    def measured(self, proposal: Proposal) -> Candidate:
        """The proposal as a candidate: built, screened and timed, or recalled.

        Raises:
            OptimizeError: it can't be built, and is what was asked for by name.
        """
        problem = self.base(proposal.plan)
        candidate = Candidate(self._unused(self.named(problem, proposal.name)), proposal.plan)
        if (same := next((one for one in self.candidates if one.plan == proposal.plan), None)) is not None:
            return same
        folders: list[Path] = []
        first = self._first
        about = [proposal.plan, problem.reading, first.plan if first is not None else None]
        found = self.journal.once("candidate", about, Measured, partial(self._measure, proposal, folders))
        if found.timing is not None and first is not None:
            found = replace(found, timing=replace(found.timing, versus=first.name))  # called otherwise among other backends
        candidate = replace(
            candidate,
            folder=folders[0] if folders else None,
            built=found.built,
            timing=found.timing,
            seconds=found.seconds,
            gain=self._gain(found.timing),
            outcome=found.outcome,
            reason=found.reason,
        )
        if problem.screening and found.outcome != "not built":
            candidate = screened(candidate, Distance(math.inf if found.distance is None else found.distance, found.flips))
        self.candidates.append(candidate)
        self._tidy()
        return candidate

    def _measure(self, proposal: Proposal, folders: list[Path]) -> Measured:
        start, problem = time.monotonic(), self.owner(proposal.plan)
        candidate = Candidate(self.named(problem, proposal.name), proposal.plan)
        try:
            folder, built = build(problem, proposal.plan, self._next_folder(), self.track, self._workers)
            candidate = replace(candidate, folder=folder, built=built)
            if folder is not None:
                folders.append(folder)
            found: Distance | None = None
            timing: Timing | None = None
            if problem.screening or self._times(candidate):
                with running(problem, candidate) as engine:
                    if problem.screening:
                        found = distance(problem.parent, engine.run, problem.screening, problem.reading)
                    if self._times(candidate):
                        timing = self._glance(problem, engine)
        except OptimizeError as error:
            if self._must_be(problem, proposal):
                raise
            reason = f"{error.reason} {error.remedy}"
            return Measured(None, None, None, None, "not built", reason, time.monotonic() - start)
        far = found.error if found is not None and math.isfinite(found.error) else None
        return Measured(built, timing, far, found.flips if found is not None else None, "tried", "", time.monotonic() - start)

    def _gain(self, timing: Timing | None) -> float | None:
        """How many times as fast as the fastest of those before; None where nothing was timed."""
        if timing is None:
            return None
        return timing.ratio / max((speed(one) for one in self.candidates if one.outcome != "not built"), default=1.0)

    def _must_be(self, problem: Problem, proposal: Proposal) -> bool:
        """Whether the build ends where this one can't be built: another backend may do, and of INT8 there are several plans."""
        if problem.given is not None:
            return True
        asked = problem.wanted == proposal.name != "int8"
        return len(self.bases) == 1 and not problem.rewrites and (asked or proposal.name == next(unquantized(problem))[0])

    @property
    def _first(self) -> Candidate | None:
        """What the others are timed beside."""
        return next((one for one in self.candidates if one.outcome != "not built"), None)

    def _times(self, candidate: Candidate) -> bool:
        """Whether a candidate is timed: something can be timed here, and it is not the one that the others are timed beside."""
        return self.timeable and candidate.folder is not None and self._first is not None

    def _glance(self, problem: Problem, engine: Engine) -> Timing:
        """A first timing beside the first candidate, which stays open."""
        if self._yardstick is None:
            assert self._first is not None
            first = self.ready(self._first)
            self._yardstick = (first.name, self._open.enter_context(running(self.owner(first.plan), first)))
        name, baseline = self._yardstick
        old, new = partial(baseline.run, self.feed), partial(engine.run, self.feed)
        return glance(old, new, versus=name, seconds=QUICK_SECONDS, timed_on=problem.target.device)

    def faster(self, candidate: Candidate, other: Candidate) -> bool:
        """Whether a candidate is faster than another one for sure, by more than 1 %."""

        def measure() -> bool:
            with ExitStack() as stack:
                old, new = (stack.enter_context(running(self.owner(one.plan), self.ready(one))) for one in (other, candidate))
                return bool(quick(partial(old.run, self.feed), partial(new.run, self.feed), seconds=PAIR_SECONDS).faster)

        return self.journal.once("pair", [candidate.plan, other.plan], bool, measure)

    def error(self, problem: Problem, plan: Plan, samples: int) -> float:
        """How far a plan takes the outputs on a few screening samples, by simulation."""

        def measure() -> Distance:
            engine = simulation(problem, plan, optimized=False)
            try:
                return distance(few(problem.parent, samples), engine.run, few(problem.screening, samples))
            finally:
                engine.close()

        def finite() -> float | None:
            error = measure().error
            return error if math.isfinite(error) else None

        found = self.journal.once("simulated", [plan, samples], float | None, finite)
        return math.inf if found is None else found

    def ready(self, candidate: Candidate) -> Candidate:
        """The candidate with its engine on disk, built again where it was recalled or cleared away."""
        if candidate.outcome == "not built" or (candidate.folder is not None and candidate.folder.exists()):
            return candidate
        problem = self.owner(candidate.plan)
        if backend(problem.backend).missing(problem.target) is not None:
            return candidate
        folder, built = build(problem, candidate.plan, self._next_folder(), self.track, self._workers)
        found = replace(candidate, folder=folder, built=built)
        self.candidates = [found if one.name == candidate.name else one for one in self.candidates]
        return found

    def _next_folder(self) -> Path:
        self._count += 1
        return self._folder / str(self._count)

    def _tidy(self) -> None:
        """Engines that another one beats in time and distance are cleared from the disk: there may be many, and they are large."""
        if not self.timeable:
            return
        able = [one for one in self.candidates if one.outcome != "not built"]
        kept = {one.name for one in (*self.candidates[: len(self.bases)], *undominated(able, speed))}
        for one in self.candidates[:-1]:
            if one.folder is not None and one.name not in kept:
                rmtree(one.folder, ignore_errors=True)

    def may_ship(self, candidate: Candidate) -> bool:
        """Whether a candidate is what was asked for: with a precision asked for by name only plans that have it are, be they slower."""
        problem = self.base(candidate.plan)
        precisions = candidate.plan.precisions.values()
        if problem.given is not None:
            return candidate.name == self.named(problem, GIVEN)
        if problem.wanted == "auto":
            return True
        if problem.wanted == "int8":
            return any(precision.startswith("int8") for precision in precisions)
        return candidate.plan.base == problem.wanted and not any(one.startswith("int8") for one in precisions)

    def honest(self, candidate: Candidate) -> bool:
        """Whether calibration samples let a candidate hope for the gate."""
        allowed = self.base(candidate.plan).allowed
        return candidate.outcome != "not built" and predicted(candidate) <= HOPE * (USUAL if allowed is None else allowed)


def speed(candidate: Candidate) -> float:
    """How many times as fast as the first candidate; 1 where that was not timed."""
    return candidate.timing.ratio if candidate.timing is not None else 1.0
