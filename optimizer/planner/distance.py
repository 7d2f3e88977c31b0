"""How far a lower precision takes the outputs from the parent's: for screening inside the search, never for a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.engine import Arrays

Run = Callable[[Arrays], Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class Distance:
    """`error` is the relative root-mean-square error of the worst output over all samples (inf where a number is not finite);

    `agreement` is the share of rows whose largest entry stays the same, None where no output looks like scores of classes.
    """

    error: float
    agreement: float | None


def distance(parent: Sequence[Mapping[str, NDArray[Any]]], run: Run, feeds: Sequence[Arrays]) -> Distance:
    """The distance of what `run` gives on `feeds` from what the parent gave there."""
    off: dict[str, float] = {}
    size: dict[str, float] = {}
    same: list[NDArray[np.bool_]] = []
    for wanted, feed in zip(parent, feeds, strict=True):
        got = run(feed)
        for name, want in wanted.items():
            if want.dtype.kind != "f":
                continue
            exact, other = want.astype(np.float64), got[name].astype(np.float64)
            off[name] = off.get(name, 0.0) + (float(np.square(other - exact).sum()) if np.isfinite(other).all() else math.inf)
            size[name] = size.get(name, 0.0) + float(np.square(exact).sum())
        if (scores := _scores(wanted)) is not None:
            same.append(wanted[scores].argmax(-1) == got[scores].argmax(-1))
    errors = [math.sqrt(off[name] / size[name]) if size[name] > 0 else (math.inf if off[name] > 0 else 0.0) for name in off]
    return Distance(max(errors, default=0.0), float(np.concatenate(same).mean()) if same else None)


def _scores(outputs: Mapping[str, NDArray[Any]]) -> str | None:
    """The first output that can be scores of at least two classes, one row a sample."""
    return next((name for name, array in outputs.items() if array.dtype.kind == "f" and array.ndim == 2 and array.shape[1] > 1), None)
