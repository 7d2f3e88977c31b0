"""Accuracy recovery: what can be done to a model so that INT8 loses less, before a layer is given back to a higher precision.

The one place where a graph, samples and the methods of `calibration` meet.  The planner tries the steps in their order and keeps
each that brings the outputs nearer on the samples it screens with; a plan names those that it has.
"""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.engine import Arrays
from optimizer.errors import InputError
from optimizer.plan import Capability, Plan
from optimizer.precision import quantized_tensors
from optimizer.recovery.correction import correction
from optimizer.recovery.equalization import equalization
from optimizer.recovery.form import Form, Recovered, Step, few, grid_of, noted
from optimizer.recovery.ranges import ranges
from optimizer.recovery.rounding import adaround, gptq
from optimizer.recovery.smoothing import smoothing

__all__ = ["STEPS", "Form", "Recovered", "Step", "few", "grid_of", "noted", "recovered"]

STEPS: tuple[Step, ...] = (equalization, smoothing, ranges, adaround, gptq, correction)
"""In the order in which they are tried, each called by its own name.

Equalization and smoothing come first, because they change what the others measure, and the one that is free at run time before the
other; AdaRound before GPTQ, which leaves alone what is rounded; the bias last, since it makes up for what is left.
"""

_BY_NAME = {step.__name__: step for step in STEPS}


def recovered(form: Form, plan: Plan, capability: Capability, feeds: Sequence[Arrays]) -> Form:
    """The form after the steps that a plan names, for the plan's own ranges: the same again for the same samples.

    A step that finds nothing to do, as where the plan has given its layers back to float, changes nothing.

    Raises:
        InputError: the plan names a step that does not exist, or its ranges are for other samples.
    """
    for name in plan.recovery:
        if name not in _BY_NAME:
            raise InputError(f"The plan names a recovery step {name!r}, which does not exist.", f"Steps are: {', '.join(_BY_NAME)}.")
        if _BY_NAME[name] is ranges:
            continue  # what it decides stands in the plan
        if (found := _BY_NAME[name](form, plan, capability, feeds)) is not None:
            form = found.form
            _refuse_without_ranges(form, plan, capability)
    return form


def _refuse_without_ranges(form: Form, plan: Plan, capability: Capability) -> None:
    """Raises InputError where a step has made a tensor that the plan does not know."""
    if missing := sorted(set(quantized_tensors(form.model, plan, capability)) - set(plan.ranges)):
        reason = f"With these samples the recovery of the plan quantizes {missing[0]!r}, for which the plan has no range."
        raise InputError(reason, "Give the calibration data of the build that wrote the plan.")
