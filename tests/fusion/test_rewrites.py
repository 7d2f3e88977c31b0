"""Rewrites that the planner may choose keep the function, in float64, over all strides, pads and kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimizer.fusion import fuse, step
from optimizer.fusion.rewrites import REWRITES, blocks, strides
from optimizer.fusion.rule import Rule
from optimizer.model import Model

R = np.random.default_rng(5)


@st.composite
def convolutions(draw: st.DrawFn, axes: int) -> tuple[str, str, dict[str, Any]]:
    """Input, body and constants of a convolution with few channels."""
    inputs, outputs = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    kernel = [draw(st.integers(1, 7)) for _ in range(axes)]
    stride = draw(st.integers(1, 4))
    pads = [draw(st.integers(0, 3)) for _ in range(2 * axes)]
    sizes = [draw(st.integers(max(1, extent - pads[axis]), 17)) for axis, extent in enumerate(kernel)]
    constants: dict[str, Any] = {"w": R.normal(size=(outputs, inputs, *kernel))}
    if draw(st.booleans()):
        constants["b"] = R.normal(size=outputs)
    body = f"y = Conv<strides={[stride] * axes}, pads={pads}>(x, w{', b' if 'b' in constants else ''})"
    return f"double[{','.join(map(str, (2, inputs, *sizes)))}] x", body, constants


def rewritten(model: Model, *rules: Rule) -> Model:
    return fuse(model, [step("tested", "", rules)])


@pytest.mark.parametrize("rule", REWRITES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("axes", [1, 2])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_rewritten_convolution_computes_the_same(
    rule: Rule, axes: int, data: st.DataObject, build: Any, same: Callable[..., None]
) -> None:
    inputs, body, constants = data.draw(convolutions(axes))
    model = build(inputs, "double y", body, **constants)
    same(model, rewritten(model, rule))


def test_a_convolution_with_few_outputs_computes_blocks_of_pixels(build: Any, operators: Any) -> None:
    model = build("double[1,8,16,16] x", "double y", "[out] y = Conv<pads=[1,1,1,1]>(x, w)", w=R.normal(size=(2, 8, 3, 3)))
    after = rewritten(model, blocks.BlockIntoChannels(2, 2))
    assert operators(after) == ["Conv", "DepthToSpace"]
    assert next(iter(after.graph.graph)).name == "out"
    assert operators(rewritten(model, blocks.BlockIntoChannels(1, 4))) == ["Conv", "Reshape", "Transpose", "Reshape"]


def test_a_filter_over_one_channel_reads_a_stride_at_once(build: Any, operators: Any) -> None:
    model = build("double[1,1,640] x", "double y", "[stft] y = Conv<strides=[128]>(x, w)", w=R.normal(size=(6, 1, 256)))
    assert operators(rewritten(model, strides.StrideIntoChannels())) == ["Reshape", "Transpose", "Conv"]


def test_what_fills_the_vector_registers_stays(build: Any, operators: Any) -> None:
    model = build("double[1,8,16,16] x", "double y", "y = Conv<strides=[2,2]>(x, w)", w=R.normal(size=(16, 8, 2, 2)))
    assert operators(rewritten(model, *REWRITES)) == ["Conv"]
