"""DATA words become Samples: read lazily, one at a time, hashed, prepared as the model takes them.

DATA is an .npz (arrays by input name, or `x` where the model has one input; `y` or `label` for labels), a folder of .npy or
.npz files (whose shapes may differ from file to file), images or .wav files alone or in class folders, a .wav, a table (.csv, .jsonl,
.parquet) of numbers or of texts, or `file.py:function`.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import InputError
from optimizer.model import TensorSpec
from optimizer.plan import Shape
from optimizer.preprocessing import Preprocessing
from optimizer.process import user_transform
from optimizer.readers import LABELS, Asked, Reader, Row, reader

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Samples:
    """Held-out or calibration data: iterating yields prepared feeds, one sample each, never two at a time in memory.

    A feed has the batch that the model declares, 1 where that is free; where it is n, n samples make a feed and an incomplete
    last one is left out.  `chosen` are the indices of feeds that are read, None for all.
    """

    source: str
    sha256: str
    inputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing
    labels: NDArray[Any] | None
    count: int
    reader: Reader
    folder: Path
    chosen: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return self.count if self.chosen is None else len(self.chosen)

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        with ExitStack() as stack:
            functions = {
                name: stack.enter_context(user_transform(how.function, self.folder))
                for name, how in self.preprocessing.inputs.items()
                if how.function is not None
            }
            for rows in self._chosen():
                yield self.preprocessing.apply_to_sized(_gathered([self.preprocessing.sized(row) for row in rows]), self.inputs, functions)

    def _chosen(self) -> Iterator[list[Row]]:
        """The chosen feeds as the data set holds them: the rows of each by input name, with a batch axis first."""
        wanted = self.preprocessing.wanted(self.inputs)
        batch = _batch(wanted)
        places = None if self.chosen is None else [index * batch + place for index in self.chosen for place in range(batch)]
        rows = (_named(row, self.inputs, wanted, self.source) for row in self.reader.rows(places))
        while len(feed := list(islice(rows, batch))) == batch:
            yield feed

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the data was read."""
        return self.reader.notes

    @property
    def starts(self) -> frozenset[int]:
        """Where a sequence of samples begins, counted in this selection: where a recording does, and where samples were left out."""
        own = self.chosen if self.chosen is not None else range(self.count)
        batch = _batch(self.preprocessing.wanted(self.inputs))
        begins = [start // batch for start in self.reader.starts]
        recording = [bisect_right(begins, index) for index in own]
        return frozenset(
            place for place in range(len(own)) if place == 0 or own[place] != own[place - 1] + 1 or recording[place] != recording[place - 1]
        )

    def take(self, indices: Sequence[int]) -> Samples:
        """These samples alone, in the data's own order; `indices` count within this selection."""
        own = self.chosen if self.chosen is not None else range(self.count)
        chosen = tuple(sorted(own[index] for index in indices))
        labels = None if self.labels is None else self.labels[sorted(indices)]
        return replace(self, chosen=chosen, labels=labels)

    def fingerprints(self) -> tuple[bytes, ...]:
        """A digest of each raw sample: equal samples of two data sets have equal ones, whatever file they lie in."""
        return tuple(_digest(rows) for rows in self._chosen())


def open_samples(
    words: str,
    inputs: tuple[TensorSpec, ...],
    preprocessing: Preprocessing,
    folder: Path,
    *,
    model: Path | None = None,
    shapes: Mapping[str, Shape] | None = None,
) -> Samples:
    """The samples that DATA `words` name, for a model with `inputs`; paths and modules are looked up from `folder`.

    `model` is the model's own file or folder, which may bring a tokenizer; `shapes` bound the lengths of texts.

    Raises:
        InputError: nothing there, unreadable, or not fitting the model in names, shapes or types (the first sample is tried).
    """
    preprocessing.check(inputs)
    source = reader(words, Asked(inputs, preprocessing, folder, model, shapes or {}))
    samples = Samples(source.name, source.sha256, inputs, preprocessing, None, 0, source, folder)
    batch = _batch(preprocessing.wanted(inputs))
    count, every = source.length, source.labels
    if count == 0:
        raise InputError(f"{source.name} holds no samples.", "Give data with at least one sample.")
    if every is not None and (every.dtype.kind not in "biuf" or not np.isfinite(every).all()):
        raise InputError(f"The labels in {source.name} are not all numbers.", "Give the number of each sample's class, or its value.")
    if every is not None and len(every) != count:
        raise InputError(f"{source.name} has {len(every)} labels for {count} samples.", "Give one label a sample.")
    feeds = count // batch
    if feeds == 0:
        raise InputError(
            f"{source.name} holds {count} samples, fewer than the model's fixed batch of {batch}.",
            "Give more, or set the batch with --shapes.",
        )
    every = None if every is None else every[: feeds * batch].reshape(feeds, batch, *every.shape[1:])
    samples = replace(samples, count=feeds, labels=_squeezed(every, batch))
    next(iter(samples.take([0])))
    return samples


def _squeezed(labels: NDArray[Any] | None, batch: int) -> NDArray[Any] | None:
    return labels if labels is None or batch > 1 else labels[:, 0]


def _batch(inputs: tuple[TensorSpec, ...]) -> int:
    """How many samples make a feed: the batch that every input declares, else 1."""
    sizes = {spec.shape[0] if spec.shape else 1 for spec in inputs}
    only = sizes.pop() if len(sizes) == 1 else 1
    return only if isinstance(only, int) and only > 0 else 1


def _gathered(rows: list[Row]) -> Row:
    """Rows as one feed.

    Raises:
        InputError: they differ in shape.
    """
    if len(rows) == 1:
        return rows[0]
    for name in rows[0]:
        shapes = {row[name].shape for row in rows}
        if len(shapes) > 1:
            one, other, *_ = sorted(shapes)
            raise InputError(
                f"Samples of shapes {one} and {other} can't make one batch for {name!r}.",
                "Bring them to one shape, or set the batch to 1 with --shapes.",
            )
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _named(row: Arrays, inputs: tuple[TensorSpec, ...], wanted: tuple[TensorSpec, ...], name: str) -> Row:
    """A row's arrays under the model's input names, each with a batch axis of 1 unless the row itself is a whole feed."""
    arrays = {key: value for key, value in row.items() if key not in LABELS or any(spec.name == key for spec in inputs)}
    if len(wanted) == 1 and wanted[0].name not in arrays and (len(arrays) == 1 or "x" in arrays):
        arrays = {wanted[0].name: arrays["x"] if "x" in arrays else next(iter(arrays.values()))}
    missing = [spec.name for spec in wanted if spec.name not in arrays]
    if missing:
        names, found = ", ".join(spec.name for spec in inputs), ", ".join(sorted(row))
        raise InputError(
            f"{name} has no array for the input {missing[0]!r}.", f"The model's inputs are {names}; the data has {found or 'none'}."
        )
    # A reader gives rows of one sample each with the sample axis kept; where that axis is one too many, the row is a whole feed.
    return {
        spec.name: np.asarray(arrays[spec.name][0]) if arrays[spec.name].ndim == len(spec.shape) + 1 else arrays[spec.name]
        for spec in inputs
        if spec.name in arrays
    }


def _digest(rows: Sequence[Arrays]) -> bytes:
    digest = hashlib.sha256()
    for array in (np.ascontiguousarray(row[name]) for row in rows for name in sorted(row)):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.view(np.uint8).tobytes() if array.ndim else array.tobytes())
    return digest.digest()


def random_samples(inputs: tuple[TensorSpec, ...], count: int, seed: int) -> list[dict[str, NDArray[Any]]]:
    """`count` feeds of seeded standard normal numbers (integers: 0 and 1), free dimensions taken as 1.

    Only for `--random-calibration` and for measuring speed: what is calibrated on it carries the mark.
    """
    generator = np.random.default_rng(seed)
    feeds = []
    for _ in range(count):
        feed: dict[str, NDArray[Any]] = {}
        for spec in inputs:
            shape = [size if isinstance(size, int) else 1 for size in spec.shape]
            kind = np.dtype(spec.dtype).kind
            numbers = generator.standard_normal(shape) if kind == "f" else generator.integers(0, 2, shape)
            feed[spec.name] = np.asarray(numbers).astype(spec.dtype)
        feeds.append(feed)
    return feeds
