"""numpy's files: one .npz with the sample axis first, or a folder of .npy or .npz files whose shapes may differ."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from optimizer.errors import InputError
from optimizer.provenance import sha256_of_file
from optimizer.readers.rows import LABELS, MANY_BYTES, Asked, Reader, Row, at, joined_labels, sha256_of_files

_DAMAGED = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, MemoryError, RuntimeError)
"""What an archive that is not whole, not of numpy's or encrypted makes zipfile and numpy raise."""


@dataclass(frozen=True)
class NpzReader(Reader):
    """An .npz, streamed out of the archive row by row; `whole`: its arrays are one sample and have no sample axis."""

    path: Path
    whole: bool = False

    def rows(self, chosen: Sequence[int] | None = None) -> Iterator[Row]:
        return at(chosen, self._every())

    def _every(self) -> Iterator[Row]:
        with ExitStack() as stack:
            try:
                archive = stack.enter_context(zipfile.ZipFile(self.path))
                columns = {
                    name[: -len(".npy")]: _column(stack.enter_context(archive.open(name)), name, self.whole) for name in _members(archive)
                }
                for _ in range(self.length):
                    yield {name: next(column) for name, column in columns.items()}
            except _DAMAGED as error:
                raise InputError(f"{self.name} is damaged: {error}.", "Write it again with numpy.savez.") from None


@dataclass(frozen=True)
class NpyReader:
    """An .npy file, streamed row by row, or as one sample where it is `whole`."""

    path: Path
    length: int
    whole: bool

    def rows(self) -> Iterator[Row]:
        try:
            with self.path.open("rb") as file:
                for row in _column(file, self.path.name, self.whole):
                    yield {"x": row}
        except _DAMAGED as error:
            raise _no_npy(self.path, error) from None


@dataclass(frozen=True)
class FilesReader(Reader):
    """A folder of .npy or .npz files: each a batch of samples, or one sample without a sample axis; each begins a recording."""

    files: tuple[NpzReader | NpyReader, ...]

    def rows(self, chosen: Sequence[int] | None = None) -> Iterator[Row]:
        return at(chosen, (row for file in self.files for row in file.rows()))


def npz(path: Path) -> NpzReader:
    """The reader of an .npz whose arrays have the sample axis first."""
    return _npz(path, whole=False)


def array_files(folder: Path, asked: Asked) -> FilesReader | None:
    """The reader of a folder's .npy and .npz files; None where it has none.

    A file is one sample where its arrays have one axis less than the inputs that they are for.
    """
    paths = sorted(file for file in folder.iterdir() if file.suffix in (".npy", ".npz") and not file.name.startswith("."))
    if not paths:
        return None
    files = tuple(_npy(path, asked) if path.suffix == ".npy" else _npz(path, _is_sample(path, asked)) for path in paths)
    labels = [file.labels for file in files if isinstance(file, NpzReader) and file.labels is not None]
    length = sum(file.length for file in files)
    if labels and sum(map(len, labels)) != length:
        raise InputError(f"Some files in {folder.name} have labels and some have none.", "Give a label with every sample, or with none.")
    starts = (0, *accumulate(file.length for file in files[:-1]))
    return FilesReader(
        files,
        name=folder.name,
        sha256=sha256_of_files(paths, folder),
        length=length,
        labels=joined_labels(labels, folder.name),
        starts=starts,
    )


def _npy(path: Path, asked: Asked) -> NpyReader:
    try:
        with path.open("rb") as file:
            shape, _ = _header(file, path.name)
    except _DAMAGED as error:
        raise _no_npy(path, error) from None
    whole = _lacks_sample_axis({"x": len(shape)}, asked)
    if not shape and not whole:
        raise InputError(f"{path.name} is a single number.", "Give arrays with the sample axis first.")
    return NpyReader(path, 1 if whole else shape[0], whole)


def _no_npy(path: Path, error: Exception) -> InputError:
    return InputError(f"{path.name} is not a readable .npy: {error}.", "Write it with numpy.save, samples first.")


