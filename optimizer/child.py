"""The line between us and a child, and the child's end of it.

One socket carries messages both ways: a line of JSON, then the raw bytes of the arrays it announces.  No pickle can be said
in it.  A worker that may see our package (`python -m optimizer.backends...`) imports this module; a worker that runs a user's
code must not, so it is started as

    python optimizer/child.py [PART.py ...] WORKER.py

which makes each PART importable by its name and runs `main(channel)` of the last file.  There the user's folder is visible,
appended to `sys.path`, and our three top-level packages are not: people have an `optimizer.py` and a `kernels/` of their own.
The Python may be the user's, with nothing of ours in it: 3.8 and numpy are enough for this file.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

if TYPE_CHECKING:  # older than 1.21, numpy has none
    from numpy.typing import NDArray

CHANNEL = "OPTIMIZE_CHANNEL"
"""Environment variable with the number of the child's end of the socket."""

OURS = frozenset({"optimizer", "calibration", "kernels"})
"""Our top-level packages, which a user's code must not find."""

_LONGEST_LINE = 1 << 24
_LARGEST_PAYLOAD = 1 << 32
_BLOCK = 1 << 20
_KINDS = "biufc"
_IMPORTABLE = "Make it importable with python, then build again."


class MessageError(ValueError):
    """The bytes on the line are not what `encode` writes."""


class Message(NamedTuple):
    """An event, a JSON object with the kind of it under `event`, and the arrays that came with it."""

    event: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


