"""Cells that ONNX has an operator for, recognised in what a step computes: GRU (Cho et al. 2014), LSTM (Hochreiter and
Schmidhuber 1997), and the plain RNN.

ONNX's equations, for the input x, the state h (and c), a gate k being  k = f(x W_k + h R_k + b_k):
    GRU   h' = z h + (1 - z) g    g = tanh(x W_h + b_h + r (h R_h + d_h)), or with (r h) R_h + b_h where the reset comes before
    LSTM  c' = f c + i g          h' = o tanh(c')
    RNN   h' = tanh(x W + h R + b)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from optimizer.importers._recurrent_algebra import ONE, Atom, Curve, Dot, Leaf, Monomial, Numbers, Sum, leaf, only, product

INPUT = "input"
"""The leaf that stands for the step's own input."""

CURVES: Mapping[str, tuple[float, float]] = {
    "Sigmoid": (0.0, 0.0),
    "Tanh": (0.0, 0.0),
    "Relu": (0.0, 0.0),
    "Softsign": (0.0, 0.0),
    "Softplus": (0.0, 0.0),
    "Elu": (1.0, 0.0),
    "LeakyRelu": (0.01, 0.0),
    "ThresholdedRelu": (1.0, 0.0),
    "HardSigmoid": (0.2, 0.5),
}
"""Operators that ONNX's recurrent ones take as activation, with the alpha and beta that they have by default."""

Array = NDArray[np.float64]


class UnprovenError(Exception):
    """Why a step is not known to be a cell of ONNX's."""


@dataclass(frozen=True)
class Cell:
    """An ONNX recurrent operator for one direction.

    `weight` (gates hidden, inputs), `recurrence` (gates hidden, hidden) and `bias` (2 gates hidden), float64, the gates in
    ONNX's order; `curves` are its activations; `states` names the step's states in the operator's order: h, then c.
    """

    operator: str
    weight: Array
    recurrence: Array
    bias: Array
    curves: tuple[Curve, ...]
    states: tuple[str, ...]
    linear_before_reset: bool = False

    @property
    def hidden(self) -> int:
        return int(self.recurrence.shape[1])


@dataclass(frozen=True)
class _Gate:
    """x weight + h recurrence + bias, matrices of shape (inputs, hidden)."""

    weight: Array
    recurrence: Array
    bias: Array


def cell(after: Mapping[str, Sum], inputs: int) -> Cell:
    """The operator that takes the states to `after`, by name of the state; `inputs` is the width of the step's input.

    Raises:
        UnprovenError: there is none, or it is not proven to be one.
    """
    if len(after) not in {1, 2}:
        raise UnprovenError(f"it carries {len(after)} states from step to step, and a GRU has one, an LSTM two")
    (state, result), *_ = after.items()
    found = _lstm(after, inputs) if len(after) == 2 else _rnn(state, result, inputs) or _gru(state, result, inputs)
    if unknown := {curve.name for curve in found.curves} - CURVES.keys():
        raise UnprovenError(f"its activation {min(unknown)} is none that ONNX's recurrent operators take")
    return found


def _rnn(state: str, result: Sum, inputs: int) -> Cell | None:
    curve = only(result)
    if not isinstance(curve, Curve):
        return None
    gate = _gate(curve, leaf(state, result.width), inputs)
    return Cell("RNN", gate.weight.T, gate.recurrence.T, _biases([gate.bias]), (curve,), (state,))


def _gru(state: str, result: Sum, inputs: int) -> Cell:
    held = Leaf(state, 0, result.width)
    for update, candidate in _pairs(result):
        if _is(result, {product(update, held): 1, product(candidate): 1, product(update, candidate): -1}):
            return _gru_of(state, held, update, candidate, inputs)
    raise UnprovenError("its step is not z h + (1 - z) g with gates of an activation that ONNX has")


def _gru_of(state: str, held: Leaf, update: Curve, candidate: Curve, inputs: int) -> Cell:
    h = leaf(held.name, held.stop)
    reset = _reset(candidate.of, held)
    z, r = _gate(update, h, inputs), _gate(reset, h, inputs)
    _alike(update, reset)
    plain = {monomial: array for monomial, array in candidate.of.terms.items() if not _holds(monomial, reset)}
    gated = {_without(monomial, reset): array for monomial, array in candidate.of.terms.items() if _holds(monomial, reset)}
    after = bool(gated)  # r (h R + d): the reset comes behind the product, else the product is of r h
    source = h if after else Sum(h.width, frozenset({(product(reset, held), _ones(h))}))
    given = _affine(plain, leaf(INPUT, inputs), None if after else source, h.width)
    kept = _affine(gated, None, h, h.width) if after else _Gate(np.zeros((inputs, h.width)), given.recurrence, np.zeros(h.width))
    weight = np.concatenate([z.weight, r.weight, given.weight], axis=1).T
    recurrence = np.concatenate([z.recurrence, r.recurrence, kept.recurrence], axis=1).T
    bias = np.concatenate([z.bias, r.bias, given.bias, np.zeros(2 * h.width), kept.bias])
    return Cell("GRU", weight, recurrence, bias, (update, candidate), (state,), linear_before_reset=after)


