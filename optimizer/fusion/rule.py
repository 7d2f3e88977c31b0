"""A rule: an identity between two small graphs, the condition under which it holds, and what it writes.

The pattern engine is onnxscript's.  What it leaves to its user is done here: new initializers get unique names (a used one
would be overwritten in silence), the new node takes the joined name and the metadata of all nodes that went in, the names of
graph outputs stay, and each application is told as a `Fusion`.  Rules see the main graph only: the bodies of If, Loop and
Scan are left as they are, and what they read from outside counts as a reader like any other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule
from onnxscript.rewriter.pattern import OrValue

from optimizer.graph import unique
from optimizer.model import FOR_LAYER, Fusion, is_layer, joined


class Rule(ABC):
    """The base of all rules: `pattern`, `check` (a MatchResult that says why not) and `rewrite`, nothing kept in between.

    A pattern has one output.  `rewrite` is called only where `check` agreed; it returns the value that takes the place of
    the pattern's output, of a new node or one that was there before (then `check` has asked `stands_for`).
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def pattern(self, *args: Any, **kwargs: Any) -> Any:
        """The small graph to look for, from a builder and a variable for each further argument."""

    @abstractmethod
    def check(self, *args: Any, **kwargs: Any) -> MatchResult:
        """Whether the identity holds here; called with the match's context and the values by the pattern's names."""

    @abstractmethod
    def rewrite(self, *args: Any, **kwargs: Any) -> Any:
        """What stands there instead; called with a builder and the values by the pattern's names."""

    @cached_property
    def compiled(self) -> RewriteRule:
        """The pattern as the engine takes it."""
        return RewriteRule(self.pattern, self.rewrite, self.check, name=self.name)

    @property
    def root(self) -> str:
        """The operator of the node that the pattern ends in; onnxscript has no public way to ask."""
        return self.compiled._target_pattern.output_node.op_type

    def found(self, model: ir.Model, node: ir.Node) -> Sequence[ir.Node]:
        """The nodes that would go where the rule applies at `node`, the last of the pattern; none where it does not."""
        match = self.compiled.match(model, model.graph, node) if node.op_type == self.root and not node.domain else None
        return match.nodes if match else ()

    def apply_at(self, model: ir.Model, node: ir.Node, taken: set[str]) -> Fusion | None:
        """Rewrite what ends in `node`, in place, or leave it; changes `taken`, the names in use."""
        found = self.compiled.try_rewrite(model, model.graph, node)
        if found is None:
            return None
        matched = [node] if len(found.match.nodes) == 1 else [each for each in model.graph if each in found.match.nodes]
        layers = tuple(each.name or "" for each in matched)
        for value in found.new_initializers:
            value.name = unique(value.name or self.name, taken)
            model.graph.register_initializer(value)
        taken.difference_update(layers)
        result = _name(found.new_nodes, matched, taken)
        _name_outputs(found.new_nodes, found.match.outputs[0], found.new_outputs[0], taken)
        found.match.outputs[0].replace_all_uses_with(found.new_outputs[0], replace_graph_outputs=True)
        model.graph.insert_after(node, found.new_nodes)
        model.graph.remove(matched, safe=True)
        return Fusion(self.name, layers, result)


def either(operator: Any, a: Any, b: Any) -> Any:
    """A pattern of a commutative operator with two computed operands in either order; can't be the pattern's output.

    A constant operand of Add and Mul stands on the right when rules see it (`folding.constants_right`).
    """
    return OrValue([operator(a, b), operator(b, a)])


def refused(reason: str, *where: ir.Value | ir.Node | None) -> MatchResult:
    """The answer of a check whose condition does not hold."""
    return MatchResult().fail(reason, [place for place in where if place is not None])


def apply(rules: Iterable[Rule], model: ir.Model, taken: set[str]) -> list[Fusion]:
    """Try `rules` on each node of the main graph, the first that fits wins.

    Changes `model` and `taken`, the names in use.  Nodes that a rule writes are tried in the same pass.
    """
    by_root: dict[str, list[Rule]] = {}
    for rule in rules:
        by_root.setdefault(rule.root, []).append(rule)
    fusions = []
    for node in model.graph:
        for rule in by_root.get(node.op_type, ()):
            if (fusion := rule.apply_at(model, node, taken)) is not None:
                fusions.append(fusion)
                break
    return fusions


def _name_outputs(nodes: Sequence[ir.Node], old: ir.Value, new: ir.Value, taken: set[str]) -> None:
    """`new` takes over the name of `old`, unless it was there before and no caller knows `old`; the rest get fresh names."""
    if new.producer() in nodes:
        new.name, new.type, new.shape = old.name, old.type, old.shape
        new.metadata_props.update(old.metadata_props)
    elif old.is_graph_output():
        new.name = old.name
    for node in nodes:
        for value in node.outputs:
            value.name = value.name or unique(f"{node.name}.out", taken)


def _name(nodes: Sequence[ir.Node], matched: Sequence[ir.Node], taken: set[str]) -> str:
    """Names and metadata of new nodes.

    One node alone stands for all that went in.  Of several, each continues the first node of its operator that went in; of
    the others the first stands for the rest, and what is left over carries numbers for that layer, or where there is no rest
    for the first that continues one.
    """
    if not nodes:
        return ""
    rest = list(matched)
    fresh = list(nodes) if len(nodes) == 1 else [node for node in nodes if not _continues(node, rest, taken)]
    if not rest and len(fresh) < len(nodes):
        layer = next(node.name or "" for node in nodes if node not in fresh)
        for node in fresh:
            _carry(node, layer, taken)
        return layer
    if fresh:
        layers = [node for node in rest if is_layer(node)] or rest or list(matched)
        fresh[0].name = unique(joined(node.name or "" for node in layers), taken)
        for node in reversed(layers):
            fresh[0].metadata_props.update(node.metadata_props)
        for node in fresh[1:]:
            _carry(node, fresh[0].name, taken)
        return fresh[0].name
    return nodes[0].name or ""


def _carry(node: ir.Node, layer: str, taken: set[str]) -> None:
    """Name a node that carries numbers for a layer."""
    node.name = unique(f"{layer}.{node.op_type}", taken)
    node.metadata_props[FOR_LAYER] = layer


def _continues(node: ir.Node, rest: list[ir.Node], taken: set[str]) -> bool:
    """Whether `node` takes over from a node of the same operator in `rest`, which it then leaves."""
    before = next((each for each in rest if each.op_type == node.op_type), None)
    if before is None:
        return False
    rest.remove(before)
    node.name = unique(before.name or node.op_type, taken)
    node.metadata_props.update(before.metadata_props)
    return True
