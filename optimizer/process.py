"""Children: programs that run beside us, die with us, are held to limits, and tell what they do as an iterator of events.

Whatever a child does (raise, crash, hang, fill its memory, exit early, write megabytes or nonsense) comes out as an
`OptimizeError` with a reason; never as a hang or as an exception of ours.  The kernel kills a child when the *thread* that
spawned it ends, so a child must be used in the thread that made it.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.child import CHANNEL, OURS, Decoder, Message, MessageError, encode
from optimizer.errors import InputError, OptimizeError, UnavailableError, VerificationError

_HERE = Path(__file__).parent
_BLOCK = 1 << 20
_TAIL = 1 << 13
_TICK = 0.1
_GRACE = 2.0
_LONGEST_SENTENCE = 1500
_PATIENCE = 900.0  # seconds for one answer, the export of a large network among them
_CONTAINER = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_STARTING = 60.0  # seconds for an interpreter to start
_OLDEST = (3, 8)
_OUR_PYTHON = frozenset({"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "__PYVENV_LAUNCHER__"})
_ASK = """
import json, sys
missing = []
if sys.version_info >= (3, 8):
    from importlib.util import find_spec
    missing = [name for name in sys.argv[1:] if find_spec(name) is None]
json.dump([sys.version_info[:2], missing], sys.stdout)
"""
_ERRORS: Mapping[Any, type[OptimizeError]] = {2: InputError, 5: UnavailableError, 6: VerificationError}


class Child:
    """One child process and the line to it. Use it in a `with`, in one thread: leaving kills it and all it started.

    `command` is the absolute path of a program and its arguments; it runs in `folder`, with no standard input, and finds the
    line by `optimizer.child.open_channel()`.  `what` names it in errors ("The factory net.py:make").  `memory` limits its
    private memory in bytes; default: three quarters of what there is here.  `patience` limits the seconds for one answer.
    """

    def __init__(self, command: Sequence[str], *, folder: Path, what: str, memory: int | None = None, patience: float = _PATIENCE) -> None:
        self._what = what
        self._patience = patience
        limit = memory if memory is not None else memory_here() * 3 // 4
        self._decoder = Decoder()
        self._outgoing: list[bytes | memoryview] = []
        self._tail = bytearray()
        self._line, theirs = socket.socketpair()
        watched, watch = os.pipe()
        self._watch = os.fdopen(watch, "wb", buffering=0)
        with theirs, os.fdopen(watched):
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_HERE / "launch.py"), str(os.getpid()), str(limit), str(watched), *command],
                cwd=folder,
                env={**_environment(command[0]), CHANNEL: str(theirs.fileno()), "PYTHONDONTWRITEBYTECODE": "1"},
                pass_fds=[theirs.fileno(), watched],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own: Ctrl-C reaches us, and we end it with all that it started
            )
        assert self._process.stdout is not None
        self._output = self._process.stdout
        self._line.setblocking(False)
        os.set_blocking(self._output.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._line, selectors.EVENT_READ)
        self._selector.register(self._output, selectors.EVENT_READ)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the child and everything in its process group; twice does no harm."""
        if self._process.returncode is None:
            self._kill()
            self._process.wait()
        if not self._watch.closed:
            with suppress(BrokenPipeError), self._watch:
                self._watch.write(b"!")
        self._selector.close()
        self._line.close()
        self._output.close()

    def send(self, event: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Hand over a message; it travels while `receive` waits, so that neither side can block the other for good."""
        self._outgoing.extend(encode(event, arrays))

    def receive(self, seconds: float | None = None) -> Message:
        """The child's next message, waited for at most `seconds`; default: the child's patience.

        Raises:
            InputError: the child ended, ran out of time or memory, or sent what is no message.
            OptimizeError: of the kind that the child named in an `error` event.
        """
        seconds = self._patience if seconds is None else seconds
        end = time.monotonic() + seconds
        drained = math.inf
        while (message := self._next()) is None:
            if time.monotonic() > end:
                raise self._error(f"took more than {seconds:.0f} s without an answer", "Make it faster, or find out where it waits.")
            if self.alive():
                self._move(_TICK)
                self._heed_hanging_up()
            else:  # what it sent last is still read, but not for ever: something it started may write on
                self._kill()
                drained = min(drained, time.monotonic() + _GRACE)
                if not self._move(0) or time.monotonic() > drained:
                    raise self._ended()
        if message.event["event"] == "error":
            raise _error_from_event(message.event)
        if message.event["event"] == "failed":
            raise self._error(f"failed with {_sentence(message.event.get('said'))}", "Correct what it complains of, then build again.")
        return message

    def receive_array(self, name: str) -> NDArray[Any]:
        """The array called `name` in the child's next message."""
        arrays = self.receive().arrays
        if name not in arrays:
            raise self.nonsense()
        return arrays[name]

    def nonsense(self) -> InputError:
        """The error for a message that our worker would never send: the user's code wrote to the line."""
        return self._error("wrote to a line that is not its own", "Let it write only to files it opens itself.")

    def _next(self) -> Message | None:
        try:
            return self._decoder.next()
        except MessageError:
            raise self.nonsense() from None

    def alive(self) -> bool:
        """Whether it runs; a dead one is left unreaped, so that its number names nobody else while we may still kill its group."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _heed_hanging_up(self) -> None:
        """A child that closed its line has nothing more to say; it may take a moment to end."""
        if self._line not in self._selector.get_map():
            end = time.monotonic() + _GRACE
            while self.alive():
                if time.monotonic() > end:
                    raise self._error("closed the line it answers on", "Let it close only files it opened itself.")
                time.sleep(_TICK)

    def _move(self, seconds: float) -> bool:
        """Carry bytes both ways; False if for `seconds` there was nothing to carry."""
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outgoing else 0)
        if self._line in self._selector.get_map():
            self._selector.modify(self._line, wanted)
        moved = False
        for key, mask in self._selector.select(seconds):
            if mask & selectors.EVENT_WRITE:
                self._write()
                moved = True
            if mask & selectors.EVENT_READ:
                moved |= self._read(key)
        return moved

    def _write(self) -> None:
        part = memoryview(self._outgoing[0])
        try:
            sent = self._line.send(part[:_BLOCK])
        except (BrokenPipeError, ConnectionResetError):
            self._outgoing.clear()  # it hung up: what it said before, or its end, is the answer
            return
        self._outgoing[:1] = [part[sent:]] if sent < len(part) else []

    def _read(self, key: selectors.SelectorKey) -> bool:
        try:
            data = os.read(key.fd, _BLOCK)
        except (BlockingIOError, ConnectionResetError):
            data = b""
        if not data:
            self._selector.unregister(key.fileobj)
            return False
        if key.fd == self._output.fileno():
            self._tail = (self._tail + data)[-_TAIL:]
        else:
            self._decoder.feed(data)
        return True

    def _ended(self) -> OptimizeError:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return self._error("was killed, which the system does when memory runs out", "Give it more memory, or a smaller model.")
        if code < 0:
            return self._error(f"crashed with {signal.Signals(-code).name}", "Run it with python alone to see where.")
        return self._error(f"ended with exit code {code} before it was done", "Let it return instead of ending the process.")

    def _error(self, how: str, remedy: str) -> InputError:
        """An error that tells the last lines the child wrote."""
        lines = [_sentence(line, 200) for line in self._tail.decode(errors="replace").splitlines() if line.strip()]
        last = f"; its last words: {' / '.join(lines[-3:])}" if lines else ""
        return InputError(f"{self._what} {how}{last}.", remedy)


def run_worker(
    command: Sequence[str], *, request: Mapping[str, Any], folder: Path, what: str, memory: int | None = None, seconds: float | None = None
) -> Iterator[dict[str, Any]]:
    """Start a worker, hand it `request` (it calls `open_channel().receive()`), and yield its events up to and with `done`.

    `seconds` limits the time that we wait for it in all (default: no limit); the time that the caller takes between two events
    does not count.
    """
    left = math.inf if seconds is None else seconds
    with Child(command, folder=folder, what=what, memory=memory) as child:
        child.send({"event": "request", **request})
        kind = ""
        while kind != "done":
            start = time.monotonic()
            event = child.receive(left).event
            left -= time.monotonic() - start
            kind = event["event"]
            yield event


class Workers:
    """Workers that stay for further requests, one a command, each started in `folder` when it is first asked.

    Such a worker answers each request with one event, within `patience` seconds.  One that refuses, crashes or takes longer is ended, and
    the next request gets a fresh one.  Use it in a `with`, in one thread: leaving ends them all.
    """

    def __init__(self, folder: Path, *, patience: float = _PATIENCE) -> None:
        self._folder, self._patience = folder, patience
        self._children: dict[tuple[str, ...], Child] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for child in self._children.values():
            child.close()
        self._children.clear()

    def ask(self, command: Sequence[str], request: Mapping[str, Any], *, what: str) -> dict[str, Any]:
        """The event that the worker answers with; `what` names it in errors.

        Raises:
            OptimizeError: as `Child.receive` does.
        """
        child = self._children.pop(tuple(command), None)
        if child is not None and not child.alive():  # the system takes idle ones first where memory runs out
            child.close()
            child = None
        child = child or Child(command, folder=self._folder, what=what, patience=self._patience)
        try:
            child.send({"event": "request", **request})
            answer = child.receive().event
        except BaseException:
            child.close()
            raise
        self._children[tuple(command)] = child
        return answer


def isolated(script: Path, *parts: Path, python: Path | None = None, needs: Sequence[str] = ()) -> list[str]:
    """The command that runs `main(channel)` of a worker file in a process that finds none of our packages.

    `parts` are files that the worker imports by name; the names must be ones that no user would give a module.  `python` is an
    interpreter of the user's to run it, 3.8 or newer, where numpy and the packages that it `needs` are installed; default: ours.

    Raises:
        InputError: `python` does not run, is too old, or lacks a package.
    """
    interpreter = sys.executable if python is None else _checked(python, ["numpy", *needs])
    return [interpreter, str(_HERE / "child.py"), *map(str, parts), str(script)]


def _checked(python: Path, needs: Sequence[str]) -> str:
    """The interpreter's absolute path, its links unfollowed: a virtual environment is known by the link in its folder."""
    interpreter = str(python.absolute())
    try:
        ran = subprocess.run(
            [interpreter, "-c", _ASK, *needs], cwd="/", env=_environment(interpreter), capture_output=True, timeout=_STARTING
        )
        version, missing = json.loads(ran.stdout)
    except (OSError, ValueError, TypeError, subprocess.TimeoutExpired):
        raise InputError(f"{python} does not run as a Python interpreter.", "Pass --source-python PATH/TO/bin/python.") from None
    if tuple(version) < _OLDEST:
        raise InputError(f"{python} is Python {version[0]}.{version[1]}, and 3.8 is the oldest that works.", "Pass a newer one.")
    if missing:
        remedy = f"Install it there ({python} -m pip install {missing[0]}), or pass the interpreter that trained the model."
        raise InputError(f"{python} has no {missing[0]}.", remedy)
    return interpreter


def _environment(program: str) -> dict[str, str]:
    """The variables for a program: one that is not our interpreter gets none that lead to our packages."""
    ours = () if program == sys.executable else _OUR_PYTHON
    return {name: value for name, value in os.environ.items() if name not in ours}


def user_arrays(reference: str, folder: Path) -> Iterator[dict[str, NDArray[Any]]]:
    """The dicts of arrays that a generator function of the user's yields, made as they are asked for.

    `reference` is `file.py:function` or `module:function`, seen from `folder`.
    """
    with _user_function(reference, folder, "data function", "generate") as child:
        while (message := child.receive()).event["event"] != "done":
            yield message.arrays


@contextmanager
def user_transform(reference: str, folder: Path) -> Iterator[Callable[[NDArray[Any]], NDArray[Any]]]:
    """A preprocessing function of the user's, one input's raw array to what the model takes, kept open for many calls."""
    with _user_function(reference, folder, "preprocessing function", "transform") as child:

        def transform(array: NDArray[Any]) -> NDArray[Any]:
            child.send({"event": "call"}, {"raw": array})
            return child.receive_array("prepared")

        yield transform


@contextmanager
def user_tokens(reference: str, folder: Path) -> Iterator[Callable[[str, str | None], dict[str, NDArray[Any]]]]:
    """A tokenizer of the user's, a text and perhaps its pair to arrays by input name, kept open for many calls."""
    with _user_function(reference, folder, "tokenizer", "tokenize") as child:

        def tokenize(text: str, pair: str | None) -> dict[str, NDArray[Any]]:
            texts = {"text": text} if pair is None else {"text": text, "pair": pair}
            child.send({"event": "call"}, {name: np.frombuffer(one.encode(errors="replace"), np.uint8) for name, one in texts.items()})
            return child.receive(_PATIENCE).arrays

        yield tokenize


Scorer = Callable[[Mapping[str, NDArray[Any]], NDArray[Any] | None], NDArray[Any] | float]
"""A metric of a user's: outputs by name and the labels, if any, to scores of shape (n,), or to one float over all."""


@contextmanager
def user_scores(reference: str, folder: Path) -> Iterator[Scorer]:
    """A metric of the user's, kept open for many calls: a jackknife asks it again for each block."""
    with _user_function(reference, folder, "metric", "score") as child:

        def scored(outputs: Mapping[str, NDArray[Any]], labels: NDArray[Any] | None) -> NDArray[Any] | float:
            arrays = {f"outputs.{name}": array for name, array in outputs.items()}
            child.send({"event": "call"}, arrays if labels is None else {**arrays, "labels": labels})
            score = child.receive_array("score")
            return score if score.ndim else float(score)

        yield scored


def _user_function(reference: str, folder: Path, role: str, use: str) -> Child:
    child = Child(isolated(_HERE / "user_worker.py"), folder=folder, what=f"The {role} {reference}")
    child.send({"event": "request", "reference": reference, "folder": str(folder), "role": role, "use": use})
    return child


def memory_here() -> int:
    """Bytes of memory that this machine has, or the container that we run in may take of it."""
    limits = [file.read_text().strip() for file in _CONTAINER if file.is_file()]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *(int(limit) for limit in limits if limit.isdigit())])


