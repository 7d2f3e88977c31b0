"""Records of named values, one at a time: .csv with a header line, .jsonl with an object a line, .parquet read by row group."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isinf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import InputError, UnavailableError
from optimizer.readers.rows import LABELS

ENDINGS = (".csv", ".jsonl", ".parquet")

Record = Mapping[str, Any]

_BATCH = 1024
"""Records of a parquet file that are decoded at once."""


@dataclass(frozen=True)
class Records:
    """The records of a file, the same at every iteration: text in a .csv, numbers, text or lists elsewhere."""

    path: Path

    def __iter__(self) -> Iterator[Record]:
        """Raises InputError where the file is damaged, at the record where that shows; UnavailableError without pyarrow."""
        return {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[self.path.suffix.lower()](self.path)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the first record's values, in order.

        Raises:
            InputError: there is no record.
        """
        first = next(iter(self), None)
        if first is None:
            raise InputError(f"{self.path.name} holds no samples.", "Give data with at least one sample.")
        return tuple(first)

    def counted(self) -> tuple[int, list[Any] | None]:
        """How many records there are and the label of each, read in one pass; None where there are no labels.

        Raises:
            InputError: some have a label and some have none.
        """
        column = next((name for name in LABELS if name in self.columns), None)
        labels: list[Any] = []
        count = 0
        for count, record in enumerate(self, 1):
            if column is not None:
                labels.append(self.value(record, column, count))
        return count, labels if column is not None else None

    def value(self, record: Record, column: str, row: int) -> Any:
        """A record's value in `column`; `row` counts from 1.

        Raises:
            InputError: it has none.
        """
        found = record.get(column)
        if found is None or (isinstance(found, str) and not found.strip() and column != "text"):
            raise InputError(
                f"Row {row:,} of {self.path.name} has no {column!r}.",
                "Fill it in (nan, if the model takes missing numbers), or leave the row out.",
            )
        return found


def numbers(values: Any, where: str) -> NDArray[Any]:
    """Values of a record as an array: int64 where all are whole numbers as they are written, else float64.

    Raises:
        InputError: one is no number; `where` names the place.
    """
    try:
        array = np.asarray(_number(values))
    except (ValueError, TypeError, OverflowError):
        raise InputError(
            f"{where} is {_short(values)}, which is no number.", "Give numbers; categories as the ids that training used."
        ) from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"{where} holds {_short(values)}, which are no numbers of one size.", "Give numbers, in lists of one length.")
    return array


def _number(value: Any) -> Any:
    """Text as the number it is; ValueError for another, OverflowError for one beyond float64."""
    if isinstance(value, str):
        with suppress(ValueError):
            if abs(whole := int(value)) < 1 << 63:
                return whole
        number = float(value)
        if isinf(number) and "inf" not in value.lower():
            raise OverflowError(value)
        return number
    return [_number(one) for one in value] if isinstance(value, Sequence) else value


def _short(value: Any) -> str:
    words = repr(value)
    return words if len(words) <= 40 else f"{words[:37]}..."


def numbered(labels: list[Any], names: Mapping[str, int], name: str) -> tuple[NDArray[Any], str]:
    """Labels as numbers, and what was made of them in words ("" for numbers).

    Text is looked up in `names` (the model's own), or numbered in alphabetical order where the model has none.

    Raises:
        InputError: labels of several kinds, or text that is not among the model's names.
    """
    try:
        array = numbers(labels, f"A label in {name}")
    except InputError:
        if not all(isinstance(label, str) for label in labels):
            raise
        found = sorted(set(labels))
        unknown = [label for label in found if label not in names] if names else []
        if unknown:
            raise InputError(
                f"The label {_short(unknown[0])} in {name} is none of the model's.", f"They are: {', '.join(map(_short, names))}."
            ) from None
        ids = names or {label: place for place, label in enumerate(found)}
        told = ", ".join(f"{label} {ids[label]}" for label in found[:10]) + (" ..." if len(found) > 10 else "")
        whose = "as the model's config.json has them" if names else "in alphabetical order"
        return np.array([ids[label] for label in labels], np.int64), f"Labels in {name} are names, numbered {whose}: {told}."
    return array, ""


def _csv(path: Path) -> Iterator[Record]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            header = next(lines, [])
            if len(set(header)) != len(header) or "" in header:
                raise InputError(f"The first line of {path.name} does not name each column once.", "Write a header line.")
            for cells in lines:
                if len(cells) != len(header):
                    if not cells:
                        continue
                    raise InputError(
                        f"Line {lines.line_num:,} of {path.name} has {len(cells)} values, the header {len(header)}.", "Correct that line."
                    )
                yield dict(zip(header, cells, strict=True))
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not UTF-8: {error.reason} at byte {error.start:,}.", "Convert it, with iconv for one.") from None
    except (csv.Error, OSError) as error:
        raise InputError(f"{path.name} is not a readable .csv: {error}.", "Write it again, values apart by commas.") from None


def _jsonl(path: Path) -> Iterator[Record]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise InputError(f"Line {number:,} of {path.name} is no JSON object.", 'Write lines like {"text": "...", "label": 1}.')
                yield record
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not UTF-8: {error.reason} at byte {error.start:,}.", "Convert it, with iconv for one.") from None
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path.name} is not readable as lines of JSON: {error}.", "Write an object a line.") from None


def _parquet(path: Path) -> Iterator[Record]:
    try:
        import pyarrow as arrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UnavailableError("Reading parquet needs pyarrow, which is not installed.", "pip install 'optimize[tables]'") from None
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH):
                yield from batch.to_pylist()
    except (arrow.ArrowException, OSError, ValueError, TypeError, MemoryError) as error:
        raise InputError(f"{path.name} is not a readable .parquet: {_first_line(error)}.", "Write it again.") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
