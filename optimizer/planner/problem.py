"""What a search starts from, and what it has to turn a plan into something that can be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from calibration.table import Table
from kernels.target import Target
from optimizer.engine import Arrays
from optimizer.model import Model
from optimizer.plan import Capability, Knobs, Plan, Precision, Shape


@dataclass(frozen=True)
class Problem:
    """One model for one backend and target.

    `screening` are a few calibration-side feeds with `parent`, the unquantized model's outputs on them; both are empty where
    there is no calibration data, and then no plan needs any.  `wanted` is "auto" or the precision asked for by name, `choices` are
    the values that the tuner may give to a knob.
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
    parent: Sequence[Mapping[str, NDArray[Any]]] = ()
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    given: Plan | None = None

    def named(self, name: str) -> str:
        """How a candidate of this problem is called where it stands among others'."""
        return f"{self.backend} {name}"

    def plan(self, base: Precision, reason: str) -> Plan:
        """A plan with every layer in `base`."""
        return Plan(self.backend, self.target.name, base, knobs=self.knobs, shapes=self.shapes, reason=reason)