def check_house() -> None:
    """Refuse to work where another package took the place of one of ours: PyPI's `kernels` installs that name, too.

    Raises:
        InputError: `calibration` or `kernels` is not the one that belongs to this `optimizer`.
    """
    for name in sorted(OURS):
        ours = _HERE.parent / name
        spec = find_spec(name)
        found = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
        if found is None or found.resolve() != ours.resolve() or _taken(name, ours):
            raise InputError(
                f"The package {name!r} that Python finds here is not the one that belongs to optimize.",
                "Install optimize into an environment of its own, where no other package brings that name.",
            )


def _taken(name: str, ours: Path) -> bool:
    """Whether a distribution called like a package of ours wrote over it."""
    try:
        return Path(str(distribution(name).locate_file(name))).resolve() == ours.resolve()
    except PackageNotFoundError:
        return False


def _error_from_event(event: Mapping[str, Any]) -> OptimizeError:
    code = event.get("exit_code")
    kind = _ERRORS.get(code, InputError) if isinstance(code, int) else InputError
    return kind(_sentence(event.get("reason")), _sentence(event.get("remedy")))


def _sentence(text: object, longest: int = _LONGEST_SENTENCE) -> str:
    """A child's words as one line of bounded length without control characters."""
    line = "".join(letter if letter.isprintable() else " " for letter in str(text))
    return " ".join(line.split())[:longest]
