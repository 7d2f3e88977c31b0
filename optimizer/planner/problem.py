"""What a search starts from, and what it has to turn a plan into something that can be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from calibration.table import Table
from kernels.target import Target
from optimizer.calibrate import calibrate, watched
from optimizer.engine import Arrays
from optimizer.fusion.rewrites import rewritten
from optimizer.model import SAME_NUMBERS, Model
from optimizer.parity.outputs import Reading
from optimizer.plan import Capability, Knobs, Plan, Precision, Rewrite, Shape


@dataclass(frozen=True)
class Problem:
    """One form of the model for one backend and target.

    `screening` are a few calibration-side feeds with `parent`, the unquantized model's outputs on them, and `feeds` some more for
    recovery; all are empty where there is no calibration data, and then no plan needs any.  `wanted` is "auto" or the precision asked
    for by name, `choices` are the values that the tuner may give to a knob.  `reading` is how decisions are read from the outputs (None
    where they are none), and `allowed` what may be lost, as a share of decisions or in cosine (None where what the gate asks can't be
    predicted).  `rewrites` are what made this form of the fused model.
    """

    model: Model
    backend: str
    target: Target
    capability: Capability
    knobs: Knobs
    wanted: str
    choices: Mapping[str, Sequence[int | float | str | bool]] = field(default_factory=dict)
    table: Table | None = None
    screening: Sequence[Arrays] = ()
    feeds: Sequence[Arrays] = ()
    parent: Sequence[Mapping[str, NDArray[Any]]] = ()
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    given: Plan | None = None
    reading: Reading | None = None
    allowed: float | None = None
    rewrites: tuple[Rewrite, ...] = ()

    def plan(self, base: Precision, reason: str) -> Plan:
        """A plan with every layer in `base`."""
        return Plan(
            self.backend,
            self.target.name,
            base,
            rewrites=self.rewrites,
            knobs=self.knobs,
            shapes=self.shapes,
            reason=reason,
        )

    def solves(self, plan: Plan) -> bool:
        """Whether a plan is for this backend and this form of the model, before recovery."""
        return (plan.backend, plan.rewrites) == (self.backend, self.rewrites)

    def rewritten(self, chosen: Sequence[Rewrite]) -> Problem:
        """The problem with exact rewrites applied to the model, and statistics of the tensors that are new.

        Raises:
            InputError: a rewrite does not apply (a plan from a file that does not fit).
        """
        model = rewritten(self.model, chosen)
        table = extended(self.table, model, self.screening) if self.table is not None else None
        return replace(self, model=model, table=table, rewrites=(*self.rewrites, *chosen))


def extended(table: Table, model: Model, feeds: Sequence[Arrays]) -> Table:
    """The table with the tensors of a rewritten model: those that hold the numbers of one that it has, and those that `feeds` show."""
    statistics = dict(table.statistics)
    for node in model.graph.graph:
        for value in node.outputs:
            same = value.metadata_props.get(SAME_NUMBERS)
            if value.name and value.name not in statistics and same in statistics:
                statistics[value.name] = statistics[same]
    new = [name for name in watched(model) if name not in statistics]
    if new:
        statistics |= calibrate(model, feeds, key=table.key, tensors=new).statistics
    return replace(table, statistics=statistics)