def encode(event: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> list[bytes | memoryview]:
    """A message as bytes: the JSON line, then each array in C order, little endian.

    Raises:
        TypeError: an array holds something else than numbers or booleans.
    """
    announced: list[list[Any]] = []
    payload: list[memoryview] = []
    for name, array in (arrays or {}).items():
        if array.dtype.kind not in _KINDS or array.dtype.name == "bfloat16":
            raise TypeError(f"array {name!r} holds {array.dtype}, not numbers")
        plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
        announced.append([name, plain.dtype.str, list(plain.shape)])
        payload.append(plain.reshape(-1).view(np.uint8).data)
    return [json.dumps({**event, "arrays": announced}).encode() + b"\n", *payload]


class Decoder:
    """Turns bytes as they come into messages. Whoever sent them may be hostile."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._event: dict[str, Any] | None = None
        self._announced: list[tuple[str, np.dtype[Any], tuple[int, ...], int]] = []

    def feed(self, data: bytes) -> None:
        self._bytes += data

    def next(self) -> Message | None:
        """The next whole message, or None while it is not there.

        Raises:
            MessageError: what came is no message, or larger than any of ours.
        """
        if self._event is None and not self._read_line():
            return None
        assert self._event is not None
        if len(self._bytes) < sum(size for *_, size in self._announced):
            return None
        arrays, start = {}, 0
        for name, dtype, shape, size in self._announced:
            arrays[name] = np.frombuffer(self._bytes[start : start + size], dtype).reshape(shape)
            start += size
        del self._bytes[:start]
        event, self._event = self._event, None
        return Message(event, arrays)

    def _read_line(self) -> bool:
        end = self._bytes.find(b"\n")
        if end < 0 and len(self._bytes) <= _LONGEST_LINE:
            return False
        if not 0 <= end <= _LONGEST_LINE:
            raise MessageError("a line without end")
        try:
            event = json.loads(self._bytes[:end])
            self._announced = [_announced(*entry) for entry in event.pop("arrays")]
            if not isinstance(event["event"], str) or sum(size for *_, size in self._announced) > _LARGEST_PAYLOAD:
                raise MessageError("no event, or too many bytes")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise MessageError(repr(error)) from None
        del self._bytes[: end + 1]
        self._event = event
        return True


def _announced(name: Any, dtype: Any, shape: Any) -> tuple[str, np.dtype[Any], tuple[int, ...], int]:
    kind = np.dtype(str(dtype))
    sizes = tuple(int(size) for size in shape)
    if kind.kind not in _KINDS or any(size < 0 for size in sizes) or len(sizes) > 32:
        raise MessageError("no array of numbers")
    size = kind.itemsize
    for dimension in sizes:  # Python's integers: no overflow hides a size
        size *= dimension
    return str(name), kind, sizes, size


class Channel:
    """The child's end. `theirs` and `refuse` end the child with an error that the parent raises in its own name."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._decoder = Decoder()
        self.folders: tuple[Path, ...] = ()

    def send(self, event: str, arrays: Mapping[str, NDArray[Any]] | None = None, **fields: Any) -> None:
        for part in encode({"event": event, **fields}, arrays):
            self._line.sendall(part)

    def receive(self) -> Message:
        """The next message of the parent's. Ends the child where the parent has hung up."""
        while (message := self._decoder.next()) is None:
            data = self._line.recv(_BLOCK)
            if not data:
                sys.exit(0)
            self._decoder.feed(data)
        return message

    def refuse(self, reason: str, remedy: str, exit_code: int = 2) -> NoReturn:
        """End with an error that a user can cause."""
        self.send("error", reason=reason, remedy=remedy, exit_code=exit_code)
        self.hang_up()

    @contextlib.contextmanager
    def theirs(self, what: str, remedy: str) -> Iterator[None]:
        """Whatever the user's code in here raises, SystemExit too, becomes an error that says where it happened."""
        try:
            yield
        except BaseException as error:
            self._failed(what, error, remedy)

    def place(self, error: BaseException) -> str:
        """The innermost line of the user's own files that the error came through, in brackets; empty if it came through none."""
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if any(folder in Path(frame.filename).parents for folder in self.folders):
                return f" ({Path(frame.filename).name}, line {frame.lineno})"
        return ""

    def hang_up(self) -> NoReturn:
        """Go at once: threads and exit handlers of the user's have no say in it."""
        with contextlib.suppress(ValueError, OSError):  # the user's code may have closed them
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(0)

    def see(self, folder: Path) -> None:
        """Let the user's folder be found, after everything installed, and hide our own packages."""
        self.folders = (*self.folders, folder)
        sys.path.append(str(folder))
        sys.meta_path[:] = [finder if isinstance(finder, _Wall) else _Wall(finder, self) for finder in sys.meta_path]

    def function(self, reference: str, what: str) -> Callable[..., Any]:
        """The function that `module:name` or `path/to/file.py:name` names in the first folder seen."""
        source, colon, name = reference.rpartition(":")
        remedy = f"Name the {what} as file.py:function or module:function, seen from the folder you call optimize in."
        if not (source and colon and name):
            self.refuse(f"{reference!r} names no {what}.", remedy)
        module = self._from_file(source, what, remedy) if source.endswith(".py") else self._from_name(source, what, remedy)
        found: Any = module
        for part in name.split("."):
            found = getattr(found, part, None)
        if not callable(found):
            there = [key for key, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == module.__name__]
            self.refuse(f"{source} has no {what} {name!r}; it defines {', '.join(there[:8]) or 'no function'}.", remedy)
        return found  # type: ignore[no-any-return]

    def _from_name(self, source: str, what: str, remedy: str) -> ModuleType:
        try:
            return importlib.import_module(source)
        except BaseException as error:
            # `a.b` is missing where the import of `a` fails by that name, too; another name is missing inside the user's code.
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing and f"{source}.".startswith(f"{missing}."):
                self.refuse(f"The module {source!r} of the {what} can't be found.", remedy)
            self._failed(f"Importing {source}", error, _IMPORTABLE)

    def _from_file(self, source: str, what: str, remedy: str) -> ModuleType:
        file = (self.folders[0] / source).resolve()
        if not file.is_file():
            self.refuse(f"The file {source!r} of the {what} can't be found.", remedy)
        if file.parent not in self.folders:
            self.see(file.parent)  # a file may import those beside it
        name = file.stem
        with self.theirs(f"Importing {source}", _IMPORTABLE):
            spec = importlib.util.find_spec(name) if name.isidentifier() else None
            here = spec is not None and spec.origin is not None and Path(spec.origin).resolve() == file
            # Where another module has that name, this one gets a name of its own, so that it shadows nothing.
            module = importlib.import_module(name) if here else _module(f"user_{name}", file)
        return module

    def _failed(self, what: str, error: BaseException, remedy: str) -> NoReturn:
        self.refuse(f"{what} raised {said(error)}{self.place(error)}.", remedy)


class _Wall:
    """A finder of modules behind which `optimizer`, `calibration` and `kernels` are the user's own, or nobody's.

    It stands before each finder rather than as one more in front of them, so that `importlib.util.find_spec("kernels")` says
    None, which libraries ask, instead of raising.
    """

    def __init__(self, finder: Any, channel: Channel) -> None:
        self._finder = finder
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        if name.partition(".")[0] in OURS:
            return importlib.machinery.PathFinder.find_spec(name, path or [str(folder) for folder in self._channel.folders])
        return self._finder.find_spec(name, path, target)


def said(error: BaseException) -> str:
    """An exception in one line: its type and the first lines of what it says."""
    if isinstance(error, MemoryError):
        return "MemoryError: there is not enough memory"
    text = " ".join(str(error).split())
    return type(error).__name__ + (f": {text[:600]}" if text else "")


def open_channel() -> Channel:
    """The line to the parent that `optimizer.process` gave this child."""
    line = socket.socket(fileno=int(os.environ.pop(CHANNEL)))
    line.set_inheritable(False)
    return Channel(line)


def run(worker: Callable[[Channel], None]) -> NoReturn:
    """Run a worker to its end and say so: `done`, or what it raised as `failed`; then go without waiting for threads."""
    channel = open_channel()
    try:
        worker(channel)
        channel.send("done")
    except BaseException as error:
        traceback.print_exc()  # on the captured standard error
        channel.send("failed", said=said(error))
    channel.hang_up()


def main(*files: Path) -> NoReturn:
    """Run `main(channel)` of the last file, a worker that must not see our package, with the others importable by name."""

    def worker(channel: Channel) -> None:
        *parts, script = files
        for part in parts:
            _module(part.stem, part)
        _module("optimize_worker", script).main(channel)

    run(worker)


def _module(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    beside = str(Path(__file__).resolve().parent)  # Python puts it first; -P, which keeps it out, came with 3.11
    sys.path[:] = [entry for entry in sys.path if entry != beside]
    main(*map(Path, sys.argv[1:]))
