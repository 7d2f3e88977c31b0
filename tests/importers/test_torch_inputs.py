"""The types of a network's inputs are found by trying, and its sizes tried as it takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from optimizer.errors import InputError

torch = pytest.importorskip("torch")

BATCH = [[1], [2], [8]]


@pytest.fixture(scope="module")
def inputs(part: Any) -> Any:
    return part("optimize_inputs")


def recommender() -> Callable[..., Any]:
    users, genres, dense = torch.nn.Embedding(10, 4), torch.nn.Embedding(7, 4), torch.nn.Linear(3, 4)
    return lambda user, genre, numbers: users(user) * dense(numbers) + genres(genre)


def test_integers_and_numbers_are_told_apart_whatever_they_are_called(inputs: Any) -> None:
    shapes = {"user": BATCH, "numbers": [[1, 3], [2, 3], [8, 3]], "genre": BATCH}
    found = inputs.Inputs(recommender(), shapes, {})
    assert found.dtypes == {"user": torch.int64, "numbers": torch.float32, "genre": torch.int64}
    assert found.notes == [f"Input {name!r} is int64, the type that forward runs with." for name in ("user", "genre")]


def test_a_mask_may_have_to_be_boolean(inputs: Any) -> None:
    found = inputs.Inputs(lambda x, mask: x.masked_fill(mask, 0.0), {"x": BATCH, "mask": BATCH}, {})
    assert found.dtypes == {"x": torch.float32, "mask": torch.bool}


def test_what_runs_with_no_types_gives_the_first_error(inputs: Any) -> None:
    with pytest.raises(RuntimeError, match="must match"):
        inputs.Inputs(lambda a, b: a + b, {"a": [[2]] * 3, "b": [[3]] * 3}, {})


def test_sizes_that_are_given_alike_move_together_and_then_alone_but_not_to_one(inputs: Any, channel: Any) -> None:
    found = inputs.Inputs(lambda a, b: a + b, {"a": BATCH, "b": BATCH}, {})
    tried = [(words, tuple(feeds["a"].shape), tuple(feeds["b"].shape)) for words, feeds in found.probes(channel)]
    assert tried == [("the usual shape", (2,), (2,)), ("a[0] = 1", (1,), (1,)), ("a[0] = 3", (3,), (3,))]
    apart = inputs.Inputs(lambda a, b: (a, b), {"a": BATCH, "b": BATCH}, {})
    tried = [(tuple(feeds["a"].shape), tuple(feeds["b"].shape)) for _, feeds in apart.probes(channel)]
    assert {((3,), (2,)), ((2,), (3,)), ((3,), (3,))} <= set(tried)


def test_a_size_at_which_it_never_runs_is_refused(inputs: Any, channel: Any) -> None:
    found = inputs.Inputs(lambda a: a + torch.ones(2), {"a": [[2], [2], [8]]}, {})
    with pytest.raises(InputError, match="runs at no other size of dimension 0 of 'a' than 2"):
        list(found.probes(channel))


def test_inputs_that_an_export_dropped_are_made_as_large_as_those_beside_them(inputs: Any) -> None:
    shapes = {"ids": [[1, 1], [1, 4], [4, 9]], "types": [[1, 1], [1, 4], [4, 9]]}
    labels = {(name, axis): label for name in shapes for axis, label in enumerate(("batch", "sequence"))}
    found = inputs.Inputs(lambda ids, types: ids + types, shapes, labels, dict.fromkeys(shapes, torch.int64))
    given = torch.ones(3, 7, dtype=torch.int64)
    completed = found.completed({"ids": given})
    assert completed["ids"] is given
    assert completed["types"].shape == (3, 7)
    assert found.named() == {name: {0: "batch", 1: "sequence"} for name in shapes}
