"""Layers by the names that the user's PyTorch source gives them, read from what the exporters leave in a graph.

A node is called after the module it belongs to: `layer3.2.conv2`; a functional op after the module that calls it and the op:
`layer3.2.relu`, its second call there `layer3.2.relu#2`.  Where one call became several nodes, the one that does the work, else
the one that gives the call's result, has the name, and the others add their operator: `fc` and `fc/Add`, `avgpool/Reshape` and
`avgpool`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import NamedTuple

import onnx_ir as ir

from optimizer.graph import unique

_SCOPES = "pkg.torch.onnx.name_scopes"
_DROPPED = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node", "namespace", "pkg.torch.export.ExportedProgram.graph_signature")
"""Metadata that hold the user's paths and source lines, or repeat the rest at length."""

_WORKERS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"}
    | {"BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization"}
)
"""Operators that are what their module is about."""


_CALLED = {"ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "amax", "Concat": "cat", "Gemm": "linear", "LeakyRelu": "leaky_relu"}
"""How torch calls what the older exporter names after ONNX, where that is not the same in small letters."""


class _Origin(NamedTuple):
    """Which module a node came from, the op that was called in it, and which call that was."""

    module: str
    op: str
    call: str


def name_layers(model: ir.Model, modules: Mapping[str, str]) -> None:
    """Name the nodes of the main graph after `modules` (path to class), in place."""
    parents = {path.rpartition(".")[0] for path in modules}
    layers = frozenset(path for path in modules if path and path not in parents and modules[path].startswith("torch.nn."))
    origins = {node: _origin(node, modules, layers) for node in model.graph}
    workers = {origins[node] for node in model.graph if node.op_type in _WORKERS}
    last = {origin: node for node, origin in origins.items()}
    taken: set[str] = set()
    alone = _alone(modules)
    for node in model.graph:
        origin = origins[node]
        base = _owner(node, modules) or (origin.module not in layers and alone.get(node.op_type)) or _base(origin, layers)
        plain = node.op_type in _WORKERS or (origin not in workers and last[origin] is node)
        node.name = unique(base if plain else f"{base}/{node.op_type}", taken)


def strip_metadata(model: ir.Model) -> None:
    """Leave nothing of the user's paths and source lines in the graph."""
    metadata = [model.metadata_props, model.graph.metadata_props, *(node.metadata_props for node in model.graph.all_nodes())]
    for props in metadata:
        for key in _DROPPED:
            props.pop(key, None)


def _origin(node: ir.Node, modules: Mapping[str, str], layers: frozenset[str]) -> _Origin:
    if _SCOPES in node.metadata_props:
        scopes = ast.literal_eval(node.metadata_props[_SCOPES])
        module = re.sub(r"@\d+", "", scopes[-2]) if len(scopes) > 1 else ""  # `act@1` is the second call of `act`
        if module in layers:  # one call, however many ops it makes: an LSTM's initial states are pieces of it
            return _Origin(module, "", scopes[-2])
        return _Origin(module if module in modules else "", re.sub(r"_\d+$", "", scopes[-1]).strip("_"), scopes[-1])
    return _from_legacy_name(node, modules)


def _from_legacy_name(node: ir.Node, modules: Mapping[str, str]) -> _Origin:
    """`/layer1/layer1.0/conv1/Conv`: the way down to a node, each step the attribute's name or, in a Sequential, its whole path."""
    *steps, _ = (node.name or "").strip("/").split("/")
    path = ""
    for step in steps:
        last = path.rpartition(".")[2]
        path = f"{path}.{step.removeprefix(f'{last}.')}" if path else step
        if path not in modules:
            path = re.sub(r"_\d+$", "", path)  # the second call of a module
    if modules.get(path, "").startswith("torch.nn."):  # one call, however many nodes
        return _Origin(path, "", "/".join(steps))
    return _Origin(path, _CALLED.get(node.op_type, node.op_type.lower()), node.name or "")


def _base(origin: _Origin, layers: frozenset[str]) -> str:
    """A childless module of torch's own is one layer and goes by its path; in any other the op is named, too."""
    if origin.module in layers:
        return origin.module
    return ".".join(part for part in (origin.module, origin.op) if part)


def _alone(modules: Mapping[str, str]) -> dict[str, str]:
    """The module that all LSTMs (GRUs, RNNs) of a network belong to, by operator, where it is the only one: TorchScript loses it."""
    found = {kind: [path for path, name in modules.items() if name == f"torch.nn.modules.rnn.{kind}"] for kind in ("LSTM", "GRU", "RNN")}
    return {kind: paths[0] for kind, paths in found.items() if len(paths) == 1}


def _owner(node: ir.Node, modules: Mapping[str, str]) -> str | None:
    """The module whose weight a node multiplies with: an attention's functional `linear` is its `out_proj`."""
    if node.op_type not in _WORKERS or len(node.inputs) < 2 or node.inputs[1] is None or not node.inputs[1].is_initializer():
        return None
    module, _, parameter = (node.inputs[1].name or "").rpartition(".")
    return module if parameter == "weight" and module in modules else None
