"""Knobs of a backend, chosen by racing one engine against itself before any plan is compared with another."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from kernels.timing import race
from optimizer.backends import backend
from optimizer.engine import Arrays, Candidate
from optimizer.graph import HEAVY, weights_bytes
from optimizer.plan import Knobs
from optimizer.planner.problem import Problem
from optimizer.progress import Track, silent

TUNING_SECONDS = 5.0


def tuned(problem: Problem, candidate: Candidate, feed: Arrays, track: Track = silent) -> tuple[Knobs, str]:
    """The knobs with which the candidate's engine runs `feed` fastest, and what was measured, in words ("" where nothing was).

    Nothing is tried of an engine with more than HEAVY weights, and that is told: a second one would cost as much memory.
    Of `problem.choices` one knob is tried after the other; the first choice stays unless another is faster for sure.
    """
    knobs, told = dict(problem.knobs), ""
    if candidate.folder is None or not problem.capability.runs_here or not problem.choices:
        return knobs, told
    if weights_bytes(problem.model.graph) > HEAVY:
        return (
            knobs,
            f"{', '.join(f'{knob} {knobs[knob]}' for knob in problem.choices)}, not raced: a second engine would cost as much memory",
        )
    for knob, choices in problem.choices.items():
        if len(choices) < 2:
            continue
        with ExitStack() as stack:
            runs = {}
            for choice in choices:
                engine = backend(problem.backend).load(candidate.folder, {**knobs, knob: choice})
                stack.callback(engine.close)
                runs[str(choice)] = partial(engine.run, feed)
            track(f"tuning {knob}", 0, 0)
            timings = race(runs, str(choices[0]), seconds=TUNING_SECONDS, timed_on=problem.target.device, track=track)
        best = max(choices, key=lambda choice: timings[str(choice)].ratio)
        if timings[str(best)].low > 1.0:
            knobs[knob] = best
            told = f"{knob} {best}: {timings[str(best)].ratio:.2f}x the speed of {choices[0]}"
    return knobs, told
