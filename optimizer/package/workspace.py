"""Where a build writes: a hidden folder beside OUT that takes OUT's place when it is whole, and otherwise leaves nothing.

`.OUT.partial` is locked for as long as the build lives, so a second build of the same OUT is refused, and one that a killed
build left behind (a lock dies with its process) is known to be stale.  It holds what becomes OUT, and the build's own scratch.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from optimizer.errors import InputError, OptimizeError

OURS = (
    "passport.json",
    "passport.sig",
    "engine",
    "engine.*",
    "handover",
    "plan.json",
    "calibration.json",
    "timings.json",
    "timings.jsonl",
    "parent.jsonl",
    "report.*",
    "junit.xml",
    "attestations",
)
"""What a build writes at the top of an engine folder, as patterns; anything else there is somebody else's."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_FULL = {errno.ENOSPC: "The disk is full", errno.EDQUOT: "The disk quota is used up"}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_HARDLY_ANY = 256 << 10
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Workspace:
    """A context whose `folder` is empty and private; `commit()` makes it OUT in one step, leaving without it removes it.

    `scratch` is a second empty folder on the same disk, for what the build needs meanwhile; it goes in any case.  `kept` is a third
    one: with `resume` it holds what a build that was killed has left in its own.
    `reads` are the files that the build reads: OUT may not hold one of them, since it is replaced as a whole.

    Raises:
        InputError: OUT is a file, holds what no build wrote, is being built by somebody else, or can't be written; also in
            place of an error of the system inside the context that says so (disk full, read-only). Nothing is left behind.
    """

    def __init__(self, output: Path, reads: Sequence[Path] = (), resume: bool = False) -> None:
        self.output = output.resolve()
        if not self.output.name:
            raise InputError(f"{output} can't be an engine folder.", "Give -o a folder of its own.")
        self._partial = self.output.with_name(f".{self.output.name}.partial")
        self.folder = self._partial / "whole"
        self.scratch = self._partial / "scratch"
        self.kept = self._partial / "kept"
        self._resume = resume
        self._previous = self._partial / "previous"
        self._reads = reads
        self._lock = -1
        self._made: list[Path] = []

    def __enter__(self) -> Self:
        try:
            refuse_foreign(self.output, self._reads)
            self._made = _make_parents(self.output.parent)
            self._lock = _locked(self._partial, self.output)
            _recover(self._previous, self.output)
            _empty(self._partial, spare=self.kept if self._resume else None)
            self.folder.mkdir()
            self.scratch.mkdir()
            self.kept.mkdir(exist_ok=True)
        except BaseException as error:
            with _undisturbed():
                self._leave()
            if isinstance(error, OSError):
                raise _explained(error, self.output) from error
            raise
        return self

    def commit(self) -> None:
        """Put what was written in OUT's place; a process that is killed meanwhile leaves the old OUT or the new one.

        Raises:
            InputError: OUT came to hold something foreign since the build began, or can't be replaced.
        """
        refuse_foreign(self.output, self._reads)
        try:
            _exchange(self.folder, self.output, self._previous)
        except OSError as error:
            raise _explained(error, self.output) from error
        self._made = []

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with _undisturbed():
            full = isinstance(error, Exception) and not isinstance(error, OptimizeError) and _is_full(error, self.folder)
            self._leave()
        if full:
            raise InputError(
                f"The disk of {self.output.name} is full.", "Free space there, or give -o a folder on another disk."
            ) from error
        if isinstance(error, OSError) and error.errno == errno.EROFS:
            raise _explained(error, self.output) from error

    def _leave(self) -> None:
        """Remove the partial, give up its lock, and remove the parents that were made for an OUT which did not come to be."""
        if self._lock >= 0:
            _recover(self._previous, self.output)
            # What can't be removed now, the next build of this OUT clears.
            shutil.rmtree(self._partial, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1
        for made in reversed(self._made):
            if made.is_dir() and not any(made.iterdir()):
                made.rmdir()
        self._made = []


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold back what would stop the process (Ctrl-C, SIGTERM, SIGHUP) until the block is done; then it takes effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _frame: came.append(number)) for number in _STOPS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if came:
            signal.raise_signal(came[0])


