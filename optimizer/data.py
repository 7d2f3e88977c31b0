"""DATA words become Samples: read lazily, one at a time, hashed, prepared as the model takes them.

DATA is an .npz (arrays by input name, or `x` where the model has one input; `y` or `label` for labels), a folder of .npy or
.npz files (whose shapes may differ from file to file), a folder of images in class folders, or `file.py:function`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import InputError
from optimizer.model import TensorSpec
from optimizer.preprocessing import Preprocessing
from optimizer.process import user_transform
from optimizer.readers import LABELS, Reader, reader

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
            for raw in self.raw():
                yield self.preprocessing.apply(raw, self.inputs, functions)

    def raw(self) -> Iterator[dict[str, NDArray[Any]]]:
        """The chosen feeds as the data set holds them, by input name, with a batch axis first."""
        wanted = None if self.chosen is None else set(self.chosen)
        last = None if wanted is None else max(wanted, default=-1)
        for index, feed in enumerate(_feeds(self.reader, self.inputs)):
            if last is not None and index > last:
                return
            if wanted is None or index in wanted:
                yield feed

    @property
    def starts(self) -> frozenset[int]:
        """Where a sequence of samples begins: at the first, and where samples before it were left out; counted in this selection."""
        own = self.chosen if self.chosen is not None else ()
        return frozenset({0, *(place for place in range(1, len(own)) if own[place] != own[place - 1] + 1)})

    def take(self, indices: Sequence[int]) -> Samples:
        """These samples alone, in the data's own order; `indices` count within this selection."""
        own = self.chosen if self.chosen is not None else range(self.count)
        chosen = tuple(sorted(own[index] for index in indices))
        labels = None if self.labels is None else self.labels[sorted(indices)]
        return replace(self, chosen=chosen, labels=labels)

    def fingerprints(self) -> tuple[bytes, ...]:
        """A digest of each raw sample: equal samples of two data sets have equal ones, whatever file they lie in."""
        return tuple(_digest(feed) for feed in self.raw())


def open_samples(words: str, inputs: tuple[TensorSpec, ...], preprocessing: Preprocessing, folder: Path) -> Samples:
    """The samples that DATA `words` name, for a model with `inputs`; paths and modules are looked up from `folder`.

    Raises:
        InputError: nothing there, unreadable, or not fitting the model in names, shapes or types (the first sample is tried).
    """
    preprocessing.check(inputs)
    source = reader(words, folder)
    samples = Samples(source.name, source.sha256, inputs, preprocessing, None, 0, source, folder)
    batch = _batch(inputs)
    labels: list[NDArray[Any]] = []
    count = 0
    if source.length is None:
        for row in source:
            count += 1
            if (label := _label(row)) is not None:
                labels.append(label)
    else:
        count = source.length
    every = source.labels if source.labels is not None else (np.concatenate(labels) if labels else None)
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


def _label(row: Arrays) -> NDArray[Any] | None:
    return next((np.atleast_1d(row[name]) for name in LABELS if name in row), None)


def _feeds(source: Reader, inputs: tuple[TensorSpec, ...]) -> Iterator[dict[str, NDArray[Any]]]:
    """Raw feeds by input name: single rows under the model's names, gathered to the model's batch."""
    batch = _batch(inputs)
    rows: list[dict[str, NDArray[Any]]] = []
    for row in source:
        rows.append(_named(row, inputs, source.name))
        if len(rows) == batch:
            yield rows[0] if batch == 1 else {name: np.concatenate([one[name] for one in rows]) for name in rows[0]}
            rows = []


def _named(row: Arrays, inputs: tuple[TensorSpec, ...], name: str) -> dict[str, NDArray[Any]]:
    """A row's arrays under the model's input names, each with a batch axis of 1 unless the row itself is a whole feed."""
    arrays = {key: value for key, value in row.items() if key not in LABELS or any(spec.name == key for spec in inputs)}
    if len(inputs) == 1 and inputs[0].name not in arrays and (len(arrays) == 1 or "x" in arrays):
        arrays = {inputs[0].name: arrays["x"] if "x" in arrays else next(iter(arrays.values()))}
    missing = [spec.name for spec in inputs if spec.name not in arrays]
    if missing:
        wanted, found = ", ".join(spec.name for spec in inputs), ", ".join(sorted(row))
        raise InputError(
            f"{name} has no array for the input {missing[0]!r}.", f"The model's inputs are {wanted}; the data has {found or 'none'}."
        )
    # A reader gives rows of one sample each with the sample axis kept; where that axis is one too many, the row is a whole feed.
    return {
        spec.name: np.asarray(arrays[spec.name][0]) if arrays[spec.name].ndim == len(spec.shape) + 1 else arrays[spec.name]
        for spec in inputs
    }


def _digest(feed: Arrays) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(feed):
        array = np.ascontiguousarray(feed[name])
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
