"""Sound: .wav files (8, 16, 24 and 32 bit integers, 32 and 64 bit floats), whole or cut into windows, in -1 to 1.

Window k of a file starts at sample k * hop - context; what lies before the file is zeros, and an incomplete last window is left out.
The label of a file is its class folder's place in alphabetical order; labels of single windows, or of a file without a class folder,
lie beside it as an .npy of the same name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from optimizer.errors import InputError
from optimizer.model import TensorSpec
from optimizer.preprocessing import InputPreprocessing
from optimizer.readers.rows import MANY_BYTES, Asked, Reader, Row, at, files_in_classes, joined_labels, sha256_of_files

ENDINGS = (".wav",)

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_KINDS = {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}


@dataclass(frozen=True)
class Wav:
    """A .wav file: where its samples start, how they are written, how many there are of each channel."""

    path: Path
    start: int
    kind: int
    bits: int
    channels: int
    rate: int
    length: int

    def read(self, first: int, count: int) -> NDArray[np.float32]:
        """Samples `first` to `first + count` of each channel, float32 (channels, count); zeros where that is before the file.

        Raises:
            InputError: the file is gone, or holds fewer than it did.
        """
        skipped = min(max(-first, 0), count)
        width = self.bits // 8 * self.channels
        try:
            with self.path.open("rb") as file:
                file.seek(self.start + max(first, 0) * width)
                data = _exactly(file, (count - skipped) * width)
        except (OSError, EOFError) as error:
            raise InputError(f"{self.path.name} can't be read: {error}.", "Leave it as it is while it is in use.") from None
        sound = _numbers(data, self.kind, self.bits).reshape(-1, self.channels).T
        return np.pad(sound, ((0, 0), (skipped, 0)))


@dataclass(frozen=True)
class SoundReader(Reader):
    """Windows of sound, float32: (1, window), or with an axis of channels where the model has one. Each file begins a recording."""

    files: tuple[Wav, ...]
    cut: InputPreprocessing
    spec: TensorSpec

    def rows(self, chosen: Sequence[int] | None = None) -> Iterator[Row]:
        windows = ((file, first) for file in self.files for first in _windows(file, self.cut))
        for wav, first in at(chosen, windows):
            yield {"x": _arranged(wav.read(first, self.cut.window or wav.length), self.spec)}


def sound_file(path: Path, asked: Asked) -> SoundReader:
    """The reader of one .wav file."""
    return _sound((path,), None, path.parent, path.name, asked)


def sound_files(folder: Path, asked: Asked) -> SoundReader | None:
    """The reader of a folder of .wav files; None where there are none."""
    files, classes = files_in_classes(folder, ENDINGS)
    return _sound(files, classes, folder, folder.name, asked) if files else None


def _sound(paths: tuple[Path, ...], classes: NDArray[np.int64] | None, folder: Path, name: str, asked: Asked) -> SoundReader:
    spec = asked.single
    if spec is None:
        raise InputError(
            f"{name} gives one array, and the model wants {', '.join(wanted.name for wanted in asked.wanted)}.",
            'Say in optimize.toml which inputs need no data (state = "OUTPUT", value = NUMBER), or give arrays.',
        )
    cut = asked.preprocessing.of(spec.name)
    wavs = tuple(_opened(path, cut, spec.name) for path in paths)
    counts = [len(_windows(wav, cut)) for wav in wavs]
    beside = [path.with_suffix(".npy") for path in paths if classes is None and path.with_suffix(".npy").is_file()]
    return SoundReader(
        files=wavs,
        cut=cut,
        spec=spec,
        name=name,
        sha256=sha256_of_files([*paths, *beside], folder),
        length=sum(counts),
        labels=np.repeat(classes, counts) if classes is not None else _labels(beside, wavs, counts, name),
        notes=_remarks(wavs, spec, name),
        starts=(0, *accumulate(counts[:-1])),
    )


def _windows(wav: Wav, cut: InputPreprocessing) -> range:
    """The first sample of each window."""
    window = cut.window or wav.length
    return range(-cut.context, wav.length - window + 1, cut.hop or window)


def _arranged(sound: NDArray[np.float32], spec: TensorSpec) -> NDArray[np.float32]:
    """(channels, time) as a row for the model: mixed down to one channel unless the model has as many, the axes in its order."""
    if not _keeps(len(sound), spec):
        sound = sound.mean(axis=0, keepdims=True)
    if len(spec.shape) != 3:
        return sound
    last = spec.shape[2] == len(sound) and spec.shape[1] != len(sound)
    return np.ascontiguousarray(sound.T if last else sound)[np.newaxis]


def _keeps(channels: int, spec: TensorSpec) -> bool:
    return channels == 1 or (len(spec.shape) == 3 and channels in spec.shape[1:])


def _remarks(wavs: tuple[Wav, ...], spec: TensorSpec, name: str) -> tuple[str, ...]:
    mixed = sum(not _keeps(wav.channels, spec) for wav in wavs)
    return (f"{mixed:,} of {len(wavs):,} files in {name} have several channels: their mean was taken.",) if mixed else ()


def _labels(files: list[Path], wavs: tuple[Wav, ...], counts: list[int], name: str) -> NDArray[Any] | None:
    """The labels that lie beside the sound, one a window."""
    if not files:
        return None
    if len(files) != len(wavs):
        raise InputError(
            f"Some files in {name} have labels beside them and some have none.", "Put an .npy beside every one, or beside none."
        )
    found = []
    for path, count in zip(files, counts, strict=True):
        try:
            with path.open("rb") as file:
                labels: NDArray[Any] = npy.read_array(file, allow_pickle=False)
        except (ValueError, EOFError, OSError, MemoryError) as error:
            raise InputError(f"{path.name} is not a readable .npy: {error}.", "Write it with numpy.save, a label a window.") from None
        if labels.ndim == 0 or len(labels) != count:
            size = "a single number" if labels.ndim == 0 else f"{len(labels):,} labels"
            raise InputError(f"{path.name} holds {size} for {count:,} windows.", "Give one label a window.")
        found.append(labels)
    return joined_labels(found, name)


def _opened(path: Path, cut: InputPreprocessing, name: str) -> Wav:
    """The head of a file, held against what optimize.toml says."""
    try:
        with path.open("rb") as file:
            wav = _head(file, path)
    except (struct.error, EOFError, OSError) as error:
        raise InputError(f"{path.name} is not a readable .wav: {error}.", "Write it again.") from None
    if cut.rate is None:
        raise InputError(
            f"{path.name} has {wav.rate:,} samples a second, and what the model was trained on is not said.",
            f"State it in optimize.toml: [inputs.{name}] rate = {wav.rate}, if that is it.",
        )
    if wav.rate != cut.rate:
        raise InputError(
            f"{path.name} has {wav.rate:,} samples a second, not {cut.rate:,} as optimize.toml says.",
            f"Convert it first, with ffmpeg -i {path.name} -ar {cut.rate} or sox.",
        )
    if wav.length + cut.context < (cut.window or 1):
        raise InputError(f"{path.name} is shorter than one window: {wav.length:,} samples.", "Leave it out, or set a shorter window.")
    if (cut.window or wav.length) * wav.channels * 4 > MANY_BYTES:
        raise InputError(f"One sample of {path.name} would be of {wav.length:,} numbers.", "Set a window in optimize.toml.")
    return wav


def _head(file: IO[bytes], path: Path) -> Wav:
    """What the chunks before the samples say (Microsoft and IBM, Multimedia Programming Interface and Data Specifications, 1991)."""
    riff, _, wave = struct.unpack("<4sI4s", _exactly(file, 12))
    if (riff, wave) != (b"RIFF", b"WAVE"):
        raise InputError(f"{path.name} is not a .wav file of the RIFF kind.", "Write it as PCM or float WAV.")
    form = None
    while True:
        kind, size = struct.unpack("<4sI", _exactly(file, 8))
        if kind == b"data":
            break
        if kind == b"fmt ":
            form = _exactly(file, min(size, 40))
            size -= len(form)
        file.seek(size + size % 2, 1)
    if form is None or len(form) < 16:
        raise InputError(f"{path.name} does not say how its samples are written.", "Write it again.")
    code, channels, rate, _, width, bits = struct.unpack("<HHIIHH", form[:16])
    if code == _EXTENSIBLE and len(form) >= 26:
        (code,) = struct.unpack("<H", form[24:26])
    if (code, bits) not in _KINDS or not channels or width != channels * bits // 8:
        raise InputError(
            f"{path.name} holds sound of a kind that is not read (format {code}, {bits} bits, {channels} channels).",
            "Write it as PCM of 8, 16, 24 or 32 bits, or as float.",
        )
    start, held = file.tell(), path.stat().st_size - file.tell()
    if size > held:
        raise InputError(
            f"{path.name} says that it holds {size:,} bytes of sound, and there are {held:,}.", "Write it again: it is cut off."
        )
    return Wav(path, start, code, bits, channels, rate, size // width)


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError("it ends early")
    return data


def _numbers(data: bytes, kind: int, bits: int) -> NDArray[np.float32]:
    """Samples as float32, integers over their largest magnitude; 8 bits are unsigned around 128."""
    if kind == _FLOAT:
        return np.frombuffer(data, f"<f{bits // 8}").astype(np.float32)
    if bits == 8:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / np.float32(128)
    if bits == 24:  # as the upper three bytes of 32 bits
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return (wide.view("<i4")[:, 0] / np.float64(1 << 31)).astype(np.float32)
    return (np.frombuffer(data, f"<i{bits // 8}") / np.float64(1 << (bits - 1))).astype(np.float32)
