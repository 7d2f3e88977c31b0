"""Ways that data lies about, a file each: a reader yields one sample at a time and holds no more than that."""

from __future__ import annotations

from pathlib import Path

from optimizer.errors import InputError
from optimizer.readers import records, sound, text
from optimizer.readers.arrays import array_files, npz
from optimizer.readers.functions import function
from optimizer.readers.pictures import images
from optimizer.readers.records import Records
from optimizer.readers.rows import LABELS, Asked, Reader, Row
from optimizer.readers.tables import table

__all__ = ["LABELS", "Asked", "Reader", "Row", "reader"]

_KINDS = "an .npz, .wav, .csv, .jsonl or .parquet, a folder of .npy, .npz, .wav or images, or file.py:function"


def reader(words: str, asked: Asked) -> Reader:
    """The reader for DATA `words`; relative paths count from the folder of `asked`.

    Raises:
        InputError: nothing there, or nothing that can be read as data.
    """
    path = asked.folder / words
    if path.is_dir():
        return _folder(path, asked)
    if path.is_file():
        return _file(path, asked)
    if path.exists():
        raise InputError(f"{path.name} is not a kind of data that can be read.", f"Give {_KINDS}.")
    if ":" in words:
        return function(words, asked.folder)
    raise InputError(f"There is no data at {words}.", f"Give {_KINDS}.")


def _folder(path: Path, asked: Asked) -> Reader:
    # Sound first: the .npy files beside it are its labels.
    found: Reader | None = sound.sound_files(path, asked) or array_files(path, asked) or images(path, asked)
    if found is None:
        raise InputError(
            f"The folder {path.name} has no .npy, .npz or .wav files and no images, alone or in class folders.", f"Give {_KINDS}."
        )
    return found


def _file(path: Path, asked: Asked) -> Reader:
    ending = path.suffix.lower()
    if ending == ".npz":
        return npz(path)
    if ending in sound.ENDINGS:
        return sound.sound_file(path, asked)
    if ending in records.ENDINGS:
        return text.text(path, asked) if _is_text(path, asked) else table(path, asked)
    raise InputError(f"{path.name} is {_calibration_cache(path) or 'not a kind of data that can be read'}.", f"Give {_KINDS}.")


def _is_text(path: Path, asked: Asked) -> bool:
    """Whether records are texts to be tokenized: they have a `text`, and no input is called so."""
    return text.TEXT in Records(path).columns and all(spec.name != text.TEXT for spec in asked.inputs)


def _calibration_cache(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"TRT-") and b"Calib" in head:
        return "a TensorRT calibration cache: ranges of another tool, without the data that they came from"
    return None
