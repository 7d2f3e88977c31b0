"""A typed graph as OpenVINO's IR, its operations called by the layers that they belong to.

OpenVINO's reader makes several operations of one ONNX node and gives most of them numbers for names.  What the CPU plugin
later fuses it tells by these names, so each gets one that leads back to its layer.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import onnx_ir as ir
import openvino as ov

from optimizer.backends.openvino.session import FILE, HINT, last_line
from optimizer.errors import UnavailableError
from optimizer.graph import save, weights_bytes
from optimizer.model import FOR_LAYER, PLANNED, is_layer

Owners = dict[str, str]
"""Layer by the name of an operation in the IR."""

_INLINE_BYTES = 1 << 30


def written(graph: ir.Model, folder: Path) -> Owners:
    """Write `engine.xml` and `engine.bin` into `folder`.

    BF16 is a hint for the whole engine; a layer that is planned in FP32 beside BF16 ones is marked `precise`, a mark that the
    plugin obeys for most operators (`realised.py` sees where not) and that only the file itself can carry.

    Raises:
        UnavailableError: OpenVINO has no form of an operator.
    """
    planned = {node.name or "": node.metadata_props.get(PLANNED, "fp32") for node in graph.graph if is_layer(node)}
    half = "bf16" in planned.values()
    with TemporaryDirectory(dir=folder, prefix=".openvino-") as scratch:
        file = Path(scratch) / "typed.onnx"
        save(graph, file, beside="typed.weights" if weights_bytes(graph) > _INLINE_BYTES else None)
        try:
            model = ov.Core().read_model(file)
        except RuntimeError as error:
            raise UnavailableError(f"OpenVINO can't read this graph: {last_line(error)}", "Choose another backend.") from None
        owners = _named(model, graph)
        model.set_rt_info("bf16" if half else "f32", HINT)
        ov.save_model(model, folder / FILE, compress_to_fp16=False)
    if half:
        _mark(folder / FILE, {name for name, layer in owners.items() if planned[layer] == "fp32"})
    return owners


def _named(model: Any, graph: ir.Model) -> Owners:
    """Give every operation a name of its layer's, and tell whose it is: that of the ONNX node whose result it is on the way to."""
    writers = {value.name: _layer(node) for node in graph.graph for value in node.outputs if value.name}
    whose: dict[str, str] = {}
    operations = model.get_ordered_ops()
    for operation in reversed(operations):
        own = next((writers[name] for port in operation.outputs() for name in port.get_names() if name in writers), None)
        readers = (reader.get_node() for port in operation.outputs() for reader in port.get_target_inputs())
        layer = own or next((whose[id_] for id_ in map(_id, readers) if whose.get(id_)), "")
        whose[_id(operation)] = layer
    owners: Owners = {}
    counts: dict[str, int] = {}
    for operation in operations:
        layer = whose[_id(operation)]
        if not layer or operation.get_type_name() in {"Parameter", "Result", "Constant"}:
            continue
        counts[layer] = counts.get(layer, 0) + 1
        name = f"{layer.replace(',', ';')}/{operation.get_type_name()}{counts[layer]}"  # a comma separates names in what the plugin tells
        operation.set_friendly_name(name)
        owners[name] = layer
    return owners


def _layer(node: ir.Node) -> str:
    return node.metadata_props.get(FOR_LAYER) or (node.name or "" if is_layer(node) else "")


def _id(operation: Any) -> str:
    """OpenVINO's own unique name: Python's wrappers come and go."""
    return str(operation.get_name())


def _mark(file: Path, names: set[str]) -> None:
    """Write `precise` onto the operations of these names, right behind their attributes, where the reader looks for it."""
    tree = ElementTree.parse(file)
    for layer in tree.getroot().iter("layer"):
        if layer.get("name") in names:
            info = layer.find("rt_info")
            if info is None:
                info = ElementTree.Element("rt_info")
                layer.insert(1 if layer.find("data") is not None else 0, info)
            ElementTree.SubElement(info, "attribute", {"name": "precise", "version": "0"})
    tree.write(file)
