"""What an artifact came from: hashes, versions, and the one pair that turns our values into JSON and back."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from optimizer.errors import InputError

T = TypeVar("T")

_BLOCK = 1 << 20


def to_json(value: Any) -> bytes:
    """A frozen dataclass (or a mapping of them) as indented UTF-8 JSON; NaN and infinities become null."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=plain, order="sorted"), indent=2) + b"\n"


def from_json(data: bytes, kind: type[T], what: str) -> T:
    """The value of type `kind` written by `to_json`.

    Raises:
        InputError: the bytes are not JSON, or not of that shape; `what` names the file in the message.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{what} can't be read: {error}.", "Take the file as this version of optimize wrote it.") from None


def plain(value: Any) -> Any:
    """What msgspec does not know of our values, as something that it does: a path by its name, an array as a list."""
    if isinstance(value, Path):
        return value.name
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "items"):
        return dict(value)
    return str(value)


def told(reference: str, folder: Path) -> str:
    """`file.py:function` as it may be written down: its file from `folder`, or by its name alone where it lies elsewhere."""
    source, colon, name = reference.rpartition(":")
    file = Path(source)
    if not file.is_absolute():
        return reference
    inside = file.is_relative_to(folder) and folder.parts[1:]
    return f"{file.relative_to(folder).as_posix() if inside else file.name}{colon}{name}"


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file; of a folder, over the names and contents of all files in it, whatever order they lie in."""
    if not path.is_dir():
        return sha256_of_file(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_of_file(file)}\n".encode())
    return digest.hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """The installed version of each package, with Python's own; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
