"""The steps as the planner calls them: in one order, together better than each, and repeated from a plan to the same bits."""

from dataclasses import replace

import pytest

from optimizer.errors import InputError
from optimizer.graph import sha256
from optimizer.plan import Plan
from optimizer.precision import typed
from optimizer.provenance import from_json, to_json
from optimizer.recovery import STEPS, recovered


def every(form, plan, capability, samples):
    """All steps that find something, without asking whether they help."""
    for step in STEPS:
        if (found := step(form, plan, capability, samples)) is not None:
            form, plan = found.form, found.plan
    return form, plan


def test_the_order_is_the_one_in_which_they_build_on_each_other():
    assert [step.__name__ for step in STEPS] == ["equalization", "smoothing", "ranges", "adaround", "gptq", "correction"]


@pytest.mark.parametrize("name", ["depthwise", "encoder"])
def test_a_plan_that_was_written_to_a_file_gives_the_same_engine_again(name, capability, feeds, planned, off, request):
    model = request.getfixturevalue(name)
    samples = feeds(model)
    start, plan = planned(model, capability, samples)
    form, last = every(start, plan, capability, samples)
    assert len(last.recovery) >= 3
    assert off(model, form, last, capability, feeds(model, 8, seed=5)) < 0.4 * off(model, start, plan, capability, feeds(model, 8, seed=5))
    again = recovered(start, from_json(to_json(last), Plan, "plan.json"), capability, samples)
    first, second = (typed(one.model, last, capability) for one in (form, again))
    assert sha256(first) == sha256(second)


@pytest.mark.parametrize("step", STEPS)
def test_without_samples_there_is_nothing_to_do(step, depthwise, inputs_only, feeds, planned):
    form, plan = planned(depthwise, inputs_only, feeds(depthwise))
    assert step(form, plan, inputs_only, []) is None


@pytest.mark.parametrize("step", STEPS)
def test_a_model_without_a_layer_in_int8_is_left_alone(step, depthwise, inputs_only, feeds, planned):
    samples = feeds(depthwise)
    form, plan = planned(depthwise, inputs_only, samples)
    assert step(form, replace(plan, precisions={}, ranges={}), inputs_only, samples) is None


def test_every_step_says_what_it_did(depthwise, inputs_only, feeds, planned):
    samples = feeds(depthwise)
    form, plan = planned(depthwise, inputs_only, samples)
    for step in STEPS:
        if (found := step(form, plan, inputs_only, samples)) is not None:
            assert found.note.startswith(f"{step.__name__}: ")
            assert found.plan.recovery == (step.__name__,)


def test_a_plan_with_an_unknown_step_or_method_is_refused(depthwise, inputs_only, feeds, planned):
    samples = feeds(depthwise)
    form, plan = planned(depthwise, inputs_only, samples)
    with pytest.raises(InputError, match="'alchemy', which does not exist"):
        recovered(form, replace(plan, recovery=("alchemy",)), inputs_only, samples)
    odd = {name: replace(known, method="magic") for name, known in plan.ranges.items()}
    with pytest.raises(InputError, match="'magic', which is no method"):
        recovered(form, replace(plan, recovery=("equalization",), ranges=odd), inputs_only, samples)


def test_a_plan_whose_ranges_are_for_other_samples_is_refused(encoder, inputs_only, feeds, planned):
    samples = feeds(encoder)
    form, plan = planned(encoder, inputs_only, samples)
    for steps in (("smoothing",), ("smoothing", "correction")):
        with pytest.raises(InputError, match=r"quantizes 'n2/smoothed.*no range"):
            recovered(form, replace(plan, recovery=steps), inputs_only, samples)


def test_a_step_whose_layers_are_back_in_float_changes_nothing(depthwise, inputs_only, feeds, planned):
    samples = feeds(depthwise)
    form, plan = planned(depthwise, inputs_only, samples)
    back = replace(plan, recovery=tuple(step.__name__ for step in STEPS), precisions={})
    assert recovered(form, back, inputs_only, samples) is form
