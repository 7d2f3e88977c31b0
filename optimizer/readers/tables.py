"""Tables of numbers: each input takes the columns of its name, or what columns are left, in their order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import InputError
from optimizer.model import TensorSpec
from optimizer.provenance import sha256_of_file
from optimizer.readers.records import Records, numbered, numbers
from optimizer.readers.rows import LABELS, Asked, Reader, Row, at


@dataclass(frozen=True)
class TableReader(Reader):
    """Rows of a table, (1, columns) or (1,) as the rank of the input is; `columns` are those of each input."""

    records: Records
    inputs: tuple[TensorSpec, ...]
    columns: Mapping[str, tuple[str, ...]]

    def rows(self, chosen: Sequence[int] | None = None) -> Iterator[Row]:
        for number, record in at(chosen, enumerate(self.records, 1)):
            yield {spec.name: self._array(spec, record, number) for spec in self.inputs}

    def _array(self, spec: TensorSpec, record: Mapping[str, Any], number: int) -> NDArray[Any]:
        cells = [
            numbers(self.records.value(record, column, number), f"{column!r} in row {number:,} of {self.name}")
            for column in self.columns[spec.name]
        ]
        if len(cells) == 1:
            single = cells[0]
            return single.reshape(1, *(single.shape or (1,) * (len(spec.shape) - 1)))
        if any(cell.ndim for cell in cells):
            raise InputError(
                f"Row {number:,} of {self.name} has a list where {spec.name!r} takes one number a column.", "Write a column each."
            )
        return np.stack(cells)[np.newaxis]


def table(path: Path, asked: Asked) -> TableReader:
    """The reader of a .csv, .jsonl or .parquet whose columns are numbers.

    Raises:
        InputError: columns and inputs can't be brought together.
    """
    records = Records(path)
    features = [column for column in records.columns if column not in LABELS]
    columns = _columns(features, asked.wanted, path.name)
    length, labels = records.counted()
    array, told = numbered(labels, {}, path.name) if labels is not None else (None, "")
    notes = (*_remarks(features, columns, path.name), *((told,) if told else ()))
    return TableReader(
        records, asked.wanted, columns, name=path.name, sha256=sha256_of_file(path), length=length, labels=array, notes=notes
    )


def _columns(features: list[str], inputs: tuple[TensorSpec, ...], name: str) -> dict[str, tuple[str, ...]]:
    """The columns that each input takes: one of its name, `NAME_0` to `NAME_k`, or all that are left for the one input without any."""
    columns = {spec.name: found for spec in inputs if (found := _named(spec.name, features))}
    without = [spec for spec in inputs if spec.name not in columns]
    if without:
        taken = {column for several in columns.values() for column in several}
        left = tuple(column for column in features if column not in taken)
        if len(without) > 1 or not left:
            raise InputError(
                f"{name} has no column for the input {without[0].name!r}.",
                f"Name columns as the inputs: {', '.join(spec.name for spec in inputs)}; there are {', '.join(features) or 'none'}.",
            )
        columns[without[0].name] = left
    for spec in inputs:
        _refuse_another_width(spec, columns[spec.name], name)
    return columns


def _named(name: str, features: list[str]) -> tuple[str, ...]:
    if name in features:
        return (name,)
    several: list[str] = []
    while (column := f"{name}_{len(several)}") in features:
        several.append(column)
    return tuple(several)


def _refuse_another_width(spec: TensorSpec, columns: tuple[str, ...], name: str) -> None:
    width = spec.shape[1] if len(spec.shape) == 2 else 1
    if len(columns) > 1 and isinstance(width, int) and width != len(columns):
        raise InputError(
            f"The input {spec.name!r} takes {width} numbers, and {name} has {len(columns)} columns for it: {', '.join(columns)}.",
            f"Leave out what is no feature, or name the columns {spec.name}_0, {spec.name}_1 ...",
        )


def _remarks(features: list[str], columns: Mapping[str, tuple[str, ...]], name: str) -> list[str]:
    """Which columns went where, unless an input and its one column have one name."""
    notes = [
        f"The input {spec!r} takes these columns of {name}, in this order: {', '.join(taken)}."
        for spec, taken in columns.items()
        if taken != (spec,)
    ]
    used = {column for taken in columns.values() for column in taken}
    if unused := [column for column in features if column not in used]:
        notes.append(f"Columns of {name} that no input takes: {', '.join(unused)}.")
    return notes
