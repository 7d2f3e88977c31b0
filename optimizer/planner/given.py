"""A plan that the user brings (`--plan`): every decision of an earlier build, held against the model that it is to be repeated on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kernels.target import Target
from optimizer.errors import InputError
from optimizer.model import Model
from optimizer.plan import Capability, Plan, Shape
from optimizer.precision import quantized_tensors
from optimizer.provenance import from_json

_REMEDY = "Give the plan.json of an engine folder that was built from this model."


def plan_from_file(path: Path) -> Plan:
    """The plan in a file that a build wrote.

    Raises:
        InputError: it can't be read, or is none.
    """
    try:
        return from_json(path.read_bytes(), Plan, path.name)
    except OSError as error:
        raise InputError(f"The plan {path.name} can't be read: {error.strerror}.", _REMEDY) from None


def refuse_what_does_not_fit(
    plan: Plan, model: Model, backend: str, capability: Capability, target: Target, shapes: Mapping[str, Shape]
) -> tuple[str, ...]:
    """Notes for the report on a plan that can be repeated.

    Raises:
        InputError: it is for another backend, other shapes or another model, or lacks a range.
    """
    if plan.backend != backend:
        raise InputError(
            f"The plan is for the backend {plan.backend}, and {backend} builds for {target.name}.", f"Build for {plan.target} with it."
        )
    if dict(plan.shapes) != dict(shapes):
        raise InputError("The plan was made with other --shapes.", "Give the --shapes of the build that wrote it.")
    layers = {layer.name for layer in model.layers}
    if unknown := sorted((set(plan.precisions) | set(plan.reasons)) - layers):
        raise InputError(f"The plan names a layer {unknown[0]!r}, which this model does not have.", _REMEDY)
    if missing := sorted(set(quantized_tensors(model, plan, capability)) - set(plan.ranges)):
        raise InputError(f"The plan has no range for the tensor {missing[0]!r}, which it quantizes.", _REMEDY)
    return () if plan.target == target.name else (f"The plan that was given was made for {plan.target}.",)
