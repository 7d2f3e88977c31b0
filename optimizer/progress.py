"""Progress is an argument: each long step calls `track(step, done, total)`; only `cli/` turns that into bars or lines."""

from __future__ import annotations

from typing import Protocol


class Track(Protocol):
    """Told of each step as it goes on; `total` is 0 where it can't be known."""

    def __call__(self, step: str, done: int, total: int) -> None: ...


def silent(step: str, done: int, total: int) -> None:
    """The track that shows nothing."""
