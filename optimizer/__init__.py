"""optimize: a compiler for trained models in which nothing degrades in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from optimizer.package.load import LoadedEngine
    from optimizer.pipeline import Outcome


def build(model: str | Path, output: str | Path, **words: Any) -> Outcome:
    """Build an engine for `model` into the folder `output`; `words` are the fields of `optimizer.request.Request`.

    Raises:
        OptimizeError: what the command line would show as an error.
    """
    from optimizer.pipeline import build as run
    from optimizer.request import request_from_words

    return run(request_from_words(model=model, output=output, **words))


def load(folder: str | Path, *, trust: bool = False) -> LoadedEngine:
    """The engine in a folder that `build` wrote: `run` takes preprocessed arrays by name, `run_raw` raw ones.

    `trust` lets it run a library of custom operators that lies in the folder.

    Raises:
        InputError: it brings such a library and is not trusted.
        VerificationError: the folder is not what its passport says.
        UnavailableError: the engine can't run on this machine.
    """
    from pathlib import Path

    from optimizer.package.load import load as run

    return run(Path(folder), trust)
