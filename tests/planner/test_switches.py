"""With one layer switched on, the graph does what the typed graph of a plan with that layer alone does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest

from optimizer.planner.plans import everywhere, ranged
from optimizer.planner.problem import Problem
from optimizer.planner.state import State
from optimizer.planner.switches import Switches

Problems = Callable[..., Problem]
Searching = Callable[..., State]

PRODUCTS = ("first", "second", "third", "last")


@pytest.mark.parametrize("precision", ["int8", "int8_dynamic", "bf16"])
def test_the_error_of_each_layer_is_that_of_a_plan_with_it_alone(precision: str, problem: Problems, searching: Searching) -> None:
    net = problem()
    net = replace(
        net, capability=replace(net.capability, precisions=net.capability.precisions | {"bf16"}, refusals={}, quantize_outputs=False)
    )
    state = searching(net)
    whole = net.plan("bf16", "") if precision == "bf16" else everywhere(net, precision)
    assert whole is not None
    with closing(Switches(net, ranged(net, whole, "minmax"))) as switches:
        assert switches.error((), 4) == 0.0
        for name in PRODUCTS:
            alone = ranged(net, net.plan("fp32", "").with_precision([name], precision, ""), "minmax")
            assert switches.error((name,), 4) == pytest.approx(state.error(net, alone, 4), rel=0.35 if precision == "bf16" else 0.02)
        together = switches.error(PRODUCTS, 4)
        assert together > max(switches.error((name,), 4) for name in PRODUCTS)


def test_what_stays_in_float_has_no_switch(problem: Problems) -> None:
    net = problem()
    plan = ranged(net, net.plan("fp32", "").with_precision(["second"], "int8", ""), "minmax")
    with closing(Switches(net, plan)) as switches:
        assert switches.error(("first", "third", "last"), 4) == 0.0
        assert switches.error(("second", "first"), 4) == switches.error(("second",), 4) > 0.0


def test_the_model_is_left_as_it_was(problem: Problems) -> None:
    net = problem()
    before = [node.name for node in net.model.graph.graph]
    whole = everywhere(net, "int8")
    assert whole is not None
    Switches(net, ranged(net, whole, "minmax")).close()
    assert [node.name for node in net.model.graph.graph] == before
    assert [value.name for value in net.model.graph.graph.inputs] == ["x"]
