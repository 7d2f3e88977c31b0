"""Plans: from a problem, and from other plans, to plans worth building, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from calibration.grid import INT8, UINT8
from calibration.ranges import METHODS
from optimizer.errors import UnavailableError
from optimizer.plan import Plan, Precision
from optimizer.planner.problem import Problem
from optimizer.precision import eligible, hazards, quantized_tensors, settled

Named = tuple[str, Plan]


def unquantized(problem: Problem) -> Iterator[Named]:
    """The highest precision that the target can build: what every other plan is held against.

    In half precision what can't be in it (integers, subgraphs) stays FP32.

    Raises:
        UnavailableError: a layer can run in none of them.
    """
    full = _barred(problem, "fp32")
    for precision in ("fp32", "bf16", "fp16"):
        if precision in problem.capability.precisions and not full.keys() & _barred(problem, precision).keys():
            yield precision, half(problem, precision) if precision != "fp32" else problem.plan("fp32", "nothing lowered")
            return
    layer, why = next(iter(full.items()))
    raise UnavailableError(f"{layer} can run in no float precision on {problem.target.name}: {why}.", "Choose another target.")


def _barred(problem: Problem, precision: Precision) -> Mapping[str, str]:
    """The layers that can't be in a precision on this target, with the reason."""
    verdicts = eligible(problem.model, problem.capability, precision)
    return {layer: why for layer, why in verdicts.items() if why is not None}


def half(problem: Problem, precision: Precision) -> Plan:
    """Everything in FP16 or BF16 but what would overflow there, or be cancelled or counted wrong."""
    plan = problem.plan(precision, f"everything in {precision.upper()}")
    if "fp32" not in problem.capability.precisions:
        return plan
    barred = _barred(problem, "fp32")
    for layer, why in _hazards(problem, precision).items():
        if layer in barred:
            plan = replace(plan, reasons={**plan.reasons, layer: f"{why}, and it can't stay in FP32: {barred[layer]}"})
        else:
            plan = replace(plan, precisions={**plan.precisions, layer: "fp32"}, reasons={**plan.reasons, layer: why})
    return plan


def _hazards(problem: Problem, precision: Precision) -> Mapping[str, str]:
    """The layers that a precision would break, by the ranges that calibration saw and by their place in the graph."""
    return hazards(problem.model, problem.table.statistics if problem.table is not None else {}, precision)


def everywhere(problem: Problem, precision: Precision) -> Plan | None:
    """Every layer that can be in `precision`, the reasons of the others noted; None where there is none."""
    dangers = _hazards(problem, precision)
    verdicts = {layer: why or dangers.get(layer) for layer, why in eligible(problem.model, problem.capability, precision).items()}
    chosen = [layer for layer, why in verdicts.items() if why is None]
    if not chosen:
        return None
    base = _base(problem)
    reasons = {layer: why for layer, why in verdicts.items() if why is not None}
    plan = replace(base, reasons={**base.reasons, **reasons})
    words = "INT8 with ranges found at every run" if precision == "int8_dynamic" else "INT8 with calibrated ranges"
    lowered = {layer: precision for layer in chosen if base.precision(layer) == base.base}
    plan = replace(plan, precisions={**plan.precisions, **lowered}, reason=f"{words}, wherever it can be")
    # What only goes along with INT8 neighbours is back in float where there are none.
    carried = settled(problem.model, plan, problem.capability)
    return plan if any(how.startswith("int8") for how in carried.precisions.values()) else None


def on_half(problem: Problem, plan: Plan, precision: Precision) -> Plan:
    """An INT8 plan whose other layers are in FP16 or BF16 instead of FP32, but those that would overflow there."""
    base = half(problem, precision)
    stay = {layer: how for layer, how in base.precisions.items() if not plan.precision(layer).startswith("int8")}
    lowered = {layer: how for layer, how in plan.precisions.items() if how.startswith("int8")}
    why = f"{plan.reason}; the rest in {precision.upper()}"
    return replace(plan, base=precision, precisions={**stay, **lowered}, reasons={**base.reasons, **plan.reasons}, reason=why)


def _base(problem: Problem) -> Plan:
    """The float plan under an INT8 plan: the capability's base precision, safe from overflow."""
    base = problem.capability.base
    return problem.plan("fp32", "float") if base == "fp32" else half(problem, base)


def mixed(problem: Problem, static: Plan, dynamic: Plan) -> Plan | None:
    """Dynamic INT8 where that exists, static elsewhere: matrix products gain more from ranges of their own at every run.

    None where that is one of the two alone: no dynamic layer, or no tensor left to quantize between the others.
    """
    own: dict[str, Precision] = {layer: how for layer, how in dynamic.precisions.items() if how == "int8_dynamic"}
    why = "INT8: ranges found at every run where that exists, calibrated elsewhere"
    both = replace(static, precisions={**static.precisions, **own}, ranges={}, reason=why)
    return both if own and quantized_tensors(problem.model, both, problem.capability) else None


def in_integers(problem: Problem, plan: Plan) -> bool:
    """Whether anything computes in INT8 under a plan: layers that only hand numbers on do not where nothing beside them does."""
    return "int8_dynamic" in plan.precisions.values() or bool(quantized_tensors(problem.model, plan, problem.capability))


def ranged(problem: Problem, plan: Plan, method: str) -> Plan:
    """The plan with a range by `method` for each tensor that it quantizes.

    Raises:
        ValueError: the plan quantizes a tensor that was not calibrated (an error of ours).
    """
    tensors = quantized_tensors(problem.model, plan, problem.capability)
    if not tensors:
        return plan
    if problem.table is None:
        raise ValueError(f"{plan.reason}: static INT8 without calibration")
    grid = UINT8 if problem.capability.activation == "uint8" else INT8
    ranges = {tensor: METHODS[method](problem.table.statistics[tensor], grid) for tensor in tensors}
    return replace(plan, ranges=ranges)
