"""What a step of recovery takes and gives: a model with the statistics of its tensors, and the plan that goes with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import onnx_ir as ir
import onnx_ir.passes.common as passes

from calibration.grid import INT8, UINT8, Grid
from calibration.ranges import METHODS
from calibration.table import Table
from optimizer.calibrate import calibrate
from optimizer.engine import Arrays
from optimizer.errors import InputError
from optimizer.model import Model
from optimizer.plan import Capability, Plan

T = TypeVar("T")


@dataclass(frozen=True)
class Form:
    """A model as it is to be typed, and what was seen of its tensors."""

    model: Model
    table: Table


@dataclass(frozen=True)
class Recovered:
    """What a step made: the form, the plan that goes with it (ranges of new and changed tensors), and what it did, in words."""

    form: Form
    plan: Plan
    note: str


Step = Callable[[Form, Plan, Capability, Sequence[Arrays]], "Recovered | None"]
"""One way to lose less in INT8; None where there is nothing for it. Deterministic, and nothing that it is given is changed.

The feeds are calibration samples; what a step decides depends on them, the model, the plan's precisions, and no random numbers.
"""


def grid_of(capability: Capability) -> Grid:
    """The grid of the activations' integers."""
    return UINT8 if capability.activation == "uint8" else INT8


def rewritten(form: Form, graph: ir.Model) -> Form:
    """The form with another graph, without the weights that nobody reads any more."""
    passes.RemoveUnusedNodesPass()(graph)
    return replace(form, model=form.model.with_graph(graph))


def seen_anew(form: Form, plan: Plan, capability: Capability, feeds: Sequence[Arrays], tensors: Mapping[str, str]) -> tuple[Form, Plan]:
    """The form and plan with the statistics and ranges of `tensors`, which hold other numbers than before or are new.

    Each maps to the tensor whose method of choosing a range it takes over; one that the plan does not quantize needs no range.

    Raises:
        InputError: the plan has a range by a method that does not exist.
    """
    ranged = {name: plan.ranges[before] for name, before in tensors.items() if before in plan.ranges}
    if not ranged:
        return form, plan
    if unknown := next((known.method for known in ranged.values() if known.method not in METHODS), None):
        raise InputError(f"The plan has a range by {unknown!r}, which is no method.", f"Methods are: {', '.join(METHODS)}.")
    table = calibrate(form.model, feeds, key=form.table.key, tensors=tuple(ranged))
    statistics = {**form.table.statistics, **table.statistics}
    grid = grid_of(capability)
    ranges = {name: METHODS[known.method](table.statistics[name], grid) for name, known in ranged.items()}
    return replace(form, table=replace(form.table, statistics=statistics)), replace(plan, ranges={**plan.ranges, **ranges})


def noted(plan: Plan, step: str) -> Plan:
    """The plan with a step's name behind those that it has."""
    return replace(plan, recovery=(*plan.recovery, step))


def few(feeds: Sequence[T], most: int) -> Sequence[T]:
    """At most so many of the feeds, from everywhere among them: what stands together in the data tends to be alike."""
    return [feeds[place * len(feeds) // most] for place in range(most)] if len(feeds) > most else feeds


def listed(names: Iterable[str], most: int = 3) -> str:
    """Names in words, the first few of them."""
    known = list(names)
    return ", ".join(known[:most]) + (f" and {len(known) - most} more" if len(known) > most else "")
