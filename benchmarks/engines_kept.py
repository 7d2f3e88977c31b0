"""What an engine keeps of its parent's answers: from outputs to answers, and the share of answers that stayed.

`strings` and `boxes` are metrics for `optimize build --metric engines_kept.py:boxes` too: they take outputs by name and the
parent's answers as labels, and give one score a sample.  This file needs numpy and scipy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

INK = 0.3
"""From which probability on the text detector's own post-processing takes a pixel for text."""

OVERLAP = 0.7
"""Two boxes are the same where their intersection is that much of their union; competitions in finding text ask for 0.5."""

SMALL = 3
"""Pixels: narrower boxes are dropped by the text detector's own post-processing."""


def classes(output: Array) -> Array:
    """The class of each row or position: the last axis is gone."""
    return np.asarray(output.argmax(-1))


def sounding(output: Array) -> Array:
    """Whether there is speech in a window."""
    return np.asarray(output.reshape(-1) > 0.5)


def ink(output: Array) -> Array:
    """Which pixels are text: bool, the map's own size."""
    return np.asarray(output > INK)


def numbers(output: Array) -> Array:
    return output.astype(np.float32)


def same(parent: Array, engine: Array) -> Array:
    """1 where a sample's answer stayed as it was at every position: (samples,)."""
    return np.asarray((parent.reshape(len(parent), -1) == engine.reshape(len(engine), -1)).all(1), np.float64)


def same_text(parent: Array, engine: Array) -> Array:
    """1 where the text that is read out of the classes of all positions is the same, however they are spaced."""
    return np.array([read(one) == read(other) for one, other in zip(parent, engine, strict=True)], np.float64)


def read(path: Array) -> bytes:
    """The characters of a path of classes: repetitions and the blank, which is class 0, left out (Graves et al. 2006)."""
    path = path.reshape(-1)
    return bytes(path[(path != 0) & (path != np.concatenate([[0], path[:-1]]))].astype(np.int32).tobytes())


def same_boxes(parent: Array, engine: Array) -> Array:
    """Twice the boxes that both have, over the boxes of both: (samples,); 1 where there are none."""
    return np.array([_shared(one, other) for one, other in zip(parent, engine, strict=True)])


def _shared(parent: Array, engine: Array) -> float:
    one, other = found(parent), found(engine)
    if not len(one) + len(other):
        return 1.0
    if not len(one) or not len(other):
        return 0.0
    low, high = np.maximum(one[:, None, :2], other[None, :, :2]), np.minimum(one[:, None, 2:], other[None, :, 2:])
    both = np.maximum(high - low, 0).prod(-1)
    area = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (one, other)]
    # Boxes of one side hardly overlap, so that above one half nobody can have two partners.
    matched = (both >= OVERLAP * (area[0][:, None] + area[1][None] - both)).sum()
    return 2.0 * float(matched) / (len(one) + len(other))


def found(pixels: Array) -> Array:
    """The boxes around connected text: (boxes, 4), top, left, bottom, right."""
    from scipy import ndimage  # takes a second, and every engine's process imports this file

    labelled, _ = ndimage.label(pixels.reshape(pixels.shape[-2:]))
    boxes = [(y.start, x.start, y.stop, x.stop) for y, x in ndimage.find_objects(labelled)]
    return np.array([box for box in boxes if min(box[2] - box[0], box[3] - box[1]) >= SMALL], np.int64).reshape(-1, 4)


def cosine(parent: Array, engine: Array) -> Array:
    """Cosine of the angle between the outputs to each sample: (samples,)."""
    one, other = (array.reshape(len(array), -1).astype(np.float64) for array in (parent, engine))
    sizes = np.maximum(np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1), 1e-30)
    return np.asarray(np.nan_to_num((one * other).sum(1) / sizes, nan=0.0))


def same_neighbour(parent: Array, engine: Array) -> Array:
    """1 where the half of a text finds the same other half first; sample 2i and sample 2i+1 are two halves of one text."""
    return same(*(((one := array.reshape(len(array), -1))[::2] @ one[1::2].T).argmax(1)[:, None] for array in (parent, engine)))


def same_positions(parent: Array, engine: Array) -> Array:
    """The share of positions that stayed as they were."""
    return np.asarray((parent.reshape(len(parent), -1) == engine.reshape(len(engine), -1)).mean(1))


def strings(outputs: Mapping[str, Array], labels: Array) -> Array:
    return same_text(labels, classes(next(iter(outputs.values()))))


def boxes(outputs: Mapping[str, Array], labels: Array) -> Array:
    return same_boxes(labels != 0, ink(next(iter(outputs.values()))))
