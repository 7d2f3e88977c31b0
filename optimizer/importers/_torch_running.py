"""The parent of an imported graph in PyTorch itself: a worker kept open, and which layers of the graph its modules can show."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.engine import Arrays
from optimizer.model import Model
from optimizer.process import Child

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


class Piece(NamedTuple):
    """A node as one of the `pieces` that the calls of the module at `path` became, in order."""

    path: str
    place: int
    pieces: int
    recurrent: bool


class InTorch:
    """The network of `model` in a `child` that runs `workers/torch_run.py`; waits `patience` seconds for each answer."""

    def __init__(self, child: Child, request: Mapping[str, Any], model: Model, patience: float) -> None:
        self._child, self._patience = child, patience
        self._outputs = [spec.name for spec in model.outputs]
        try:
            child.send(request)
            modules = child.receive(patience).event.get("modules")
            if not isinstance(modules, dict):
                raise child.nonsense()
        except BaseException:
            child.close()
            raise
        self._pieces = pieces(model.graph, frozenset(modules))

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Every output of the imported model by name. Inputs that the export dropped are filled with made-up ones."""
        arrays = self._ask(feeds, [])
        return {name: arrays[f"out.{number}"] for number, name in enumerate(self._outputs)}

    def layers(self, feeds: Arrays, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """What the layers called `names` give, of those that one call of a module stands for."""
        wanted = {name: piece for name in names if (piece := shown(name, self._pieces)) is not None}
        arrays = self._ask(feeds, list(wanted.values()))
        return {name: arrays[f"layer.{number}"] for number, name in enumerate(wanted) if f"layer.{number}" in arrays}

    def close(self) -> None:
        self._child.close()

    def _ask(self, feeds: Arrays, layers: Sequence[Piece]) -> dict[str, NDArray[Any]]:
        self._child.send({"event": "run", "layers": layers}, {f"in.{name}": array for name, array in feeds.items()})
        arrays = self._child.receive(self._patience).arrays
        if any(f"out.{number}" not in arrays for number in range(len(self._outputs))):
            raise self._child.nonsense()
        return arrays


def pieces(graph: ir.Model, paths: frozenset[str]) -> dict[str, Piece]:
    """The nodes that the calls of the modules at `paths` became, by layer name.

    Those of a recurrent module are its recurrent nodes alone, one a layer: what moves axes around them is not its own.
    """
    by_path: dict[str, list[ir.Node]] = {}
    for node in graph.graph:
        path = re.sub(r"#\d+$", "", node.name or "").partition("/")[0]
        if path in paths:
            by_path.setdefault(path, []).append(node)
    found = {}
    for path, nodes in by_path.items():
        recurrent = [node for node in nodes if node.op_type in _RECURRENT]
        for place, node in enumerate(recurrent or nodes):
            found[node.name or ""] = Piece(path, place, len(recurrent or nodes), bool(recurrent))
    return found


def shown(name: str, known: Mapping[str, Piece]) -> Piece | None:
    """The piece that a layer, or the last one of those fused into it, is."""
    first, *rest = name.split("+")
    if not rest:
        return known.get(first)
    parent = first.rpartition(".")[0]
    return known.get(f"{parent}.{rest[-1]}" if parent else rest[-1]) or known.get(rest[-1])
