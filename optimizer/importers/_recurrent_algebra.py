"""What a recurrent cell computes in one step, as sums of products: two cells are the same where their sums are.

A `Sum` is a row of `width` numbers a sample, each a polynomial over atoms: a part of the step's input or of a state (`Leaf`), a
matrix product (`Dot`), or a curve of another sum (`Curve`).  Products are multiplied out, so that z h + (1 - z) g and
g + z (h - g) are one and the same.  Everything is a value: equal sums are equal objects, however they were written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Numbers:
    """A float64 array that can be a key: equal where every number is."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array: NDArray[np.float64] = np.ascontiguousarray(array, np.float64) + 0.0  # -0 is 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Numbers) and np.array_equal(self.array, other.array)

    def __hash__(self) -> int:
        return hash((self.array.shape, self.array.tobytes()))


@dataclass(frozen=True)
class Leaf:
    """Columns `start` to `stop` of what a step is given: its input, or a state, called `name`."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Dot:
    """A row times a matrix."""

    row: Sum
    matrix: Numbers


@dataclass(frozen=True)
class Curve:
    """An activation by ONNX's name for it in recurrent operators, with its alpha and beta, of each number."""

    name: str
    alpha: float
    beta: float
    of: Sum


Atom = Leaf | Dot | Curve
Monomial = frozenset[tuple[Atom, int]]
"""Atoms with their powers; the empty one is 1."""

ONE: Monomial = frozenset()


@dataclass(frozen=True)
class Sum:
    """Monomials with one coefficient a column; those whose coefficients are all 0 are left out."""

    width: int
    items: frozenset[tuple[Monomial, Numbers]]

    @property
    def terms(self) -> Mapping[Monomial, NDArray[np.float64]]:
        return {monomial: numbers.array for monomial, numbers in self.items}

    def __add__(self, other: Sum) -> Sum:
        return _sum(self.width, (*self.terms.items(), *other.terms.items()))

    def __mul__(self, other: Sum) -> Sum:
        pairs = [(a, b, p * q) for a, p in self.terms.items() for b, q in other.terms.items()]
        return _sum(self.width, ((_times(a, b), coefficient) for a, b, coefficient in pairs))

    def columns(self, start: int, stop: int) -> Sum:
        """Some of the columns: each number is computed by itself, so the rest need not be."""
        if (start, stop) == (0, self.width):
            return self
        terms = ((_columns(monomial, start, stop), array[start:stop]) for monomial, array in self.terms.items())
        return _sum(stop - start, terms)


def constant(array: NDArray[Any], width: int) -> Sum:
    """One number a column, or one for all."""
    return _sum(width, [(ONE, np.broadcast_to(np.asarray(array, np.float64).reshape(-1), (width,)))])


def leaf(name: str, width: int) -> Sum:
    """All of what a step is given under a name."""
    return single(Leaf(name, 0, width), width)


def dot(row: Sum, matrix: NDArray[Any]) -> Sum:
    """`row` times a matrix of shape (row.width, columns)."""
    return single(Dot(row, Numbers(matrix)), matrix.shape[1])


def curve(name: str, alpha: float, beta: float, of: Sum) -> Sum:
    """An activation of each number."""
    return single(Curve(name, alpha, beta, of), of.width)


def single(atom: Atom, width: int) -> Sum:
    """An atom as a sum."""
    return _sum(width, [(frozenset({(atom, 1)}), np.ones(width))])


def only(found: Sum) -> Atom | None:
    """The atom that a sum is, alone and once."""
    if len(found.items) != 1:
        return None
    (monomial, scale), *_ = found.terms.items()
    atoms = [atom for atom, _ in monomial]
    return atoms[0] if len(atoms) == 1 and monomial == product(atoms[0]) and bool(np.all(scale == 1)) else None


def product(*atoms: Atom) -> Monomial:
    """The monomial of these atoms."""
    return frozenset(Counter(atoms).items())


def _sum(width: int, terms: Iterable[tuple[Monomial, NDArray[np.float64]]]) -> Sum:
    together: dict[Monomial, NDArray[np.float64]] = {}
    for monomial, coefficient in terms:
        together[monomial] = together[monomial] + coefficient if monomial in together else coefficient
    return Sum(width, frozenset((monomial, Numbers(array)) for monomial, array in together.items() if np.any(array)))


def _times(a: Monomial, b: Monomial) -> Monomial:
    powers = Counter(dict(a))
    powers.update(dict(b))
    return frozenset(powers.items())


def _columns(monomial: Monomial, start: int, stop: int) -> Monomial:
    return frozenset((_part(atom, start, stop), power) for atom, power in monomial)


def _part(atom: Atom, start: int, stop: int) -> Atom:
    match atom:
        case Leaf():
            return Leaf(atom.name, atom.start + start, atom.start + stop)
        case Dot():
            return Dot(atom.row, Numbers(atom.matrix.array[:, start:stop]))
        case Curve():
            return Curve(atom.name, atom.alpha, atom.beta, atom.of.columns(start, stop))
