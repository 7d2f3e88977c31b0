"""Which operators a file uses: those that nobody here can run are refused by name, before anything opens the file.

onnx's checker lets unknown domains and opsets pass, and ONNX Runtime tells them in words of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

from optimizer.errors import InputError
from optimizer.importers._maps import maps_of
from optimizer.importers._tidy import OPSET
from optimizer.provenance import sha256_of_file

_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"})
"""Domains whose operators ONNX Runtime brings with it."""


def check_operators(proto: onnx.ModelProto, name: str, custom_ops: Path | None) -> Path | None:
    """The library of custom operators where the model needs it, else None.

    Raises:
        InputError: an opset that is not known here, an input or output that is no tensor, operators of a foreign domain and no
            library for them, or no file where the library is said to be.
    """
    newest = onnx.defs.onnx_opset_version()
    opset = max((entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"}), default=0)
    if opset > newest:
        raise InputError(f"{name} is written in opset {opset}; the newest one known here is {newest}.", f"Export it with opset {OPSET}.")
    mapped = maps_of(proto)
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.WhichOneof("value") != "tensor_type" and value.name not in mapped:
            raise InputError(
                f"{value.name!r}, an input or output of {name}, is no tensor.", "Export the model so that it takes and gives plain tensors."
            )
    if custom_ops is not None and not custom_ops.is_file():
        raise InputError(f"There is no file {custom_ops.name!r}.", "Give --custom-ops the path of a shared library.")
    foreign = next(_foreign(proto), None)
    if foreign is not None and custom_ops is None:
        raise InputError(
            f"{name} uses the operator {foreign.op_type!r} of the domain {foreign.domain!r}, which ONNX Runtime does not have.",
            "Give the library that brings it with --custom-ops, or export the model with operators of the ONNX standard.",
        )
    return custom_ops.absolute() if custom_ops is not None and foreign is not None else None


def notes_of(proto: onnx.ModelProto, custom_ops: Path | None) -> tuple[str, ...]:
    """What the user should know of the operators in a file that `check_operators` let pass."""
    notes = []
    if domains := sorted({node.domain for node in _foreign(proto)}):
        assert custom_ops is not None
        digest = sha256_of_file(custom_ops)
        notes.append(
            f"The operators of {', '.join(domains)} are native code out of {custom_ops.name} (SHA-256 {digest}), which ran here and goes "
            "into the engine's folder; such layers stay as they are."
        )
    elif custom_ops is not None:
        notes.append(f"No operator of this model needs {custom_ops.name}, so it was left alone.")
    if kinds := sorted({node.op_type for node in _nodes(proto) if node.domain == "ai.onnx.ml"}):
        notes.append(f"{', '.join(kinds)}: there is nothing to quantize in them, so they are built and gated as they are.")
    return tuple(notes)


def _foreign(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Nodes of domains that neither ONNX Runtime nor a function of the model's own serves."""
    own = {function.domain for function in proto.functions}
    return (node for node in _nodes(proto) if node.domain not in _DOMAINS | own)


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model: of its graph, the graphs inside, and its functions."""
    yield from _below(proto.graph.node)
    for function in proto.functions:
        yield from _below(function.node)


def _below(nodes: Iterator[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _below(inner.node)
