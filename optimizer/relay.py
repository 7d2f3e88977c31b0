"""An engine made of several that run one after the other, each a region of one model: to its user it is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from optimizer.engine import Arrays, Engine, checker
from optimizer.errors import InputError
from optimizer.model import TensorSpec
from optimizer.provenance import from_json, to_json

FILE = "engine.json"
"""What an engine folder in regions has in place of an engine's own file; the engine of region n lies in `engine/n`."""

SCHEMA = "optimize.regions/1"


@dataclass(frozen=True)
class Line:
    """Who runs in which order, and what all of it takes and gives."""

    backends: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    schema: str = SCHEMA


def write(line: Line, folder: Path) -> None:
    """The file by which `folder` is known for an engine in regions."""
    (folder / FILE).write_bytes(to_json(line))


def read(folder: Path) -> Line | None:
    """What `write` wrote, None where an engine folder is one backend's.

    Raises:
        InputError: the file can't be read, or is another version's.
    """
    if not (file := folder / FILE).is_file():
        return None
    line = from_json(file.read_bytes(), Line, FILE)
    if line.schema != SCHEMA:
        raise InputError(f"{FILE} was written by another version ({line.schema}, not {SCHEMA}).", "Build the engine again.")
    return line


def region(folder: Path, number: int) -> Path:
    """Where the engine of a region lies, the first of which is number 0."""
    return folder / "engine" / str(number + 1)


class Relay:
    """An Engine: each of `engines` takes what the caller gave and what those before it made, by name.

    Raises:
        InputError: an engine takes, or all are to give, what nobody makes before: they are not regions of one model.
    """

    def __init__(self, engines: Sequence[Engine], inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._engines = [(engine, [spec.name for spec in engine.inputs]) for engine in engines]
        self._check = checker(inputs)
        known = {spec.name for spec in inputs}
        for engine, needed in [*self._engines, (None, [spec.name for spec in outputs])]:
            if missing := sorted(set(needed) - known):
                raise InputError(f"Nothing in this engine makes {missing[0]!r} before it is needed.", "Build the engine again.")
            known |= {spec.name for spec in engine.outputs} if engine is not None else set()

    @property
    def peak_bytes(self) -> int | None:
        """Of all engines together, which keep their memory between runs, where they tell."""
        known = [engine.peak_bytes for engine, _ in self._engines if engine.peak_bytes is not None]
        return sum(known) if len(known) == len(self._engines) else None

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Every output by name.

        Raises:
            InputError: an input is missing, unknown, of the wrong dtype or shape, or holds what a layer can't take.
        """
        self._check(feeds)
        known = dict(feeds)
        for engine, names in self._engines:
            known |= engine.run({name: known[name] for name in names})
        return {spec.name: known[spec.name] for spec in self.outputs}

    def close(self) -> None:
        for engine, _ in self._engines:
            engine.close()
