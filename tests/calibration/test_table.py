"""A table comes back from its file as it was, names the field that makes it stale, and refuses what it did not write."""

from __future__ import annotations

import json

import numpy as np
import pytest

from calibration.observers import Statistics
from calibration.table import Table
from optimizer.errors import InputError

KEY = {"model": "ab", "data": "cd", "preprocessing": "none"}


def seen(seed: int) -> Statistics:
    return Statistics.of(np.random.default_rng(seed).standard_normal(10_000).astype(np.float32))


def test_a_table_comes_back_as_it_was() -> None:
    table = Table(KEY, {"x": seen(0), "empty": Statistics.nothing(), "masked": Statistics.of(np.array([-np.inf, 1], np.float32))}, 7)
    assert Table.from_json(table.to_json()) == table
    assert table.to_json() == Table.from_json(table.to_json()).to_json()


def test_a_full_tensor_takes_few_bytes() -> None:
    assert len(Table(KEY, {"x": seen(0)}, 1).to_json()) < 20_000


def test_the_fields_that_differ_are_named() -> None:
    table = Table(KEY, {"x": seen(0)}, 1)
    assert table.differs(dict(reversed(KEY.items()))) == ()
    assert table.differs({**KEY, "data": "random"}) == ("data",)
    assert table.differs({"model": "ab", "data": "other", "version of numpy": "2"}) == ("data", "preprocessing", "version of numpy")


def test_merged_tables_are_the_table_of_all_samples() -> None:
    whole = seen(0).merge(seen(1))
    assert Table(KEY, {"x": seen(0)}, 2).merge(Table(KEY, {"x": seen(1)}, 3)) == Table(KEY, {"x": whole}, 5)
    with pytest.raises(InputError, match="data"):
        Table(KEY, {"x": seen(0)}, 2).merge(Table({**KEY, "data": "x"}, {"x": seen(1)}, 3))
    with pytest.raises(InputError, match="different tensors"):
        Table(KEY, {"x": seen(0)}, 2).merge(Table(KEY, {"y": seen(1)}, 3))


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"format":2,"key":{},"samples":1,"statistics":{}}',
        b'{"format":1,"key":{},"samples":1,"statistics":{"x":{}}}',
    ],
)
def test_what_is_no_table_is_refused_with_the_name_of_the_file(broken: bytes) -> None:
    with pytest.raises(InputError, match=r"calibration\.json can't be read"):
        Table.from_json(broken, "calibration.json")


@pytest.mark.parametrize(
    "change",
    [
        {"counts": [1, 2]},
        {"steps": [5, 0, 1]},
        {"steps": [0, 1, 70000]},
        {"counts": [1, -1, 1]},
        {"minimum": None},
        {"counts": [1, "a", 2]},
    ],
)
def test_counts_that_make_no_sense_are_refused(change: dict[str, object]) -> None:
    document = json.loads(Table(KEY, {"x": Statistics.of(np.array([1, 2, 3], np.float32))}, 1).to_json())
    document["statistics"]["x"] |= change
    with pytest.raises(InputError, match="can't be read"):
        Table.from_json(json.dumps(document).encode())
