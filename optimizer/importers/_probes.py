"""A graph held against the network that it was exported from: the same made-up inputs, the same answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

_WRONG = 1e-3


class UnlikeError(Exception):
    """There is no graph, or it is not the network; says why."""


@dataclass(frozen=True)
class Probe:
    """What the network itself answers to made-up inputs; `words` say which dimension stands at which size.

    `zeros`: all numbers in the inputs are 0.  Answers may then hang on rounding alone (equal scores ranked, a spread of 0 divided
    by), so that only a number that is finite in the network and not in the graph proves a wrong graph.
    """

    words: str
    zeros: bool
    feeds: Mapping[str, NDArray[Any]]
    outputs: Sequence[NDArray[Any]]


def probe(event: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Probe:
    """The probe that a worker's message carries."""
    feeds = {name.removeprefix("in."): array for name, array in arrays.items() if name.startswith("in.")}
    return Probe(event["words"], event["zeros"], feeds, [array for name, array in arrays.items() if name.startswith("out.")])


def held_against(file: Path, probes: Sequence[Probe]) -> float:
    """The largest difference between the graph in `file` and the network, relative to the largest answer.

    Raises:
        UnlikeError: it fails where the network runs, or its answers have other shapes or differ by more than rounding.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is told as the reason
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    taken = {value.name for value in session.get_inputs()}
    worst = 0.0
    for one in probes:
        try:
            found = session.run(None, {name: array for name, array in one.feeds.items() if name in taken})
        except Exception as error:
            raise UnlikeError(f"at {one.words} the network runs and the graph does not ({' '.join(str(error).split())[:200]}).") from error
        if [array.shape for array in found] != [array.shape for array in one.outputs]:
            shapes = " and ".join(str([array.shape for array in arrays]) for arrays in (one.outputs, found))
            raise UnlikeError(f"at {one.words} the shapes of their answers are {shapes}.")
        pairs = list(zip(one.outputs, found, strict=True))
        if one.zeros:
            if any(np.any(np.isfinite(wanted) & ~np.isfinite(array)) for wanted, array in pairs):
                raise UnlikeError(f"at {one.words} the graph gives numbers that are not finite where the network's are.")
            continue
        worst = max(worst, *(_difference(*pair) for pair in pairs))
        if not worst <= _WRONG:
            raise UnlikeError(f"at {one.words} the graph's answers differ from the network's by {worst:.1e} of the largest.")
    return worst


def _difference(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    """Largest difference relative to the largest number wanted; infinite where what is not finite differs."""
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], found[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    wanted, found = wanted[finite].astype(np.float64), found[finite].astype(np.float64)
    return float(np.abs(wanted - found).max() / max(np.abs(wanted).max(), 1e-12))
