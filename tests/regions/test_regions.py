"""A model cut into regions computes what the whole does, and a cut that can't be made is refused in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.ranges import Range
from optimizer.errors import InputError
from optimizer.model import SHAPES, Model
from optimizer.plan import Plan, Shape
from optimizer.reference import Reference, float64
from optimizer.regions import Part, joined, split

Make = Callable[[str], Model]
Cut = Callable[..., Plan]
Arrays = dict[str, NDArray[Any]]

SKIPS = """net (float[1,8] x, float[1,8] late) => (float[1,8] y, float[1,8] g, float[1,8] z) <float[8,8] a, float[8,8] b> {
  [one] f = MatMul(x, a) [two] g = Relu(f) [three] h = MatMul(g, b) [four] i = Add(h, g)
  [five] j = MatMul(i, a) [six] k = Add(j, late) [seven] y = Add(k, f) [eight] z = Neg(x)
}"""
"""A skip over a whole region (f), one into the next (g), an output in the middle, an input that only the last region reads, and one
that both ends do; a weight that two regions share."""

ENDS = """net (float[2,3] x) => (float[2,3] x2, float[2,3] constant, float[2,3] y) <float[2,3] constant> {
  [one] f = Neg(x) [carried] c = Cast<to = 1>(x) [two] x2 = Add(f, c) [three] y = Mul(x2, constant)
}"""

BRANCH = """net (float[4] x, bool c) => (float[4] y) <float[4] w> {
  [one] a = Neg(x) [two] b = Mul(a, w)
  [three] y = If(c) <then_branch = one () => (float[4] t) { t = Add(a, b) }, else_branch = other () => (float[4] e) { e = Sub(x, w) }>
}"""

FREE = """net (float[batch,steps,4] x, float[batch,4] s) => (float[batch,steps,4] y, float[batch,n,4] odd) <float[4,4] w> {
  [one] a = MatMul(x, w) [two] b = Relu(a) [three] y = Add(b, x)
  [four] axes = Constant<value_ints = [1]>() [five] u = Unsqueeze(s, axes) [six] odd = Concat<axis = 1>(b, u)
}"""


def feeds(model: Model, **free: int) -> Arrays:
    draw = np.random.default_rng(5)
    found: Arrays = {}
    for spec in model.inputs:
        shape = [size if isinstance(size, int) else free[size] for size in spec.shape]
        found[spec.name] = np.array(True) if spec.dtype == "bool" else draw.standard_normal(shape).astype(np.float32)
    return found


def in_turn(parts: tuple[Part, ...], known: Arrays, run: Callable[[Any, Arrays], Mapping[str, NDArray[Any]]]) -> Arrays:
    known = dict(known)
    for part in parts:
        known |= run(part.model.graph, {spec.name: known[spec.name] for spec in part.model.inputs})
    return known


@pytest.mark.parametrize(
    ("text", "regions"),
    [
        (SKIPS, ("one two three four five six seven eight",)),
        (SKIPS, ("one two", "three four", "five six seven eight")),
        (SKIPS, ("one", "two", "three", "four five", "six seven", "eight")),
        (SKIPS, ("eight one", "two three four five", "six seven")),
        (ENDS, ("one", "two three")),
        (BRANCH, ("one", "two", "three")),
        (BRANCH, ("one two", "three")),
    ],
)
def test_the_parts_compute_exactly_what_the_whole_does(text: str, regions: tuple[str, ...], model: Make, cut: Cut) -> None:
    net = model(text)
    given, parts = feeds(net), split(net, cut(*regions))
    wanted, found = float64(net.graph, given), in_turn(parts, given, float64)
    again = float64(joined(net.graph, [part.model.graph for part in parts]), given)
    assert wanted.keys() == again.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(again[name], array)


def test_each_part_takes_and_gives_no_more_than_it_has_to(model: Make, cut: Cut) -> None:
    parts = split(model(SKIPS), cut("one two", "three four", "five six seven eight"))
    assert [{spec.name for spec in part.model.inputs} for part in parts] == [{"x"}, {"g"}, {"i", "late", "f", "x"}]
    assert [{spec.name for spec in part.model.outputs} for part in parts] == [{"f", "g"}, {"i"}, {"y", "z"}]
    assert [list(part.model.graph.graph.initializers) for part in parts] == [["a"], ["b"], ["a"]]
    assert [layer.name for layer in parts[0].model.layers] == ["one", "two"]


def test_each_part_has_the_decisions_about_its_own_layers_and_tensors(model: Make, cut: Cut) -> None:
    found = Range("minmax", -1.0, 1.0)
    plan = cut(
        "one two three",
        "four five six seven eight",
        precisions={"one": "int8", "five": "bf16"},
        reasons={"two": "of the first", "six": "of the second"},
        ranges={"x": found, "f": found, "j": found},
        knobs={"threads": 2},
    )
    first, second = (part.plan for part in split(model(SKIPS), plan))
    assert (first.backend, first.precisions, first.reasons) == ("onnxruntime", {"one": "int8"}, {"two": "of the first"})
    assert (second.backend, second.precisions, second.reasons) == ("openvino", {"five": "bf16"}, {"six": "of the second"})
    assert (set(first.ranges), set(second.ranges)) == ({"x", "f"}, {"x", "f", "j"})
    assert first.regions == second.regions == ()
    assert first.knobs == second.knobs == {"threads": 2}


def test_free_dimensions_stay_free_and_their_sizes_go_along_as_far_as_they_follow(model: Make, cut: Cut) -> None:
    net = model(FREE)
    net.graph.metadata_props[SHAPES] = json.dumps({"x": [[1, 2, 4], [1, 3, 4], [5, 7, 4]], "s": [[1, 4], [1, 4], [5, 4]]})
    shapes = {name: Shape((1, 4), (1, 4), (5, 4)) for name in ("x", "s")}
    first, second = split(net, cut("one two", "three five six", shapes=shapes))
    assert set(first.plan.shapes) == {"x"}
    assert {spec.name: spec.shape for spec in second.model.inputs}["b"] == ("batch", "steps", 4)
    assert json.loads(first.model.graph.metadata_props[SHAPES]) == {"x": [[1, 2, 4], [1, 3, 4], [5, 7, 4]]}
    assert json.loads(second.model.graph.metadata_props[SHAPES])["b"] == [[1, 2, 4], [1, 3, 4], [5, 7, 4]]
    for sizes in ({"batch": 1, "steps": 2}, {"batch": 3, "steps": 5}):
        given = feeds(net, **sizes)
        found = in_turn((first, second), given, lambda graph, arrays: Reference(graph).run(arrays))
        for name, array in Reference(net.graph).run(given).items():
            np.testing.assert_array_equal(found[name], array)


def test_parts_that_were_changed_inside_are_joined_under_names_that_are_free(model: Make, cut: Cut) -> None:
    net = model(SKIPS)
    parts = [part.model.graph for part in split(net, cut("one two three four", "five six seven eight"))]
    for part, layer in zip(parts, ("three", "five"), strict=True):
        # As precision does: in either part a node, a tensor and a constant of the same names.
        node = next(node for node in part.graph if node.name == layer)
        node.name = node.outputs[0].name = "same"
        part.graph.initializers["a"].name = "constant"
    given, whole = feeds(net), joined(net.graph, parts)
    assert len({node.name for node in whole.graph}) == len({value.name for node in whole.graph for value in node.outputs}) == 8
    for name, array in Reference(net.graph).run(given).items():
        np.testing.assert_array_equal(Reference(whole).run(given)[name], array)


@pytest.mark.parametrize(
    ("regions", "told"),
    [
        (("one two three four", "five six seven"), "'eight' is in no region"),
        (("one two three four", "five six seven eight nowhere"), "a layer 'nowhere', which this model does not have"),
        (("one two three four", "four five six seven eight"), "'four' in two places"),
        (("one one two three four", "five six seven eight"), "'one' in two places"),
        (("one two five six", "three four seven eight"), "'five' in region 1 of the plan reads what 'four' makes, in region 2"),
        (("five six seven eight", "one two three four"), "in region 1 of the plan reads what"),
        (("", "one two three four five six seven eight"), "makes nothing that is read"),
    ],
)
def test_a_cut_that_can_not_be_made_is_refused_in_words(regions: tuple[str, ...], told: str, model: Make, cut: Cut) -> None:
    with pytest.raises(InputError, match=told) as refused:
        split(model(SKIPS), cut(*regions))
    assert refused.value.remedy


def test_what_is_no_tensor_of_known_type_and_rank_is_not_handed_over(model: Make, cut: Cut) -> None:
    net = model("net (float[4] x) => (float[4] y) { [one] a = Neg(x) [two] y = Neg(a) }")
    value = next(iter(net.graph.graph)).outputs[0]
    for change in ({"shape": None}, {"type": None}):
        was = value.shape, value.type
        for name, none in change.items():
            setattr(value, name, none)
        with pytest.raises(InputError, match="'a' can't be handed over"):
            split(net, cut("one", "two"))
        value.shape, value.type = was
    assert len(split(net, replace(cut("one two")))) == 1
