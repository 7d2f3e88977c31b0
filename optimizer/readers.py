"""Ways that data lies about: each reader yields one sample at a time and holds no more than that.

A row is a mapping of arrays with a sample axis of 1 first, labels among them under one of LABELS.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from optimizer.errors import InputError
from optimizer.process import user_arrays
from optimizer.provenance import sha256_of_file, told

Row = dict[str, NDArray[Any]]

LABELS = ("y", "label", "labels")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

_DAMAGED = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, MemoryError, RuntimeError)
"""What an archive that is not whole, not of numpy's or encrypted makes zipfile and numpy raise."""

_MANY_BYTES = 1 << 31
"""A single sample of more than 2 GiB is taken for a damaged header rather than for data."""


class Reader(Protocol):
    """Rows of a data set, the same at every iteration. `length` is None where only a pass over the data would tell it."""

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    @property
    def length(self) -> int | None: ...

    @property
    def labels(self) -> NDArray[Any] | None: ...

    def __iter__(self) -> Iterator[Row]: ...


def reader(words: str, folder: Path) -> Reader:
    """The reader for DATA `words`; relative paths count from `folder`.

    Raises:
        InputError: nothing there, or nothing that can be read as data.
    """
    path = folder / words
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".npz" and path.is_file():
        return _npz(path)
    if path.exists():
        known = _calibration_cache(path) if path.is_file() else None
        raise InputError(
            f"{path.name} is {known or 'not a kind of data that can be read'}.", "Give an .npz, a folder, or file.py:function."
        )
    if ":" in words:
        return _function(words, folder)
    raise InputError(f"There is no data at {words}.", "Give an .npz, a folder of .npy, .npz or images, or file.py:function.")


def _calibration_cache(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"TRT-") and b"Calib" in head:
        return "a TensorRT calibration cache: ranges of another tool, without the data that they came from"
    return None


@dataclass(frozen=True)
class NpzReader:
    """An .npz whose arrays all have the sample axis first, streamed out of the archive row by row."""

    path: Path
    name: str
    sha256: str
    length: int | None
    labels: NDArray[Any] | None

    def __iter__(self) -> Iterator[Row]:
        with ExitStack() as stack:
            try:
                archive = stack.enter_context(zipfile.ZipFile(self.path))
                columns = {name[: -len(".npy")]: _column(stack.enter_context(archive.open(name)), name) for name in _members(archive)}
                for _ in range(self.length or 0):
                    yield {name: next(column) for name, column in columns.items()}
            except _DAMAGED as error:
                raise InputError(f"{self.name} is damaged: {error}.", "Write it again with numpy.savez.") from None


