"""A model file or folder becomes a Model: which importer reads it is told by its ending, by what lies in the folder, or by its first bytes.

An importer is a module here, imported when it is picked, with two functions: `load(how, track) -> Model` and
`running(how, model) -> SourceRun`, the model in the framework that trained it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

from optimizer.engine import SourceRun
from optimizer.errors import InputError
from optimizer.model import Model
from optimizer.plan import Shape
from optimizer.process import check_house
from optimizer.progress import Track, silent

_BY_ENDING = {
    "onnx": (".onnx",),
    "pytorch": (".pt", ".pth", ".th", ".bin", ".ckpt", ".safetensors", ".index.json", ".pt2", ".ts", ".torchscript"),
    "tensorflow": (".pb", ".keras", ".h5", ".hdf5", ".tflite"),
}
_BY_CONTENT = {"tensorflow": ("saved_model.pb", "saved_model.pbtxt"), "pytorch": ("config.json",)}
"""What in a folder tells whose it is: a SavedModel, a model of Hugging Face's."""

_TAKES = {
    "onnx": {"custom_ops"},
    "pytorch": {"source_python"},
    "tensorflow": {"source_python", "signature", "tags"},
}
"""Which of the options that are about one kind of file an importer heeds; factories it judges by itself."""

_PICKLE = b"\x80"
_ZIP = b"PK\x03\x04"
_HDF5 = b"\x89HDF"
_SUPPORTED = (
    "Give an ONNX model, a PyTorch checkpoint or archive, a Hugging Face folder, or a TensorFlow model "
    f"({', '.join(end for endings in _BY_ENDING.values() for end in endings)}, a SavedModel)."
)


@dataclass(frozen=True)
class ImportRequest:
    """How a file or folder is read.

    `scratch` is a folder of the caller's that must outlive the model: weights may be memory-mapped from it.  `factory`
    (`module:function` or `file.py:function`, looked up from `user_folder`) makes the network that a checkpoint's weights go into,
    called with `factory_args`.  `shapes` fix dimensions, or give free ones a range.  `trust` allows files that can run code;
    `source_python` is the interpreter in which the model's own framework and code live; `signature` and `tags` choose within a
    SavedModel; `custom_ops` is a library of operators for ONNX Runtime.
    """

    file: Path
    scratch: Path
    user_folder: Path
    factory: str | None = None
    factory_args: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    trust: bool = False
    source_python: Path | None = None
    signature: str | None = None
    tags: tuple[str, ...] = ()
    custom_ops: Path | None = None


def load(how: ImportRequest, track: Track = silent) -> Model:
    """The model in a file, its graph as `importers._tidy` says.

    Raises:
        InputError: the file can't be used; UnavailableError: the package that reads it is not installed.
    """
    check_house()
    _refuse_what_it_does_not_take(how)
    return _importer(how.file).load(_absolute(how), track)  # type: ignore[no-any-return]


def running(how: ImportRequest, model: Model) -> SourceRun:
    """The parent of `model`, which `load(how)` gave, opened in its own framework; to be closed by the caller."""
    return _importer(how.file).running(_absolute(how), model)  # type: ignore[no-any-return]


def _refuse_what_it_does_not_take(how: ImportRequest) -> None:
    """An option that the file leaves without effect would be dropped in silence."""
    framework = _framework(how.file)
    for name in ("source_python", "signature", "tags", "custom_ops"):
        if getattr(how, name) and name not in _TAKES[framework]:
            option = f"--{name.removesuffix('s') if name == 'tags' else name.replace('_', '-')}"
            reason = f"{option} has no meaning for {how.file.name}, which the importer of {framework} reads."
            raise InputError(reason, f"Leave {option} away.")


def _absolute(how: ImportRequest) -> ImportRequest:
    return replace(how, file=how.file.absolute(), scratch=how.scratch.resolve(), user_folder=how.user_folder.resolve())


def _importer(file: Path) -> ModuleType:
    return import_module(f"{__name__}.{_framework(file)}")


def _framework(file: Path) -> str:
    """Which importer reads `file`."""
    if not os.path.exists(file):  # noqa: PTH110 -- where a path is too long or malformed, Path.exists raises
        raise InputError(f"There is no file {file.name[:100]!r}.", "Look at the path you gave.")
    if file.is_dir():
        found = next((name for name, marks in _BY_CONTENT.items() if any((file / mark).is_file() for mark in marks)), None)
        if found is None:
            raise InputError(f"{file.name!r} is a folder that holds neither a saved_model.pb nor a config.json.", _SUPPORTED)
        return found
    if not file.is_file():
        raise InputError(f"{file.name!r} is neither a file nor a folder.", "Look at the path you gave.")
    try:
        with file.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise InputError(f"{file.name!r} can't be read: {error.strerror}.", "Look at its permissions.") from None
    if not start:
        raise InputError(f"{file.name} is empty.", "Get the whole file.")
    for name, endings in _BY_ENDING.items():
        if file.name.lower().endswith(endings):
            return name
    if file.suffix == "" and start.startswith((_ZIP, _PICKLE)):
        return "pytorch"
    if file.suffix == "" and start.startswith(_HDF5):
        return "tensorflow"
    raise InputError(f"Files like {file.name!r} can't be read.", _SUPPORTED)
