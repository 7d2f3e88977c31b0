"""Part of tf_source.py: SavedModels that TF-TRT converted, taken back to the TensorFlow operators that they were made of.

A TRTEngineOp holds an engine for one GPU and, beside it, the segment of the graph it came from as a function.  The operators are
unknown to a TensorFlow without TensorRT, so all this happens in the protobuf, before anything is loaded.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optimizer.child import Channel

ENGINE = "TRTEngineOp"
RESOURCES = frozenset({"CreateTRTResourceHandle", "InitializeTRTResource", "SerializeTRTResource", "GetCalibrationDataOp"})
"""Operators that make or keep the engines themselves."""


def unwrap(channel: Channel, name: str, meta: Any) -> int:
    """Turn each engine into a call of its native segment, in place; returns how many there were."""
    graph = meta.graph_def
    functions = {function.signature.name for function in graph.library.function}
    count = 0
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        engines = [node for node in nodes if node.op == ENGINE]
        for node in engines:
            segment = node.attr["segment_func"].func.name or f"{node.name}_native_segment"
            if segment not in functions:
                channel.refuse(
                    f"{name} was converted by TF-TRT and holds the engine {node.name} without the TensorFlow operators it came from.",
                    "Give the SavedModel that was converted.",
                )
            _call(node, segment)
        count += len(engines)
    if count:
        _rename_results(graph)
        _drop_resources(graph)
    return count


def _call(node: Any, segment: str) -> None:
    inputs, outputs = node.attr["InT"].list.type[:], node.attr["OutT"].list.type[:]
    node.op = "PartitionedCall"
    node.attr.clear()
    node.attr["Tin"].list.type.extend(inputs)
    node.attr["Tout"].list.type.extend(outputs)
    node.attr["f"].func.name = segment


def _rename_results(graph: Any) -> None:
    """Inside functions a result is named by its argument: an engine's is `out_tensor`, a call's is `output`."""
    for function in graph.library.function:
        for node in function.node_def:
            node.input[:] = [_result(value) for value in node.input]
        for key, value in function.ret.items():
            function.ret[key] = _result(value)


def _result(value: str) -> str:
    return re.sub(r":out_tensor:(\d+)$", r":output:\1", value)


def _drop_resources(graph: Any) -> None:
    """Take out the functions that load engines, and let what called them, when the model is opened, do nothing."""
    gone: set[str] = set()
    while (
        found := {
            function.signature.name
            for function in graph.library.function
            if any(node.op in RESOURCES or _called(node) in gone for node in function.node_def)
        }
        - gone
    ):
        gone |= found
    kept = [function for function in graph.library.function if function.signature.name not in gone]
    del graph.library.function[:]
    graph.library.function.extend(kept)
    _silence(graph.node, gone)


def _called(node: Any) -> str:
    return node.attr["f"].func.name if "f" in node.attr else ""


def _silence(nodes: Sequence[Any], gone: set[str]) -> None:
    """Let nodes that make engines, or call what does, do nothing; so do those that read what they gave."""
    silent = {node.name for node in nodes if node.op in RESOURCES or _called(node) in gone}
    while found := {node.name for node in nodes if any(value.split(":")[0] in silent for value in node.input)} - silent:
        silent |= found
    for node in nodes:
        if node.name in silent:
            node.op = "NoOp"
            node.attr.clear()
            node.input[:] = [value for value in node.input if value.startswith("^")]


def written(saved: Any, folder: Path, out: Path) -> Path:
    """A SavedModel in `out` that shares its variables and assets with the one in `folder`."""
    out.mkdir(exist_ok=True)
    (out / "saved_model.pb").write_bytes(saved.SerializeToString())
    for part in ("variables", "assets"):
        if (folder / part).is_dir() and not (out / part).is_symlink():
            (out / part).symlink_to(folder / part)
    return out