def _npz(path: Path, whole: bool) -> NpzReader:
    lengths = {name: 1 if whole else shape[0] if shape else None for name, shape in _shapes(path).items()}
    if single := [name for name, length in lengths.items() if length is None]:
        raise InputError(f"{single[0]} in {path.name} is a single number.", "Give arrays with the sample axis first.")
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"The arrays in {path.name} have different lengths: {told}.", "Give as many labels and inputs as samples.")
    return NpzReader(
        path, whole, name=path.name, sha256=sha256_of_file(path), length=next(iter(lengths.values())) or 0, labels=_labels(path, whole)
    )


def _is_sample(path: Path, asked: Asked) -> bool:
    return _lacks_sample_axis({name: len(shape) for name, shape in _shapes(path).items() if name not in LABELS}, asked)


def _lacks_sample_axis(ranks: dict[str, int], asked: Asked) -> bool:
    """Whether arrays of these ranks are one sample each: every one has one axis less than the input that it is for."""
    wanted = {spec.name: len(spec.shape) for spec in asked.wanted}
    if asked.single is not None and len(ranks) == 1:
        wanted = dict.fromkeys(ranks, len(asked.single.shape))
    known = [rank == wanted[name] - 1 for name, rank in ranks.items() if name in wanted]
    return bool(known) and all(known)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with zipfile.ZipFile(path) as archive:
            shapes = {}
            for member in _members(archive):
                name = member[: -len(".npy")]
                with archive.open(member) as file:
                    shapes[name], _ = _header(file, f"{name} in {path.name}")
    except _DAMAGED as error:
        raise _no_npz(path, error) from None
    if not shapes:
        raise InputError(f"{path.name} holds no arrays.", "Write it with numpy.savez(file, x=..., y=...).")
    return shapes


def _labels(path: Path, whole: bool) -> NDArray[Any] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            member = next((f"{name}.npy" for name in LABELS if f"{name}.npy" in archive.namelist()), None)
            if member is None:
                return None
            with archive.open(member) as file:
                labels: NDArray[Any] = npy.read_array(file, allow_pickle=False)
    except _DAMAGED as error:
        raise _no_npz(path, error) from None
    return labels[np.newaxis] if whole else labels


def _no_npz(path: Path, error: Exception) -> InputError:
    return InputError(f"{path.name} is not a readable .npz: {error}.", "Write it with numpy.savez.")


def _members(archive: zipfile.ZipFile) -> list[str]:
    return [name for name in archive.namelist() if name.endswith(".npy")]


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an .npy stream whose numbers follow; Python objects and column order are refused."""
    version = npy.read_magic(file)
    try:
        shape, fortran, dtype = npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)
    except tokenize.TokenError as error:
        raise ValueError(f"{name} has a header that is not whole: {error}") from None
    if any(size < 0 for size in shape):
        raise ValueError(f"{name} has a negative size")
    if 0 in shape[1:]:  # no byte would be missed, however many of them are declared
        raise ValueError(f"{name} holds samples without a number in them")
    if dtype.hasobject:
        raise InputError(f"{name} holds Python objects.", "Save plain arrays: objects are pickles, and none is ever read.")
    if fortran and len(shape) > 1:
        raise InputError(f"{name} is stored by columns.", "Save numpy.ascontiguousarray(array) instead.")
    return shape, dtype


def _column(file: IO[bytes], name: str, whole: bool) -> Iterator[NDArray[Any]]:
    """The rows of an .npy stream, each with the sample axis kept at 1; all of it with that axis put before where it is `whole`."""
    shape, dtype = _header(file, name)
    count, rest = (1, shape) if whole else (shape[0], shape[1:])
    size = int(np.prod(rest, dtype=np.int64)) * dtype.itemsize
    if size > MANY_BYTES:
        raise InputError(f"One sample of {name} would be {size:,} bytes.", "Check the array's shape.")
    for _ in range(count):
        data = file.read(size)
        if len(data) != size:
            raise EOFError(f"{name} ends early")
        yield np.frombuffer(data, dtype).reshape(1, *rest)
