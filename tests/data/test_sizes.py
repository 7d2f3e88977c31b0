"""The sizes of free dimensions: as asked, shared by name, else as the data has them."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.errors import InputError
from optimizer.model import TensorSpec
from optimizer.plan import Shape
from optimizer.sizes import refuse_other_sizes, shapes_of, typical

INPUTS = (TensorSpec("ids", "int64", ("N", "L")), TensorSpec("mask", "int64", ("N", "L")), TensorSpec("bias", "float32", (1, "H")))
FEED = {"ids": np.arange(3)[None], "mask": np.ones((1, 3), np.int64), "bias": np.zeros((1, 2), np.float32)}
ASKED = {"ids": Shape((1, 2), (2, 4), (8, 16))}


def test_a_dimension_that_was_asked_for_has_its_range_in_every_input_and_others_the_data_s_size() -> None:
    found = shapes_of(FEED, INPUTS, ASKED)
    assert found == {"ids": ASKED["ids"], "mask": ASKED["ids"], "bias": Shape((1, 2), (1, 2), (1, 2))}


def test_engines_are_timed_in_the_usual_sizes() -> None:
    feed = typical(FEED, INPUTS, ASKED)
    assert feed["ids"].tolist() == [[0, 1, 2, 0], [1, 2, 0, 1]]
    assert feed["mask"].shape == (2, 4)
    np.testing.assert_array_equal(typical(FEED, INPUTS, {})["ids"], FEED["ids"])


def test_data_of_several_sizes_is_refused_with_the_range_to_ask_for() -> None:
    feeds = [{"x": np.zeros((1, size))} for size in (5, 3, 9)]
    with pytest.raises(InputError, match=r"--shapes x=1x3:1x5:1x9"):
        refuse_other_sizes(feeds, {"x": Shape((1, 5), (1, 5), (1, 5))})
    refuse_other_sizes(feeds[:1], {"x": Shape((1, 5), (1, 5), (1, 5))})
