"""An If whose condition is known: the branch that is taken stands in its place, and its nodes are layers like any other.

Exporters write most conditions out of sizes ("is this axis 1?"), which are known once the inputs' are.  A condition that the
caller's numbers decide stays, and what is inside stays in FP32, as the report says: which branch is computed, and how often, only
a run tells, so that calibration would see the tensors of one by chance and those of the other never.
"""

from __future__ import annotations

import onnx_ir as ir

from optimizer.fusion.conditions import known
from optimizer.fusion.folding import lift_constants
from optimizer.graph import names, unique
from optimizer.model import Fusion


def take_known_branches(model: ir.Model, taken: set[str]) -> list[Fusion]:
    """Replace each If of the main graph whose condition is a constant by its branch, in place.

    The branch's nodes keep their names where these are free; an unnamed one is called `<if>.then.<operator>`.
    """
    fusions = []
    for node in list(model.graph):
        if node.op_type != "If" or node.domain or (condition := known(node.inputs[0])) is None:
            continue
        word = "then" if condition.all() else "else"
        branch, other = (node.attributes[f"{name}_branch"].as_graph() for name in (word, "else" if word == "then" else "then"))
        _forget(other)
        results = list(branch.outputs)
        moved = _detached(branch)
        weights = [branch.initializers.pop(name) for name in list(branch.initializers)]
        elsewhere = names(model.graph) - {value.name or "" for value in node.outputs}
        for value in (*weights, *(value for inner in moved for value in inner.outputs)):
            if value.name and value.name in elsewhere:
                value.name = unique(value.name, taken)
        for inner in moved:
            if not inner.name or inner.name in elsewhere:
                inner.name = unique(inner.name or f"{node.name}.{word}.{inner.op_type}", taken)
        for value in weights:
            model.graph.register_initializer(value)
        model.graph.insert_before(node, moved)
        for old, new in zip(node.outputs, results, strict=True):
            _hand_over(model.graph, node, old, new)
        model.graph.remove(node, safe=True)
        fusions.append(Fusion("known branch", (node.name or "",), ""))
    if fusions:
        lift_constants(model)
    return fusions


def _forget(branch: ir.Graph) -> None:
    """Let a branch that is never taken read nothing any more: a weight that it alone read beside another may now be folded."""
    for node in branch.all_nodes():
        for place in range(len(node.inputs)):
            node.replace_input_with(place, None)


def _detached(graph: ir.Graph) -> list[ir.Node]:
    """The nodes of a branch, taken out of it with all their connections."""
    nodes = list(graph)
    graph.outputs.clear()
    graph.remove(nodes)
    return nodes


def _hand_over(graph: ir.Graph, node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    """All that reads an output of the If reads the branch's result; an output of the model keeps its name."""
    new.type, new.shape = new.type or old.type, new.shape if new.shape is not None else old.shape
    if not old.is_graph_output():
        old.replace_all_uses_with(new)
        return
    name = old.name
    old.name = None
    if new.producer() is None or new.is_graph_output():
        copy = ir.node("Identity", [new], name=f"{node.name}.{name}")
        graph.insert_before(node, copy)
        new = copy.outputs[0]
        new.type, new.shape = old.type, old.shape
    new.name = name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
