"""What nothing reads goes: nodes, initializers, and optional outputs, in subgraphs too."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes

from optimizer.model import Fusion


def remove_unused(model: ir.Model, taken: set[str]) -> list[Fusion]:
    """Remove what does not lead to an output, in place. Inputs of the graph stay, read or not."""
    before = [node.name or "" for node in model.graph]
    passes.RemoveUnusedNodesPass()(model)
    left = {node.name for node in model.graph}
    gone = [name for name in before if name not in left]
    taken.difference_update(gone)
    return [Fusion("nothing reads it", (name,), "") for name in gone]
