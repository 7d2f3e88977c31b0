"""Signs in the numbers themselves: not numbers, nothing but one number, the same sample again and again, two data sets unlike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from optimizer.engine import Arrays
from optimizer.model import TensorSpec

_UNLIKE = 10.0
"""Times that one data set may spread wider than another of the same kind: 255 where one lies in 0..1 and one in 0..255."""


def numbers_suspected(source: str, feeds: Sequence[Arrays], inputs: Sequence[TensorSpec]) -> Iterator[str]:
    """Inputs that hold no numbers, or nothing but one number in most samples, and samples that are all the same."""
    for spec in inputs:
        arrays = [feed[spec.name] for feed in feeds]
        broken = sum(not np.isfinite(array).all() for array in arrays)
        if broken:
            yield f"{spec.name!r} holds NaN or infinity in {broken} of {len(arrays)} samples of {source}. Clean the data."
        empty = sum(array.size > 1 and array.min() == array.max() for array in arrays)
        if len(inputs) == 1 and 2 * empty > len(arrays):
            yield f"{spec.name!r} holds one number throughout in {empty} of {len(arrays)} samples of {source}. Look at the data."
        same = all(np.array_equal(array, arrays[0]) for array in arrays[1:])
        if len(inputs) == 1 and len(arrays) > 1 and same and not empty:
            yield f"{spec.name!r} is the same in all {len(arrays)} samples of {source}. Look at the data."


def spread_suspected(one: tuple[str, Sequence[Arrays]], other: tuple[str, Sequence[Arrays]], inputs: Sequence[TensorSpec]) -> Iterator[str]:
    """Inputs that spread far wider in one data set than in another, each a name with feeds."""
    for spec in inputs:
        spreads = [_spread(feeds, spec.name) for _, feeds in (one, other)]
        if min(spreads) > 0 and not 1 / _UNLIKE < spreads[0] / spreads[1] < _UNLIKE:
            ranges = " and ".join(f"{_range(feeds, spec.name)} in {source}" for source, feeds in (one, other))
            yield f"{spec.name!r} lies in {ranges}. Bring both to what the model was trained on."


def _spread(feeds: Sequence[Arrays], name: str) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.sqrt(np.mean([np.var(feed[name], dtype=np.float64) for feed in feeds])))


def _range(feeds: Sequence[Arrays], name: str) -> str:
    return f"{min(feed[name].min() for feed in feeds):.4g} to {max(feed[name].max() for feed in feeds):.4g}"
