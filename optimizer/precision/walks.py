"""Walks along a graph from a value, through operators that hand its numbers on."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir

from optimizer.graph import constant, readers


def behind(start: ir.Value, through: Collection[str]) -> Iterator[ir.Node]:
    """Every node that reads `start`, or what nodes of the operators `through` make of it, each once."""
    found: dict[ir.Node, None] = {}
    waiting = [start]
    while waiting:
        for reader in readers(waiting.pop()):
            if reader not in found:
                found[reader] = None
                yield reader
                if reader.op_type in through:
                    waiting.extend(reader.outputs)


def before(start: ir.Value, through: Collection[str]) -> Iterator[ir.Node]:
    """Every node that makes `start`, or what nodes of the operators `through` read for it, each once."""
    found: dict[ir.Node, None] = {}
    waiting = [start]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in found:
            found[node] = None
            yield node
            if node.op_type in through:
                waiting.extend(value for value in node.inputs if value is not None and constant(value) is None)
