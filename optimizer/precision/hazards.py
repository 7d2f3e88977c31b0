"""What goes wrong in a lower precision, told from structure and ranges before anything is built: for any target, on any machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from calibration.observers import Statistics
from optimizer.model import Model, is_layer
from optimizer.plan import Precision
from optimizer.precision import hazards_integers, hazards_rounding
from optimizer.precision.overflow import overflowing
from optimizer.precision.placement import HALF


@dataclass(frozen=True)
class Hazard:
    """A layer that must not be in a precision, and why, in the user's words."""

    layer: str
    precision: Precision
    why: str


def hazards(model: Model, statistics: Mapping[str, Statistics], precision: Precision) -> dict[str, str]:
    """The layers that must not be in `precision`, by name, each with the first reason found.

    `statistics` are what calibration saw of tensors by name; what they don't tell is judged by structure alone.
    """
    found: dict[str, str] = {}
    for hazard in _found(model, statistics, precision):
        found.setdefault(hazard.layer, hazard.why)
    return found


def _found(model: Model, statistics: Mapping[str, Statistics], precision: Precision) -> Iterator[Hazard]:
    graph = model.graph.graph
    if precision.startswith("int8"):
        rules = hazards_integers.RULES
        told = ((node, why) for rule in rules for node, why in rule(graph, statistics))
    elif (half := HALF.get(precision)) is not None:
        yield from (Hazard(layer, precision, why) for layer, why in overflowing(model, statistics, precision).items())
        told = ((node, why) for rule in hazards_rounding.RULES for node, why in rule(graph, statistics, half))
    else:
        return
    for node, why in told:
        if is_layer(node):
            yield Hazard(node.name or "", precision, why)
