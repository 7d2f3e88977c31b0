"""The search: moves propose plans, each is built, screened and timed; the clock says when to stop; the gate comes after it."""

from __future__ import annotations

from collections.abc import Iterator

from optimizer.engine import Candidate
from optimizer.errors import InputError, OptimizeError, UnavailableError
from optimizer.planner.moves import MOVES
from optimizer.planner.problem import Problem
from optimizer.planner.state import State


def search(state: State) -> Iterator[Candidate]:
    """Candidates as they come, an unquantized one of each backend first; what the clock left no time for is in `state.left_out`.

    A plan that can't be built is a candidate too, with outcome "not built" and the reason.

    Raises:
        UnavailableError: the precision that was asked for by name can't be had from any backend for this target.
        InputError: it can be had only with calibration data, and there is none.
    """
    _refuse(state)
    for move in MOVES:
        proposals = move.run(state)
        proposal = next(proposals, None)
        while proposal is not None:
            if move.optional and state.time_is_up([move.name, proposal.plan]):
                state.left_out.append(move.name)
                break
            state.track(f"{move.name}: {state.named(proposal.problem, proposal.name)}", len(state.candidates), 0)
            found = state.measured(proposal)
            yield found
            try:
                proposal = proposals.send(found)
            except StopIteration:
                proposal = None


def _refuse(state: State) -> None:
    """Drop the backends that can't give what was asked for by name, as long as one is left."""
    errors: list[OptimizeError] = []
    for problem in list(state.problems):
        try:
            _refuse_one(problem)
        except (UnavailableError, InputError) as error:
            errors.append(error)
            state.problems.remove(problem)
    if not state.problems:
        raise errors[0]


def _refuse_one(problem: Problem) -> None:
    wanted, capability = problem.wanted, problem.capability
    if wanted != "auto" and wanted not in {precision.removesuffix("_dynamic") for precision in capability.precisions}:
        device = problem.target.device or problem.target.name
        why = capability.refusals.get(wanted, f"The backend {problem.backend} has no {wanted.upper()} for {device}.")
        others = sorted({precision.removesuffix("_dynamic") for precision in capability.precisions})
        raise UnavailableError(f"{why.rstrip('.')}.", f"Choose another precision: {', '.join(others)}, or auto.")
    if wanted == "int8" and problem.table is None and "int8_dynamic" not in capability.precisions:
        raise InputError("INT8 needs calibration data: its ranges have to come from somewhere.", "Give samples with --calibration.")