def _members(archive: zipfile.ZipFile) -> list[str]:
    return [name for name in archive.namelist() if name.endswith(".npy")]


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an .npy stream whose numbers follow; Python objects and column order are refused."""
    version = npy.read_magic(file)
    shape, fortran, dtype = npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)
    if any(size < 0 for size in shape):
        raise ValueError(f"{name} has a negative size")
    if dtype.hasobject:
        raise InputError(f"{name} holds Python objects.", "Save plain arrays: objects are pickles, and none is ever read.")
    if fortran and len(shape) > 1:
        raise InputError(f"{name} is stored by columns.", "Save numpy.ascontiguousarray(array) instead.")
    return shape, dtype


def _column(file: IO[bytes], name: str) -> Iterator[NDArray[Any]]:
    """The rows of an .npy stream, each with the sample axis kept at 1."""
    shape, dtype = _header(file, name)
    size = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    if size > _MANY_BYTES:
        raise InputError(f"One sample of {name} would be {size:,} bytes.", "Check the array's shape.")
    for _ in range(shape[0]):
        data = file.read(size)
        if len(data) != size:
            raise EOFError(f"{name} ends early")
        yield np.frombuffer(data, dtype).reshape(1, *shape[1:])


def _npz(path: Path) -> NpzReader:
    try:
        with zipfile.ZipFile(path) as archive:
            lengths: dict[str, int] = {}
            labels = None
            for member in _members(archive):
                name = member[: -len(".npy")]
                with archive.open(member) as file:
                    shape, _ = _header(file, f"{name} in {path.name}")
                if not shape:
                    raise InputError(f"{name} in {path.name} is a single number.", "Give arrays with the sample axis first.")
                lengths[name] = shape[0]
                if name in LABELS:
                    with archive.open(member) as file:
                        labels = npy.read_array(file, allow_pickle=False)
    except _DAMAGED as error:
        raise InputError(f"{path.name} is not a readable .npz: {error}.", "Write it with numpy.savez.") from None
    if not lengths:
        raise InputError(f"{path.name} holds no arrays.", "Write it with numpy.savez(file, x=..., y=...).")
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"The arrays in {path.name} have different lengths: {told}.", "Give as many labels and inputs as samples.")
    return NpzReader(path, path.name, sha256_of_file(path), next(iter(lengths.values())), labels)


@dataclass(frozen=True)
class FilesReader:
    """A folder of .npy or .npz files: each a sample, or a batch of them; their shapes may differ."""

    files: tuple[Path, ...]
    name: str
    sha256: str
    length: int | None = None
    labels: NDArray[Any] | None = None

    def __iter__(self) -> Iterator[Row]:
        for path in self.files:
            if path.suffix == ".npz":
                yield from _npz(path)
            else:
                try:
                    with path.open("rb") as file:
                        for row in _column(file, path.name):
                            yield {"x": row}
                except (ValueError, EOFError, IndexError, OSError) as error:
                    raise InputError(f"{path.name} is not a readable .npy: {error}.", "Write it with numpy.save, samples first.") from None


@dataclass(frozen=True)
class ImagesReader:
    """Images in class folders: uint8, height x width x channels; the label is the folder's place in alphabetical order."""

    files: tuple[Path, ...]
    name: str
    sha256: str
    length: int | None
    labels: NDArray[Any] | None

    def __iter__(self) -> Iterator[Row]:
        for path in self.files:
            yield {"x": _image(path)[np.newaxis]}


def _image(path: Path) -> NDArray[np.uint8]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise InputError("Reading images needs Pillow, which is not installed.", "pip install pillow") from None
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{path.name} is not a readable image: {error}.", "Remove the file, or write it again.") from None


def _folder(path: Path) -> Reader:
    arrays = tuple(sorted(file for file in path.iterdir() if file.suffix in (".npy", ".npz")))
    if arrays:
        return FilesReader(arrays, path.name, _sha256_of(arrays, path))
    images = tuple(sorted(file for file in path.glob("*/*") if file.suffix.lower() in IMAGES))
    if not images:
        raise InputError(f"The folder {path.name} has neither .npy or .npz files nor class folders of images.", "Give one of them.")
    classes = sorted({file.parent.name for file in images})
    labels = np.array([classes.index(file.parent.name) for file in images], np.int64)
    return ImagesReader(images, path.name, _sha256_of(images, path), len(images), labels)


def _sha256_of(files: tuple[Path, ...], folder: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()} {sha256_of_file(file)}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class FunctionReader:
    """Rows out of a generator of the user's; each run must give what the first one gave."""

    reference: str
    folder: Path
    name: str
    sha256: str
    length: int | None
    labels: NDArray[Any] | None

    def __iter__(self) -> Iterator[Row]:
        digest = hashlib.sha256()
        for row in _rows(self.reference, self.folder):
            _feed(digest, row)
            yield row
        if digest.hexdigest() != self.sha256:
            raise InputError(
                f"{self.name} gave other data at a second run.", "Seed what is random in it, so that every run gives the same samples."
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


def _function(reference: str, folder: Path) -> FunctionReader:
    digest = hashlib.sha256()
    labels: list[NDArray[Any]] = []
    count = 0
    for row in _rows(reference, folder):
        _feed(digest, row)
        count += 1
        labels.extend(row[name] for name in LABELS if name in row)
    if labels and len(labels) != count:
        raise InputError(f"{reference} gave {len(labels)} labels for {count} samples.", "Yield a label with every sample, or with none.")
    return FunctionReader(reference, folder, told(reference, folder), digest.hexdigest(), count, np.concatenate(labels) if labels else None)
