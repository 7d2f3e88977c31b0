"""A plan that the user brings (`--plan`): every decision of an earlier build, held against the model that it is to be repeated on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from kernels.target import Target
from optimizer.backends import NAMES, backend, missing
from optimizer.errors import InputError, UnavailableError
from optimizer.model import Model
from optimizer.plan import Capability, Plan, Shape
from optimizer.precision import quantized_tensors
from optimizer.provenance import from_json
from optimizer.regions import Part, split

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


def refuse_other_backends(plan: Plan, chosen: Collection[str], target: Target) -> None:
    """Hold the backends of a plan's regions against those that are to build.

    Raises:
        InputError: there is none of a name, it is not among `chosen` though it could build, or the plan is not what a search writes.
        UnavailableError: one can't build for the target here.
    """
    if not plan.regions:
        return
    if plan.backend != plan.regions[0].backend:
        raise InputError(f"The plan is for the backend {plan.backend}, and its first region for {plan.regions[0].backend}.", _REMEDY)
    if plan.recovery:
        raise InputError(f"The plan has regions and recovery by {plan.recovery[0]}, which takes one backend.", "Leave one of them out.")
    for name in plan.backends:
        if name not in NAMES:
            raise InputError(f"A region of the plan is for a backend {name!r}, which there is not.", f"Choose one of {', '.join(NAMES)}.")
        if (why := missing(name, target)) is not None:
            raise UnavailableError(f"A region of the plan is for the backend {name}: {why.rstrip('.')}.", "optimize doctor tells more.")
        if name not in chosen:
            raise InputError(f"A region of the plan is for the backend {name}, which --backend leaves out.", "Name it, too.")


def refuse_what_does_not_fit(
    plan: Plan, model: Model, builder: str, capability: Capability, target: Target, shapes: Mapping[str, Shape]
) -> tuple[str, ...]:
    """Notes for the report on a plan that can be repeated.

    Raises:
        InputError: it is for another backend, other shapes or another model, has regions that do not fit, or lacks a range.
    """
    if plan.backend != builder:
        raise InputError(
            f"The plan is for the backend {plan.backend}, and {builder} builds for {target.name}.", f"Build for {plan.target} with it."
        )
    if dict(plan.shapes) != dict(shapes):
        raise InputError("The plan was made with other --shapes.", "Give the --shapes of the build that wrote it.")
    layers = {layer.name for layer in model.layers}
    if unknown := sorted((set(plan.precisions) | set(plan.reasons)) - layers):
        raise InputError(f"The plan names a layer {unknown[0]!r}, which this model does not have.", _REMEDY)
    for part in split(model, plan) if plan.regions else (Part(model, plan),):
        able = backend(part.plan.backend).capability(target) if plan.regions else capability
        if without := sorted(set(quantized_tensors(part.model, part.plan, able)) - set(plan.ranges)):
            raise InputError(f"The plan has no range for the tensor {without[0]!r}, which it quantizes.", _REMEDY)
    return () if plan.target == target.name else (f"The plan that was given was made for {plan.target}.",)
