"""A generator of the user's: `file.py:function` or `module:function`, run in a child process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import InputError
from optimizer.process import user_arrays
from optimizer.provenance import told
from optimizer.readers.rows import LABELS, Reader, Row, at, joined_labels


@dataclass(frozen=True)
class FunctionReader(Reader):
    """Rows out of a generator of the user's; each run must give what the first one gave."""

    reference: str
    folder: Path

    def rows(self, chosen: Sequence[int] | None = None) -> Iterator[Row]:
        return at(chosen, self._every())

    def _every(self) -> Iterator[Row]:
        digest = hashlib.sha256()
        for row in _rows(self.reference, self.folder):
            _feed(digest, row)
            yield row
        if digest.hexdigest() != self.sha256:
            raise InputError(
                f"{self.name} gave other data at a second run.", "Seed what is random in it, so that every run gives the same samples."
            )


def function(reference: str, folder: Path) -> FunctionReader:
    """The reader of what `reference`, seen from `folder`, yields; it is run once to count, to hash and for its labels."""
    digest = hashlib.sha256()
    labels: list[NDArray[Any]] = []
    count = 0
    for row in _rows(reference, folder):
        _feed(digest, row)
        count += 1
        labels.extend(row[name] for name in LABELS if name in row)
    if labels and len(labels) != count:
        raise InputError(f"{reference} gave {len(labels)} labels for {count} samples.", "Yield a label with every sample, or with none.")
    return FunctionReader(
        reference, folder, name=told(reference, folder), sha256=digest.hexdigest(), length=count, labels=joined_labels(labels, reference)
    )


def _rows(reference: str, folder: Path) -> Iterator[Row]:
    """Single rows out of the batches that the function yields."""
    for batch in user_arrays(reference, folder):
        sizes = {name: len(array) if array.ndim else 0 for name, array in batch.items()}
        if not sizes or len(set(sizes.values())) > 1 or 0 in sizes.values():
            raise InputError(f"{reference} yielded arrays of lengths {sizes}.", "Yield dicts of arrays with one common sample axis first.")
        for index in range(next(iter(sizes.values()))):
            yield {name: array[index : index + 1] for name, array in batch.items()}


def _feed(digest: Any, row: Mapping[str, NDArray[Any]]) -> None:
    for name in sorted(row):
        array = np.ascontiguousarray(row[name])
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
