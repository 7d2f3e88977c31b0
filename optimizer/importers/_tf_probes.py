"""Made-up inputs that a TensorFlow model runs with: at its usual size, with each free dimension at two more, and all zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.engine import Arrays
from optimizer.errors import InputError
from optimizer.importers._probes import Probe
from optimizer.model import TensorSpec
from optimizer.plan import Shape

_TRIED = (8, 32, 64, 224, 2, 512)
"""Sizes for free dimensions that --shapes says nothing of, tried in turn until the model runs."""

_BYTES = {"int8": (-128, 128), "uint8": (0, 256)}
Tried = Callable[[Arrays], dict[str, NDArray[Any]] | str]
"""Runs the model: the outputs by name, or why it does not run with these inputs."""

_Place = tuple[str, int]
"""A dimension: the input's name and the axis."""


def probes(inputs: Sequence[TensorSpec], shapes: Mapping[str, Shape], tried: Tried, outputs: Sequence[str]) -> Iterator[Probe]:
    """What the model answers to made-up inputs, `outputs` in their order.

    Raises:
        InputError: it runs with none, or a dimension that is free can't change.
    """
    made = _Made(inputs, shapes, tried)
    for words, zeros, feeds, answers in made.all():
        yield Probe(words, zeros, feeds, [answers[name] for name in outputs])


class _Made:
    """Inputs of one kind of numbers and one usual size, the first at which the model runs."""

    def __init__(self, inputs: Sequence[TensorSpec], shapes: Mapping[str, Shape], tried: Tried) -> None:
        self._inputs = inputs
        self._tried = tried
        self._free = {
            (spec.name, axis): _bounds(shapes.get(spec.name), axis)
            for spec in inputs
            for axis, size in enumerate(spec.shape)
            if not isinstance(size, int)
        }
        self._whole = False
        self._usual: Mapping[_Place, int] = {}
        self._first = self._start()

    def all(self) -> Iterator[tuple[str, bool, Arrays, Mapping[str, NDArray[Any]]]]:
        yield ("the usual shape", False, *self._first)
        for place in self._free:
            yield from self._at_other_sizes(place)
        zeros = {name: np.zeros_like(array) if array.dtype.kind == "f" else array for name, array in self._first[0].items()}
        answers = self._tried(zeros)
        if not isinstance(answers, str):  # some models want numbers that are not all alike
            yield "all-zero inputs", True, zeros, answers

    def _start(self) -> tuple[Arrays, Mapping[str, NDArray[Any]]]:
        why = ""
        for size in _TRIED if any(bounds is None and axis for (_, axis), bounds in self._free.items()) else _TRIED[:1]:
            self._usual = {place: bounds[1] if bounds is not None else 1 if place[1] == 0 else size for place, bounds in self._free.items()}
            for self._whole in (False, True):
                feeds = self._feeds({})
                answers = self._tried(feeds)
                if not isinstance(answers, str):
                    return feeds, answers
                why = why or answers
        raise InputError(f"The model runs with no made-up inputs: {why}.", "Pass --shapes with sizes that it takes.")

    def _at_other_sizes(self, place: _Place) -> Iterator[tuple[str, bool, Arrays, Mapping[str, NDArray[Any]]]]:
        name, axis = place
        usual, bounds = self._usual[place], self._free[place]
        low, _, high = bounds if bounds is not None else (1, usual, usual + 64)
        sizes = [low, usual + 1, high, (low + usual) // 2] if bounds is not None else [usual + 1, usual + 2, 2 * usual, usual + 32]
        ran, why = 0, ""
        for size in dict.fromkeys(size for size in sizes if size != usual and low <= size <= high):
            if ran == 2:
                break
            for other in ({place: size}, self._together(place, size)):
                feeds = self._feeds(other)
                answers = self._tried(feeds)
                if not isinstance(answers, str):
                    ran += 1
                    yield f"{name}[{axis}] = {size}", False, feeds, answers
                    break
                why = why or answers
        if not ran:
            raise InputError(
                f"The model declares dimension {axis} of {name!r} free and runs at no other size than {usual} ({why}).",
                f"Fix that dimension: --shapes {name}={'x'.join(str(self._usual.get((name, k), size)) for k, size in self._sizes(name))}.",
            )

    def _together(self, place: _Place, size: int) -> Mapping[_Place, int]:
        """All free dimensions that are like this one: the batches of several inputs, the lengths of two sequences."""
        alike = [other for other in self._free if self._free[other] == self._free[place] and self._usual[other] == self._usual[place]]
        return dict.fromkeys(alike, size)

    def _sizes(self, name: str) -> list[tuple[int, int | str]]:
        return list(enumerate(next(spec.shape for spec in self._inputs if spec.name == name)))

    def _feeds(self, other: Mapping[_Place, int]) -> Arrays:
        generator = np.random.default_rng(0)
        feeds = {}
        for spec in self._inputs:
            places = {**self._usual, **other}
            shape = [size if isinstance(size, int) else places[spec.name, axis] for axis, size in enumerate(spec.shape)]
            feeds[spec.name] = _numbers(generator, np.dtype(spec.dtype), shape, self._whole)
        return feeds


def _bounds(shape: Shape | None, axis: int) -> tuple[int, int, int] | None:
    return None if shape is None else (shape.smallest[axis], shape.usual[axis], shape.largest[axis])


def _numbers(generator: np.random.Generator, dtype: np.dtype[Any], shape: Sequence[int], whole: bool) -> NDArray[Any]:
    """Normal numbers, 0 and 1 where they are whole, any byte."""
    if dtype.kind == "f" and not whole:
        return generator.standard_normal(shape).astype(dtype)
    low, high = _BYTES.get(dtype.name, (0, 2))
    return generator.integers(low, high, shape).astype(dtype)
