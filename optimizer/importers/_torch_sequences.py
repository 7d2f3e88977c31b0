"""torch's exporter writes a split as a sequence of tensors and picks each from it; where the sizes are known that is one Split."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from optimizer.graph import constant, names, unique


def without_sequences(model: ir.Model) -> bool:
    """Replace each SplitToSequence that is read by place only, in place; False where there is none."""
    taken = names(model.graph)
    found = [(node, sizes) for node in model.graph if node.op_type == "SplitToSequence" and (sizes := _sizes(node)) is not None]
    for node, sizes in found:
        _replace(model.graph, node, sizes, taken)
    return bool(found)


def _sizes(node: ir.Node) -> Sequence[int] | None:
    """The size of each part, where they are constants and everyone who reads the sequence takes one part of it by its number."""
    split = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if split is None or split.ndim != 1 or node.outputs[0].is_graph_output():
        return None
    if any(user.op_type != "SequenceAt" or _place(user) is None for user, _ in node.outputs[0].uses()):
        return None
    return [int(size) for size in split]


def _place(node: ir.Node) -> int | None:
    index = constant(node.inputs[1])
    return None if index is None else int(index.item())


def _replace(graph: ir.Graph, node: ir.Node, sizes: Sequence[int], taken: set[str]) -> None:
    attributes = [ir.AttrInt64("axis", node.attributes.get_int("axis", 0))]
    split = ir.Node("", "Split", node.inputs, attributes, num_outputs=len(sizes), name=node.name)
    split.metadata_props.update(node.metadata_props)
    graph.insert_before(node, split)
    for reader, _ in list(node.outputs[0].uses()):
        part, place = reader.outputs[0], _place(reader)
        assert place is not None
        chosen = split.outputs[place]
        chosen.type, chosen.shape = part.type, part.shape
        ir.convenience.replace_all_uses_with(part, chosen, replace_graph_outputs=True)
        graph.remove(reader, safe=True)
    for number, output in enumerate(split.outputs):
        output.name = unique(f"{node.outputs[0].name}_{number}", taken)
    graph.remove(node, safe=True)
