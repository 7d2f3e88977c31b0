"""What every reader gives, and what it is told of the model."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import InputError
from optimizer.model import TensorSpec
from optimizer.plan import Shape
from optimizer.preprocessing import Preprocessing
from optimizer.provenance import sha256_of_file

T = TypeVar("T")

Row = dict[str, NDArray[Any]]
"""Arrays of one sample by name, each with a sample axis of 1 first; `x` is the one input that needs data."""

LABELS = ("y", "label", "labels")

MANY_BYTES = 1 << 31
"""A single sample of more than 2 GiB is taken for a damaged header rather than for data."""


@dataclass(frozen=True, kw_only=True)
class Reader(ABC):
    """Rows of a data set, the same at every iteration, one in memory at a time.

    `labels` has one entry a row; `notes` is what a user should know of how the data was read; `starts` are the rows at which a
    recording begins, for models that carry a state from row to row.
    """

    name: str
    sha256: str
    length: int
    labels: NDArray[Any] | None
    notes: tuple[str, ...] = ()
    starts: tuple[int, ...] = (0,)

    @abstractmethod
    def rows(self, chosen: Sequence[int] | None = None) -> Iterator[Row]:
        """The rows at the places `chosen`, which rise; all where it is None."""


def at(places: Sequence[int] | None, items: Iterable[T]) -> Iterator[T]:
    """The items at `places`, which rise; all where it is None. What lies behind the last is not gone through."""
    wanted = None if places is None else set(places)
    for index, item in enumerate(items):
        if places is not None and (not places or index > places[-1]):
            return
        if wanted is None or index in wanted:
            yield item


@dataclass(frozen=True)
class Asked:
    """What a reader is told: the model's inputs, what optimize.toml says of them, and where things are looked up.

    `folder` is the user's; `model` the model's file or folder, where it is at hand; `shapes` are the sizes of `--shapes`.
    """

    inputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing
    folder: Path
    model: Path | None = None
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    @property
    def wanted(self) -> tuple[TensorSpec, ...]:
        """The inputs that data must hold."""
        return self.preprocessing.wanted(self.inputs)

    @property
    def single(self) -> TensorSpec | None:
        """The one input that data must hold; None where there are several."""
        return self.wanted[0] if len(self.wanted) == 1 else None


def files_in_classes(folder: Path, endings: Sequence[str]) -> tuple[tuple[Path, ...], NDArray[np.int64] | None]:
    """Files with one of `endings` in class folders, each with its folder's place in alphabetical order; else those in `folder` itself.

    Raises:
        InputError: some lie in class folders and some beside them.
    """
    flat, classed = (
        tuple(sorted(file for file in folder.glob(pattern) if file.suffix.lower() in endings and not file.name.startswith(".")))
        for pattern in ("*", "*/*")
    )
    if flat and classed:
        raise InputError(
            f"{folder.name} holds {flat[0].name} beside the class folder {classed[0].parent.name}.",
            "Put every file into a folder of its class.",
        )
    classes = sorted({file.parent.name for file in classed})
    labels = np.array([classes.index(file.parent.name) for file in classed], np.int64)
    return (classed, labels) if classed else (flat, None)


def sha256_of_files(files: Iterable[Path], folder: Path) -> str:
    """Hex SHA-256 over the names, as seen from `folder`, and the contents of `files`, in their order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()} {sha256_of_file(file)}\n".encode())
    return digest.hexdigest()


def joined_labels(parts: Sequence[NDArray[Any]], name: str) -> NDArray[Any] | None:
    """Labels of several files or batches as one array; None where there are none.

    Raises:
        InputError: they differ in form.
    """
    if len({(part.shape[1:], part.dtype.kind in "biuf") for part in parts}) > 1:
        raise InputError(f"The labels in {name} differ in form from sample to sample.", "Give labels of one form.")
    return np.concatenate(parts) if parts else None
