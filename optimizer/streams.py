"""An engine made of several copies of one, which run side by side: callers in many threads share them."""

from __future__ import annotations

from collections.abc import Sequence
from queue import LifoQueue
from typing import Any

from numpy.typing import NDArray

from optimizer.engine import Arrays, Engine
from optimizer.model import TensorSpec


class Streams:
    """An Engine whose `run` may be called from many threads: each call takes a copy that is free, or waits for one.

    The copies are loaded from one folder; the one that ran last runs next, while its weights are in the caches. Backends let go of
    Python's lock while an engine runs, so the copies truly run at once.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = tuple(engines)
        self._free: LifoQueue[Engine] = LifoQueue()
        for engine in reversed(self._engines):
            self._free.put(engine)

    def __len__(self) -> int:
        return len(self._engines)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._engines[0].inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._engines[0].outputs

    @property
    def peak_bytes(self) -> int | None:
        """Of all copies together, where they tell."""
        known = [engine.peak_bytes for engine in self._engines if engine.peak_bytes is not None]
        return sum(known) if len(known) == len(self._engines) else None

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Every output by name, from the first copy that is free.

        Raises:
            InputError: an input is missing, unknown, of the wrong dtype or shape.
        """
        engine = self._free.get()
        try:
            return engine.run(feeds)
        finally:
            self._free.put(engine)

    def close(self) -> None:
        """Close every copy, once the runs that are under way are done."""
        taken = [self._free.get() for _ in self._engines]
        for engine in taken:
            engine.close()
            self._free.put(engine)  # who calls later is told by the engine that it was closed
