"""Which sizes the free dimensions of the inputs have: as asked with --shapes, else as the data has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from optimizer.engine import Arrays
from optimizer.errors import InputError
from optimizer.model import Dimension, TensorSpec
from optimizer.plan import Shape


def shapes_of(feed: Arrays, inputs: Sequence[TensorSpec], asked: Mapping[str, Shape]) -> dict[str, Shape]:
    """The sizes of every input: as `asked`, where a free dimension of the same name was asked for too, else as `feed` has them."""
    specs = {spec.name: spec.shape for spec in inputs}
    named: dict[Dimension, tuple[int, int, int]] = {}
    for name, shape in asked.items():
        named |= zip(specs[name], zip(shape.smallest, shape.usual, shape.largest, strict=True), strict=True)
    found = dict(asked)
    for name in specs.keys() - asked.keys():
        pairs = zip(specs[name], feed[name].shape, strict=True)
        sizes = [named[one] if isinstance(one, str) and one in named else (size, size, size) for one, size in pairs]
        found[name] = Shape(*(tuple(three[place] for three in sizes) for place in range(3)))
    return found


def typical(feed: Arrays, inputs: Sequence[TensorSpec], asked: Mapping[str, Shape]) -> Arrays:
    """`feed` in the usual sizes, its numbers repeated where these are larger: what engines are timed on."""
    return {name: np.resize(feed[name], shape.usual) for name, shape in shapes_of(feed, inputs, asked).items()}


def refuse_other_sizes(feeds: Sequence[Arrays], shapes: Mapping[str, Shape]) -> None:
    """For an engine that takes each input in one size.

    Raises:
        InputError: the feeds have an input of `shapes` in several.
    """
    for name, shape in shapes.items():
        seen = np.array([feed[name].shape for feed in feeds] or [shape.usual])
        if (seen != shape.usual).any():
            words = ":".join("x".join(map(str, sizes)) for sizes in (seen.min(0), np.median(seen, 0).astype(int), seen.max(0)))
            why = f"The data has the input {name!r} in several sizes, and this engine takes one."
            raise InputError(why, f"Give --shapes {name}={words}.")
