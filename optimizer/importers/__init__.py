"""A file becomes a Model: which importer reads it is told by its ending, else by its first bytes.

An importer is a module here with one function `load`, imported when it is picked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from optimizer.errors import InputError
from optimizer.model import Model
from optimizer.plan import Shape
from optimizer.process import check_house
from optimizer.progress import Track, silent

_IMPORTERS = {
    ".onnx": "onnx",
    ".pt": "pytorch",
    ".pth": "pytorch",
    ".th": "pytorch",
    ".bin": "pytorch",
    ".ckpt": "pytorch",
    ".safetensors": "pytorch",
}
_NONE: Mapping[str, str] = MappingProxyType({})
_NO_SHAPES: Mapping[str, Shape] = MappingProxyType({})
_PICKLE = b"\x80"
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class ImportRequest:
    """How a file is to be read; see `load`."""

    scratch: Path
    user_folder: Path
    factory: str | None
    factory_args: Mapping[str, str]
    shapes: Mapping[str, Shape]


def load(
    file: Path,
    *,
    factory: str | None = None,
    factory_args: Mapping[str, str] = _NONE,
    shapes: Mapping[str, Shape] = _NO_SHAPES,
    scratch: Path,
    user_folder: Path,
    track: Track = silent,
) -> Model:
    """The model in a file, its graph as `importers._tidy` says.

    `factory` (`module:function` or `file.py:function`, looked up from `user_folder`) makes the network that a checkpoint's
    weights go into, called with `factory_args`.  `shapes` fix dimensions, or give free ones a range.  `scratch` is a folder of
    the caller's that must outlive the model: weights may be memory-mapped from it.

    Raises:
        InputError: the file can't be used; UnavailableError: the package that reads it is not installed.
    """
    check_house()
    importer = import_module(f"{__name__}.{_importer(file)}")
    how = ImportRequest(scratch.resolve(), user_folder.resolve(), factory, factory_args, shapes)
    return importer.load(file.absolute(), how, track)  # type: ignore[no-any-return]


def _importer(file: Path) -> str:
    """Which importer reads `file`."""
    supported = f"Give an ONNX model (.onnx) or a PyTorch checkpoint ({', '.join(end for end in _IMPORTERS if end != '.onnx')})."
    if not file.exists():
        raise InputError(f"There is no file {file.name!r}.", "Look at the path you gave.")
    if not file.is_file():
        raise InputError(f"{file.name!r} is a folder.", supported)
    try:
        with file.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise InputError(f"{file.name!r} can't be read: {error.strerror}.", "Look at its permissions.") from None
    if file.suffix.lower() in _IMPORTERS:
        return _IMPORTERS[file.suffix.lower()]
    if start.startswith((_ZIP, _PICKLE)) and file.suffix == "":
        return "pytorch"
    raise InputError(f"Files like {file.name!r} can't be read.", supported)