def refuse_foreign(output: Path, reads: Sequence[Path] = ()) -> None:
    """Raises InputError unless OUT is not there, is empty, or holds only what a build of ours wrote."""
    for path in reads:
        file = path.resolve()
        if file.is_relative_to(output) or (file.is_dir() and output.is_relative_to(file)):
            raise InputError(
                f"The output folder {output.name} would replace {path.name}, which the build reads.", "Give -o another folder."
            )
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"{output.name} is a file, not an engine folder.", "Give -o the name of a folder.")
    foreign = _foreign(output)
    if foreign is not None:
        raise InputError(
            f"The folder {output.name} is not an engine folder of ours: it holds {foreign}.", "Give -o a new folder, or empty this one."
        )


def _foreign(folder: Path) -> str | None:
    """The name of something in a folder that no build wrote, None where all of it is ours."""
    entries = sorted(path.name for path in folder.iterdir())
    if not entries:
        return None
    if not any(is_ours(folder / name) for name in ("report.json", "passport.json")):
        return entries[0]
    for name in entries:
        if any(fnmatch(name, pattern) for pattern in OURS):
            continue
        # One folder a target, where several were asked for.
        below = folder / name
        if not below.is_dir() or below.is_symlink() or not any(below.iterdir()) or _foreign(below) is not None:
            return name
    return None


class _Signed(msgspec.Struct):
    schema: str


def is_ours(file: Path) -> bool:
    """Whether a JSON file says of itself that a build of ours wrote it."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Signed).schema.startswith("optimize.")
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def _make_parents(folder: Path) -> list[Path]:
    """Make the folders that are missing above OUT; those that were made, outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
    for path in missing:
        path.mkdir(exist_ok=True)
    return missing


def _locked(folder: Path, output: Path) -> int:
    """A descriptor of `folder`, made if need be, that holds its lock; raises InputError where another process has it.

    The loop is for a folder that its owner removes between our opening and locking it.
    """
    while True:
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(
                f"Another build is writing {output.name} right now.", "Wait for it to end, or give -o another folder."
            ) from None
        os.close(descriptor)


def _recover(previous: Path, output: Path) -> None:
    """Finish what a build that was killed between two renames left: OUT is the old one, or the new one, and no other."""
    if not previous.exists():
        return
    if output.exists():
        shutil.rmtree(previous)
    else:
        previous.rename(output)


def _empty(folder: Path, spare: Path | None) -> None:
    for path in folder.iterdir():
        if path == spare and path.is_dir() and not path.is_symlink():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _exchange(new: Path, output: Path, previous: Path) -> None:
    """`new` becomes `output`; what was there before stays in the partial, and goes with it.

    One system call where the file system can exchange two names, otherwise two renames that `_recover` completes.
    """
    if not output.exists():
        new.rename(output)
    elif not _renameat2(new, output):
        output.rename(previous)
        new.rename(output)


def _renameat2(one: Path, other: Path) -> bool:
    """Exchange two names (Linux, renameat2 with RENAME_EXCHANGE); False where kernel or file system can't."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _is_full(error: Exception, folder: Path) -> bool:
    """Whether an error came from a full disk; libraries that write in C++ say so in words of their own."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return folder.exists() and shutil.disk_usage(folder).free < _HARDLY_ANY


def _explained(error: OSError, output: Path) -> OptimizeError:
    if error.errno in _FULL:
        return InputError(f"{_FULL[error.errno]} where {output.name} was to be written.", "Free space there, or give -o another disk.")
    if error.errno in _CLOSED:
        return InputError(f"The folder of {output.name} can't be written ({os.strerror(error.errno)}).", "Give -o a folder you may write.")
    return InputError(f"{output.name} can't be written: {error.strerror or error}.", "Give -o a folder on a disk that takes it.")
