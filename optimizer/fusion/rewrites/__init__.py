"""Exact rewrites that pay on some targets and cost on others: the planner tries each, and keeps what it timed to be faster.

A rule of the spine (`fusion.ORDER`) leaves fewer nodes and never loses; these trade multiplications for lanes, or memory for
additions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import onnx_ir as ir

from optimizer.errors import InputError
from optimizer.fusion import ORDER, fuse, step
from optimizer.fusion.conditions import known
from optimizer.fusion.rewrites import (
    affine,
    blocks,
    chains,
    focus,
    folded,
    gates,
    layouts,
    siblings,
    slices,
    strides,
    tables,
    transposed,
    variance,
    windows,
)
from optimizer.graph import clone, elements, names
from optimizer.model import Fusion, Model
from optimizer.plan import Rewrite


class Rewriter(Protocol):
    """What can be done at a node: a `Rule`, or something with its two doors that takes the place of more than one output."""

    @property
    def name(self) -> str: ...

    def found(self, model: ir.Model, node: ir.Node) -> Sequence[ir.Node]: ...

    def apply_at(self, model: ir.Model, node: ir.Node, taken: set[str]) -> Fusion | None: ...


REWRITES: tuple[Rewriter, ...] = (
    *tables.RULES,
    *focus.RULES,
    *transposed.RULES,
    *gates.RULES,
    *affine.RULES,
    *strides.RULES,
    *blocks.RULES,
    *windows.RULES,
    *chains.RULES,
    *folded.RULES,
    siblings.Siblings(),
    *slices.RULES,
    *variance.RULES,
    *layouts.RULES,
)
"""In the order in which they are tried on one layer."""

_SPINE = frozenset({"constants", "no effect", "duplicates", "reshapes", "transposes", "unused", "weights stored twice"})

TIDY = (
    step("behind a rewrite", "first, so that what a rewrite moved out of the way lets others meet", (*folded.BEHIND, *tables.BEHIND)),
    *(each for each in ORDER if each.name in _SPINE),
)
"""What clears up behind a rewrite: operators behind it drawn in, constants folded, the unused removed, reshapes and transposes joined."""

EVERYWHERE = "*"
"""Stands for every layer where a rule applies: what gives a little at each of many is only seen in all together."""

SAFER = frozenset(rule.name for rule in variance.RULES)
"""Rules that make low precision exact where it was not: offered whatever their layers cost, to be tried before layers are given back."""

LEAST = 0.005
"""Part of a model's price from which on a layer is offered: a timing hardly tells less."""

MOVED = 16
"""Multiplications that a core does in the time in which it moves one number."""

STARTED = 20_000
"""Multiplications that a core does in the time that it takes to start an operator."""


def offers(model: Model) -> tuple[Rewrite, ...]:
    """Every rule with every layer of a fused model where it applies now, and with all of its layers at once; the dearest first.

    A layer's price is its multiply-accumulates and the numbers that it reads and writes, where its sizes are known.  Sizes are read off the
    graph, as `fuse` and `graph.fixed` leave them.  What costs less than `LEAST` of the model is not offered, unless it is `SAFER`.
    """
    graph = model.graph.graph
    found: list[tuple[int, int, int, Rewrite]] = []
    for rank, rule in enumerate(REWRITES):
        places = [
            (_price(nodes), place, rank, Rewrite(rule.name, node.name or ""))
            for place, node in enumerate(graph)
            if (nodes := rule.found(model.graph, node))
        ]
        if len(places) > 1:
            found.append((sum(price for price, *_ in places), 0, rank, Rewrite(rule.name, EVERYWHERE)))
        found += places
    least = LEAST * _price(graph)
    found.sort(key=lambda each: (-each[0], *each[1:3]))
    return tuple(rewrite for price, *_, rewrite in found if price >= least or rewrite.rule in SAFER)


def rewritten(model: Model, chosen: Sequence[Rewrite]) -> Model:
    """The model after the rewrites in their order, each at exactly the layer that it names and cleared up behind (`TIDY`).

    A rewrite names layers as they are called after those before it, so that one that `offers(rewritten(model, some))` told can be
    appended to `some`.  The model given stays as it is; what was done is appended to `fusions`.

    Raises:
        InputError: a rule or layer is not known, or the rule does not apply there (a plan that was made for another model).
    """
    for rewrite in chosen:
        graph = clone(model.graph)
        fusions = _apply(graph, rewrite)
        model = fuse(model.with_graph(graph, fusions), TIDY)
    return model


def _apply(graph: ir.Model, rewrite: Rewrite) -> list[Fusion]:
    rule = next((rule for rule in REWRITES if rule.name == rewrite.rule), None)
    nodes = [node for node in graph.graph if rewrite.layer in (node.name, EVERYWHERE)]
    if rule is None:
        raise _misfit(f"The plan rewrites by a rule {rewrite.rule!r}, which this version does not have.")
    if not nodes:
        raise _misfit(f"The plan rewrites a layer {rewrite.layer!r} by {rewrite.rule!r}, and the model has no such layer.")
    taken = names(graph.graph)
    found = [rule.apply_at(graph, node, taken) for node in nodes if node.graph is graph.graph and rule.found(graph, node)]
    fusions = [fusion for fusion in found if fusion is not None]
    if not fusions:
        raise _misfit(f"The plan rewrites the layer {rewrite.layer!r} by {rewrite.rule!r}, which does not apply there.")
    return fusions


def _misfit(reason: str) -> InputError:
    return InputError(reason, "Give a plan.json that was written for this model by this version.")


def _price(nodes: Iterable[ir.Node]) -> int:
    return sum(STARTED + _multiplications(node) + MOVED * _moved(node) for node in nodes)


def _moved(node: ir.Node) -> int:
    """How many numbers a node reads and writes, its constants left out."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.const_value is None]
    return sum(elements(value) or 0 for value in values)


def _multiplications(node: ir.Node) -> int:
    """Multiply-accumulates of a linear layer with known weights: each number of its weight once an output pixel or row."""
    weight = known(node.inputs[1]) if node.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul"} else None
    if weight is None or not weight.size:
        return 0
    place = node.inputs[0] if node.op_type == "ConvTranspose" else node.outputs[0]
    first = node.op_type in {"Conv", "ConvTranspose"} or node.attributes.get_int("transB", 0) == 1
    channels = weight.shape[0] if first else weight.shape[-1]
    numbers = elements(place) if place is not None else None
    return int(weight.size * (numbers or 0) // channels)