def _reset(inside: Sum, held: Leaf) -> Curve:
    """The gate that multiplies the state, before or behind its matrix."""
    for monomial in inside.terms:
        for atom, _ in monomial:
            if isinstance(atom, Curve):
                return atom
            if isinstance(atom, Dot) and atom.row != leaf(held.name, held.stop):
                found = [each for each, _ in next(iter(atom.row.terms), ONE) if isinstance(each, Curve)]
                if found:
                    return found[0]
    raise UnprovenError("its candidate has no gate that resets the state")


def _lstm(after: Mapping[str, Sum], inputs: int) -> Cell:
    for (h, hidden), (c, memory) in permutations(after.items()):
        kept = Leaf(c, 0, memory.width)
        for first, second in _pairs(hidden):
            if second.of == memory and _is(hidden, {product(first, second): 1}):
                return _lstm_of(h, kept, memory, (first, second), inputs)
    raise UnprovenError("its state is not o tanh(c) with activations that ONNX has")


def _lstm_of(h: str, kept: Leaf, memory: Sum, output: tuple[Curve, Curve], inputs: int) -> Cell:
    opened, squashed = output
    forget = [atom for atom in _curves(memory) if product(atom, kept) in memory.terms]
    for f in forget:
        for i, g in _pairs(memory):
            same_kind = _kind(i) == _kind(f) == _kind(opened)
            if same_kind and _is(memory, {product(f, kept): 1, product(i, g): 1}):
                gates = [_gate(each, leaf(h, memory.width), inputs) for each in (i, opened, f, g)]
                return Cell(
                    "LSTM",
                    np.concatenate([gate.weight for gate in gates], axis=1).T,
                    np.concatenate([gate.recurrence for gate in gates], axis=1).T,
                    _biases([gate.bias for gate in gates]),
                    (f, g, squashed),
                    (h, kept.name),
                )
    raise UnprovenError("its memory is not f c + i g with one activation for all gates")


def _gate(curve: Curve, h: Sum, inputs: int) -> _Gate:
    return _affine(curve.of.terms, leaf(INPUT, inputs), h, curve.of.width)


def _affine(terms: Mapping[Monomial, Array], x: Sum | None, h: Sum | None, width: int) -> _Gate:
    """x W + h R + b, where nothing else is in `terms`; what is None may not be there either."""
    weight = np.zeros((x.width if x is not None else 0, width))
    recurrence = np.zeros((h.width if h is not None else width, width))
    bias = np.zeros(width)
    for monomial, scale in terms.items():
        atom = next(iter(monomial))[0] if len(monomial) == 1 else None
        if monomial == ONE:
            bias = bias + scale
        elif isinstance(atom, Dot) and monomial == product(atom) and x is not None and atom.row == x:
            weight = weight + atom.matrix.array * scale
        elif isinstance(atom, Dot) and monomial == product(atom) and h is not None and atom.row == h:
            recurrence = recurrence + atom.matrix.array * scale
        else:
            raise UnprovenError("a gate is not linear in the input and the state")
    return _Gate(weight, recurrence, bias)


def _is(found: Sum, wanted: Mapping[Monomial, int]) -> bool:
    """Whether a sum has these monomials and no others; factors such as 6 (1/6) are 1 as float32 rounds them."""
    terms = found.terms
    return terms.keys() == wanted.keys() and all(np.allclose(terms[each], wanted[each], rtol=2**-21, atol=0) for each in wanted)


def _pairs(found: Sum) -> Sequence[tuple[Curve, Curve]]:
    curves = _curves(found)
    return [(a, b) for a in curves for b in curves if a != b]


def _curves(found: Sum) -> list[Curve]:
    return list(dict.fromkeys(atom for monomial in found.terms for atom, _ in monomial if isinstance(atom, Curve)))


def _ones(like: Sum) -> Numbers:
    return Numbers(np.ones(like.width))


def _kind(curve: Curve) -> tuple[str, float, float]:
    return curve.name, curve.alpha, curve.beta


def _alike(first: Curve, second: Curve) -> None:
    if _kind(first) != _kind(second):
        raise UnprovenError("its gates have different activations")


def _holds(monomial: Monomial, atom: Atom) -> bool:
    return (atom, 1) in monomial


def _without(monomial: Monomial, atom: Atom) -> Monomial:
    return monomial - {(atom, 1)}


def _biases(gates: Sequence[Array]) -> Array:
    """The biases of the gates for the input; those for the state are 0."""
    together = np.concatenate(gates)
    return np.concatenate([together, np.zeros_like(together)])
