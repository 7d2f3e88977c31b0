"""Tables: columns find their inputs by name or order, labels are numbers or names, and rows that lack something are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import parquet

from optimizer.errors import InputError

DATA = {"age": [30, 41, 25], "income": [1.5, 2.5, -3.0], "visits": [7, 0, 2], "label": [0, 1, 1]}


def written(folder: Path, ending: str, data: dict[str, list]) -> str:
    """`data`, a list a column, as a file of that kind."""
    path = folder / f"t.{ending}"
    rows = [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]
    if ending == "csv":
        path.write_text("\n".join([",".join(data), *(",".join(str(value) for value in row.values()) for row in rows)]) + "\n")
    elif ending == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        parquet.write_table(arrow.table(data), path, row_group_size=2)
    return path.name


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_one_input_takes_the_feature_columns_in_their_order_and_is_told_so(tmp_path: Path, opened: Any, ending: str) -> None:
    samples = opened(written(tmp_path, ending, DATA), x=("n", 3))
    np.testing.assert_allclose([feed["x"][0] for feed in samples], np.array([DATA["age"], DATA["income"], DATA["visits"]]).T)
    assert samples.labels.tolist() == [0, 1, 1]
    assert samples.notes == (f"The input 'x' takes these columns of t.{ending}, in this order: age, income, visits.",)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_inputs_take_columns_of_their_name_and_the_one_without_any_takes_the_rest(tmp_path: Path, opened: Any, ending: str) -> None:
    data = {"user": [3, 1], "price": [0.5, 1.5], "item": [9, 8], "stock": [2.0, 4.0], "y": [1, 0]}
    samples = opened(written(tmp_path, ending, data), user=("int64", ("n",)), item=("int64", ("n", 1)), dense=("n", 2))
    feed = list(samples)[1]
    assert (feed["user"].dtype, feed["user"].tolist()) == (np.int64, [1])
    assert feed["item"].tolist() == [[8]]
    assert feed["dense"].tolist() == [[1.5, 4.0]]
    assert samples.notes == (f"The input 'dense' takes these columns of t.{ending}, in this order: price, stock.",)


def test_numbered_columns_belong_to_the_input_they_are_named_after_and_unused_ones_are_told(tmp_path: Path, opened: Any) -> None:
    data = {"dense_0": [1, 2], "dense_1": [3, 4], "id": [5, 6], "when": [7, 8]}
    samples = opened(written(tmp_path, "csv", data), dense=("n", 2), id=("int64", ("n",)))
    assert list(samples)[1]["dense"].tolist() == [[2, 4]]
    assert samples.notes[1] == "Columns of t.csv that no input takes: when."


def test_lists_in_a_column_are_a_sample_each(tmp_path: Path, opened: Any) -> None:
    samples = opened(written(tmp_path, "parquet", {"x": [[1.0, 2.0], [3.0, 4.0]]}), x=("n", 2))
    assert [feed["x"].tolist() for feed in samples] == [[[1, 2]], [[3, 4]]]


def test_labels_that_are_names_are_numbered_in_alphabetical_order_and_told(tmp_path: Path, opened: Any) -> None:
    samples = opened(written(tmp_path, "csv", {"x": [1, 2, 3], "label": ["spam", "ham", "spam"]}), x=("n", 1))
    assert samples.labels.tolist() == [1, 0, 1]
    assert samples.notes == ("Labels in t.csv are names, numbered in alphabetical order: ham 0, spam 1.",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a,b\n1,2\n3\n", "Line 3 of t.csv has 1 values, the header 2"),
        ("a,b\n1,2,3\n", "Line 2 of t.csv has 3 values"),
        ("a,b\n1,\n", "Row 1 of t.csv has no 'b'"),
        ("a,b,y\n1,2,0\n1,2,\n", "Row 2 of t.csv has no 'y'"),
        ("a,b\n1,red\n", "'red', which is no number"),
        ("a,a\n1,2\n", "does not name each column once"),
        ("a,b\n", "holds no samples"),
        ("", "holds no samples"),
        ("a,b,c\n1,2,3\n", r"takes 2 numbers, and t.csv has 3 columns for it: a, b, c"),
        ('a,b\n1,"2', "not a readable .csv"),
        ("a,b\n1,2\0\n", "no number|not a readable"),
        ("y\n1\n", "no column for the input 'x'"),
        ("a,b\n" + "9" * 5000 + ",1\n", "no number|beyond float32"),
        ("a,b\n" + "1" * 200000 + ",1\n", "not a readable .csv"),
    ],
)
def test_a_csv_that_makes_no_sense_is_refused(tmp_path: Path, opened: Any, text: str, reason: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=reason):
        list(opened("t.csv", x=("n", 2)))


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_text_that_is_not_utf_8_is_refused(tmp_path: Path, opened: Any, ending: str) -> None:
    (tmp_path / f"t.{ending}").write_bytes('{"x": "Müller"}\nMüller\n'.encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        list(opened(f"t.{ending}", x=("n", 1)))


@pytest.mark.parametrize("line", ["[1, 2]", "{", '{"a": ' + "[" * 100000, '{"a": {"b": 1}}', '{"a": [1, [2]]}', '{"a": null}', '{"b": 1}'])
def test_lines_that_are_no_records_are_refused(tmp_path: Path, opened: Any, line: str) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n' + line + "\n")
    with pytest.raises(InputError, match=r"t\.jsonl"):
        list(opened("t.jsonl", x=("n", 1)))


def test_parquet_that_is_damaged_is_refused_wherever_it_is(tmp_path: Path, opened: Any) -> None:
    name = written(tmp_path, "parquet", {"x": list(range(5000))})
    whole = (tmp_path / name).read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        content = bytearray(whole[: generator.integers(1, len(whole) + 1)] if generator.integers(2) else whole)
        for place in generator.integers(0, len(content), 30):
            content[place] = generator.integers(256)
        (tmp_path / name).write_bytes(content)
        try:
            list(opened(name, x=("n", 1)))
        except InputError:
            refused += 1
    assert refused > 40


def test_missing_values_in_parquet_are_refused_with_their_row(tmp_path: Path, opened: Any) -> None:
    name = written(tmp_path, "parquet", {"x": [1, None, 3]})
    with pytest.raises(InputError, match=r"Row 2 of t\.parquet has no 'x'"):
        list(opened(name, x=("n", 1)))
