"""What kind of PyTorch file or folder this is, told by its content before any loader sees it, and that it is safe to read.

What can run code (TorchScript programs, programs of torch.export) is told apart here, by the parent, which loads nothing; whole
pickled modules are found out by torch's `weights_only` loader, which builds tensors and plain containers and calls nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile, ZipFile

from optimizer.errors import InputError
from optimizer.provenance import sha256_of, sha256_of_file

Kind = Literal["checkpoint", "safetensors", "torchscript", "exported", "folder"]

RUNS_CODE: Mapping[Kind, str] = {"torchscript": "a TorchScript program", "exported": "a program of torch.export"}
"""Kinds whose loaders run what the file says."""

_PICKLE, _ZIP = b"\x80", b"PK\x03\x04"
_SWOLLEN = 20
_SMALL = 1 << 28
"""Archives of torch's hold their tensors as they are: more than twenty times the file, and over 256 MiB, is an attack."""

_LARGEST_INDEX = 1 << 26
_GET_WHOLE = "Get the whole file."
_AS_SAVED = "Give the file that save_pretrained wrote."


@dataclass(frozen=True)
class TorchFile:
    """A file or folder as it is read: `parts` are the files that hold its weights, those of a sharded one in order."""

    path: Path
    kind: Kind
    parts: tuple[Path, ...]

    @property
    def sha256(self) -> str:
        """Of the file, of the folder, or of an index together with the files that it names."""
        if self.kind == "folder" or self.parts == (self.path,):
            return sha256_of(self.path)
        digests = (f"{part.name}\0{sha256_of_file(part)}\n" for part in (self.path, *self.parts))
        return hashlib.sha256("".join(digests).encode()).hexdigest()


def examined(path: Path) -> TorchFile:
    """What `path` is.

    Raises:
        InputError: it is none of PyTorch's, empty, cut short, unpacks to an absurd size, or names files that are not beside it.
    """
    if path.is_dir():
        return TorchFile(path, "folder", _weights_of(path))
    if path.name.endswith(".index.json"):
        parts = _shards(path)
        return TorchFile(path, _kind_of_shards(path, parts), parts)
    with path.open("rb") as stream:
        start = stream.read(265)
    if not start:
        raise InputError(f"{path.name} is empty.", _GET_WHOLE)
    if path.suffix == ".safetensors":
        return TorchFile(path, "safetensors", (path,))
    if start.startswith(_ZIP):
        return TorchFile(path, _kind_of_archive(path), (path,))
    if not start.startswith(_PICKLE):  # among them the tar files of torch 0.1, for which older releases ran what they held
        raise InputError(f"{path.name} can't be read as a checkpoint: it is neither an archive nor a pickle.", _GET_WHOLE)
    return TorchFile(path, "checkpoint", (path,))


def check_trusted(file: TorchFile, trust: bool) -> None:
    """Refuse what can run code unless the user trusts it."""
    if not trust and (words := RUNS_CODE.get(file.kind)):
        raise InputError(
            f"{file.path.name} is {words}, and loading such a file can run any code that is in it; nothing was loaded.",
            "Where you trust who made it, pass --trust; else give the checkpoint it was made from (a state_dict), and --factory.",
        )


def _kind_of_archive(path: Path) -> Kind:
    try:
        with ZipFile(path) as archive:
            entries = archive.infolist()
    except (BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path.name} can't be read as a checkpoint: {error}.", _GET_WHOLE) from None
    size = sum(entry.file_size for entry in entries)
    if size > max(_SMALL, _SWOLLEN * path.stat().st_size):
        raise InputError(
            f"{path.name} says that it unpacks to {size / 1e9:.1f} GB, {size // path.stat().st_size} times its size: an attack.",
            "Get the file from whoever trained the model.",
        )
    names = {entry.filename.partition("/")[2] for entry in entries}
    if "archive_format" in names or any(entry.filename == "serialized_exported_program.json" for entry in entries):
        return "exported"
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        return "torchscript"
    if "data.pkl" in names:
        return "checkpoint"
    raise InputError(f"{path.name} is an archive, but none of PyTorch's.", "Give a checkpoint, a TorchScript or a .pt2 file.")


def _weights_of(folder: Path) -> tuple[Path, ...]:
    """The files with the weights of a Hugging Face folder, safetensors before pickles, checked to lie in it."""
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"):
        if (found := folder / name).exists():
            return _shards(found) if name.endswith(".json") else (_beside(folder, name, name),)
    raise InputError(
        f"The folder {folder.name!r} holds no weights of PyTorch's (model.safetensors or pytorch_model.bin, or the index of their shards).",
        "Save it again with model.save_pretrained(FOLDER).",
    )


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index of shards names."""
    if index.stat().st_size > _LARGEST_INDEX:
        raise InputError(f"{index.name} is far too large for an index.", _AS_SAVED)
    try:
        named = json.loads(index.read_bytes())["weight_map"].values()
        names = sorted({str(name) for name in named})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        names = []
    if not names:
        raise InputError(f"{index.name} is no index of shards: it has no weight_map.", _AS_SAVED)
    return tuple(_beside(index.parent, name, index.name) for name in names)


def _kind_of_shards(index: Path, parts: tuple[Path, ...]) -> Kind:
    endings = {part.suffix for part in parts}
    if endings == {".safetensors"}:
        return "safetensors"
    for part in parts:
        if examined(part).kind != "checkpoint" or endings != {".bin"}:
            raise InputError(
                f"{index.name} names {part.name!r}, which is no shard of weights.", "Give the file that save_pretrained wrote."
            )
    return "checkpoint"


def _beside(folder: Path, name: str, named_by: str) -> Path:
    """The file called `name` in `folder`.

    A link may lead to a file of the same folder, or into the `blobs` of Hugging Face's cache, two floors up, which is made so.
    """
    if name != Path(name).name or name in {"", ".", ".."} or "\\" in name or "\0" in name:
        raise InputError(f"{named_by} names {name[:80]!r}, a file outside its own folder.", "Get the model from whoever made it.")
    file = folder / name
    home = folder.resolve()
    if file.resolve().parent not in {home, home.parent.parent / "blobs"}:
        raise InputError(f"{name!r} is a link that leads out of the model's folder.", "Put the file itself there.")
    if not file.is_file():
        raise InputError(f"{named_by} names the file {name!r}, which is not beside it.", "Get all files of the model.")
    return file


def worker_request(file: TorchFile) -> dict[str, Any]:
    """What a worker has to know of it."""
    return {"file": str(file.path), "name": file.path.name, "kind": file.kind, "parts": [str(part) for part in file.parts]}
