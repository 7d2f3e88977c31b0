"""The fusion spine: exact rewrites that leave a model with fewer nodes and the same function, run to a fixed point."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from optimizer.errors import InputError, OptimizeError
from optimizer.fusion import activation, convolution, identity, normalization, padding, pooling, reshaping, transposition
from optimizer.fusion.branches import take_known_branches
from optimizer.fusion.duplicates import merge_initializers, merge_nodes
from optimizer.fusion.folding import constants_right, fold_constants, lift_constants
from optimizer.fusion.regions import move_transposes
from optimizer.fusion.removal import remove_unused
from optimizer.fusion.rule import Rule, apply
from optimizer.fusion.shapes import fold_shapes
from optimizer.graph import clone, infer_shapes, names
from optimizer.model import Fusion, Model

__all__ = ["ORDER", "SCAFFOLDING", "Rule", "Step", "fuse", "step"]

OPSET = 20
"""The oldest opset that the rules are written for: axes are inputs, Gelu is an operator."""

ROUNDS = 40
"""Rounds after which rules that still find something are taken to undo each other; real models need three to eight."""


@dataclass(frozen=True)
class Step:
    """One family of rewrites: changes the graph and the set of names in use, tells what it did. `why` is the reason for its place."""

    name: str
    why: str
    run: Callable[[ir.Model, set[str]], list[Fusion]]


def step(name: str, why: str, rules: Iterable[Rule]) -> Step:
    """A step that tries rules on every node."""
    return Step(name, why, partial(apply, tuple(rules)))


ORDER: tuple[Step, ...] = (
    Step("constants", "first, since most conditions ask for a constant", fold_constants),
    Step("shapes", "turns computed targets of Reshape into constants, which the reshapes below need", fold_shapes),
    Step("branches", "after the arithmetic on sizes, which most conditions are made of", take_known_branches),
    Step("constants on the right", "before the patterns, which look for them there", constants_right),
    step("no effect", "before the patterns, which an Identity or Dropout in the middle would hide", identity.RULES),
    Step("duplicates", "before the patterns: an exporter that writes x - mean twice hides a normalization", merge_nodes),
    step("reshapes", "after the no-ops, so that chains are seen whole", reshaping.RULES),
    Step("transposes moved", "before what asks for a channel axis, which a Transpose moves", move_transposes),
    step("transposes", "after the moves, which leave pairs and need to see Transposes as such", transposition.RULES),
    step("activations", "before scale and shift, which would take GELU's and HardSwish's constants into a layer", activation.RULES),
    step("normalization", "before scale and shift and before pooling, which know its mean and its scale too", normalization.RULES),
    step("padding", "before scale and shift, so that they see whether a convolution pads", padding.RULES),
    step("scale and shift", "after all patterns that contain a Mul or an Add", convolution.RULES),
    step("pooling", "after the normalization, whose mean it would take", pooling.RULES),
    Step("unused", "after the rules, which leave old constants behind", remove_unused),
    Step("weights stored twice", "last, since a shared weight keeps scale and shift out", merge_initializers),
)

SCAFFOLDING: tuple[Step, ...] = (
    *(each for each in ORDER if each.name in {"constants", "shapes", "branches", "unused"}),
    step("types", "an exporter casts constants to the type of what they meet", identity.TYPES),
)
"""What takes away the arithmetic on sizes and constants that an exporter writes around the operators that the user called."""


def fuse(model: Model, order: Sequence[Step] = ORDER) -> Model:
    """The model after every step of `order`, again and again until none finds anything; the one given stays as it is.

    Outputs keep their names, layers join theirs, and each rewrite is appended to `fusions`. Fusing a fused model changes nothing.

    Raises:
        InputError: the graph is in an older opset than the rules are written for.
        OptimizeError: the steps still found something after `ROUNDS` rounds (a mistake of ours, not of the model).
    """
    opset = model.graph.graph.opset_imports.get("", OPSET)
    if opset < OPSET:
        raise InputError(f"Fusing needs opset {OPSET} or newer and the graph is in {opset}.", "Raise its opset, as the importers do.")
    graph = clone(model.graph)
    lift_constants(graph)
    taken = names(graph.graph)
    fusions: list[Fusion] = []
    for _ in range(ROUNDS):
        infer_shapes(graph)
        found = [fusion for each in order for fusion in each.run(graph, taken)]
        if not found:
            return model.with_graph(graph, fusions)
        fusions.extend(found)
    still = ", ".join(sorted({fusion.rule for fusion in found}))
    raise OptimizeError(
        f"Fusing does not come to an end: after {ROUNDS} rounds these rules still apply: {still}.",
        "Please report the model; two rules undo each other.",
    )
