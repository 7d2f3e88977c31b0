"""A Pad becomes the padding of the layer behind it only where both put the same numbers around the same pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.fusion import fuse
from optimizer.fusion.padding import PadInto

R = np.random.default_rng(6)
LAYERS = {
    "Conv": "Conv<pads=[0,1,0,0]>(y, w)",
    "AveragePool": "AveragePool<kernel_shape=[3,3]>(y)",
    "MaxPool": "MaxPool<kernel_shape=[3,3]>(y)",
}
FILLERS = {"Conv": 0.0, "AveragePool": 0.0, "MaxPool": -np.inf}


def padded(
    build: Any, layer: str, call: str | None = None, pads: Any = (0, 0, 1, 2, 0, 0, 2, 1), mode: str = "constant", **changes: Any
) -> Any:
    constants = {"pads": np.array(pads), "filler": FILLERS[layer]} | changes
    if layer == "Conv":
        constants["w"] = R.normal(size=(2, 3, 3, 3))
    body = f'["m.pad"] y = Pad<mode="{mode}">(x, pads, filler) ["m.layer"] z = {call or LAYERS[layer]}'
    return build("double[2,3,6,6] x", "double z", body, **constants)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_pad_becomes_padding_of_the_layer(build: Any, fused: Any, operators: Any, layer: str) -> None:
    after = fused(padded(build, layer))
    assert operators(after) == [layer]
    assert [each.name for each in after.layers] == ["m.pad+layer"]


def test_the_average_counts_what_the_pad_put_there(build: Any, fused: Any) -> None:
    after = fused(padded(build, "AveragePool"))
    assert next(iter(after.graph.graph)).attributes.get_int("count_include_pad") == 1


@pytest.mark.parametrize(
    ("layer", "changes", "reason"),
    [
        ("Conv", {"filler": 1.0}, "the Pad does not put 0"),
        ("MaxPool", {"filler": 0.0}, "the Pad does not put -inf"),
        ("Conv", {"mode": "reflect"}, "the Pad repeats pixels instead of a constant"),
        (
            "Conv",
            {"pads": (0, 1, 1, 1, 0, 0, 1, 1), "call": "Conv(y, v)", "v": R.normal(size=(2, 4, 3, 3))},
            "the Pad adds samples or channels",
        ),
        ("Conv", {"call": 'Conv<auto_pad="SAME_UPPER">(y, w)'}, "the layer finds its pads by itself"),
        (
            "AveragePool",
            {"call": "AveragePool<kernel_shape=[4,4], pads=[1,1,1,1]>(y)"},
            "the pooling leaves its own padding out of the average",
        ),
        ("AveragePool", {"call": "AveragePool<kernel_shape=[2,2]>(y)"}, "a window would lie outside the input"),
        ("MaxPool", {"call": "MaxPool<kernel_shape=[3,3], ceil_mode=1, strides=[2,2]>(y)"}, "the last window may reach over the edge"),
        ("MaxPool", {"call": "MaxPool<kernel_shape=[3,3], dilations=[2,2]>(y)"}, "the window has holes"),
    ],
)
def test_a_pad_that_says_something_else_is_left_alone(
    build: Any, fused: Any, operators: Any, reasons: Any, layer: str, changes: dict[str, Any], reason: str
) -> None:
    model = padded(build, layer, **changes)
    assert operators(fused(model)) == ["Pad", layer]
    assert reasons(model, PadInto(layer)) == {reason}


def test_indices_of_a_padded_maximum_keep_the_pad(build: Any, operators: Any) -> None:
    body = "y = Pad(x, pads, filler) z, i = MaxPool<kernel_shape=[3,3]>(y)"
    constants = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "filler": -np.inf}
    assert operators(fuse(build("double[2,3,6,6] x", "double z, int64 i", body, **constants))) == ["Pad", "MaxPool"]


def test_a_pad_that_cuts_pixels_off_is_left_alone(build: Any, reasons: Any) -> None:
    assert reasons(padded(build, "Conv", pads=(0, 0, -1, 0, 0, 0, 1, 0)), PadInto("Conv")) == {"the Pad cuts pixels off"}


@given(pads=st.tuples(*[st.integers(0, 2)] * 4), axes=st.sampled_from([(2, 3), (3, 2), (-1, -2)]))
def test_pads_of_chosen_axes_land_on_those_axes(
    build: Any, fused: Any, operators: Any, pads: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    body = "y = Pad(x, pads, , axes) z = Conv(y, w)"
    constants = {"pads": np.array(pads), "axes": np.array(axes), "w": R.normal(size=(2, 3, 3, 3))}
    assert operators(fused(build("double[2,3,6,6] x", "double z", body, **constants))) == ["Conv"]
