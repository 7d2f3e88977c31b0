"""Backends: each turns a typed graph into an engine and runs it. A backend is a module of this folder, found by its name.

It has five public functions (`Backend`) and nothing else public. The names are found by listing, so that a backend whose
package is not installed costs nothing and breaks nothing; the module is imported when it is picked.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, cast

import onnx_ir as ir

from kernels.target import Target
from optimizer import relay
from optimizer.engine import Built, Engine
from optimizer.errors import OptimizeError, UnavailableError
from optimizer.plan import Capability, Knobs
from optimizer.process import Workers
from optimizer.progress import Track, silent
from optimizer.relay import Relay
from optimizer.streams import Streams

NAMES: tuple[str, ...] = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
"""Every backend, whether it can be used here or not."""


class Backend(Protocol):
    """The five functions of a backend module."""

    def capability(self, target: Target) -> Capability:
        """What it can do for a target."""
        ...

    def knobs(self, target: Target) -> Mapping[str, tuple[int | float | str | bool, ...]]:
        """The settings of an engine and the values worth trying, the usual one first."""
        ...

    def missing(self, target: Target) -> str | None:
        """Why it can't build for this target here, with the way out, or None."""
        ...

    def build(
        self, graph: ir.Model, target: Target, knobs: Knobs, folder: Path, track: Track = silent, workers: Workers | None = None
    ) -> Built:
        """Write the engine of a typed graph into `folder`, and read back what became of each layer.

        `workers` are processes that may build further engines after this one; without them it uses none that stay.
        """
        ...

    def load(self, folder: Path, knobs: Knobs) -> Engine:
        """The engine that `build` wrote, ready to run."""
        ...


def backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        UnavailableError: there is none of that name, or the package that it stands on is not installed.
    """
    if name not in NAMES:
        raise UnavailableError(f"There is no backend called {name!r}.", f"Choose one of {', '.join(NAMES)}.")
    try:
        return cast(Backend, importlib.import_module(f"{__name__}.{name}"))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in {"optimizer", "calibration", "kernels"}:
            raise
        raise UnavailableError(
            f"The backend {name!r} needs the package {error.name!r}, which is not installed.",
            f"Install {error.name!r} beside optimize; README names the extra that brings it.",
        ) from None


def loader(name: str, folder: Path) -> Callable[[Knobs], Engine]:
    """What loads the engine in `folder`, as often as it is called, its packages imported: the backend `name` or, in regions, several.

    Raises:
        UnavailableError: a backend that built a part of it is not installed.
        InputError: the file that names them can't be read.
    """
    if (line := relay.read(folder)) is None:
        return partial(backend(name).load, folder)
    loads = [partial(backend(one).load, relay.region(folder, number)) for number, one in enumerate(line.backends)]
    return lambda knobs: Relay(_all([partial(load, knobs) for load in loads]), line.inputs, line.outputs)


def open_engine(name: str, folder: Path, knobs: Knobs) -> Streams:
    """The engine in `folder`, as often as its knob `streams` says, each copy with its own `threads`.

    Raises:
        UnavailableError: a backend can't load it.
    """
    return Streams(_all([partial(loader(name, folder), knobs)] * int(knobs.get("streams", 1))))


def _all(loads: Sequence[Callable[[], Engine]]) -> list[Engine]:
    """All engines, or none of them open."""
    engines = list[Engine]()
    try:
        for load in loads:
            engines.append(load())
    except OptimizeError:
        for engine in engines:
            engine.close()
        raise
    return engines


def missing(name: str, target: Target) -> str | None:
    """Why a backend can't build for this target here, with the way out, or None."""
    try:
        return backend(name).missing(target)
    except UnavailableError as error:
        return str(error)


def serving(target: Target) -> tuple[str, ...]:
    """The backends that can build for this target here."""
    return tuple(name for name in NAMES if missing(name, target) is None)
