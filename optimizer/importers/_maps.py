"""Outputs of classifiers as converters of scikit-learn and LightGBM write them: names of classes as text, and maps of probabilities.

Only a ZipMap makes such a map, out of a tensor (samples, classes), which is what an engine can give and a metric can read.
"""

from __future__ import annotations

import onnx

from optimizer.errors import InputError

_MOST_CLASSES = 12


def maps_of(proto: onnx.ModelProto) -> dict[str, str]:
    """Outputs that are maps from class to probability, each with the tensor that it is made of."""
    return {node.output[0]: node.input[0] for node in _zipmaps(proto)}


def plain_outputs(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Let outputs be tensors of numbers, in place: maps become the probabilities that they are made of, text is left out; a note for each.

    Raises:
        InputError: the model gives nothing but text.
    """
    notes = []
    for node in _zipmaps(proto):
        name, classes = node.output[0], _classes(node)
        node.op_type, node.domain = "Identity", ""
        node.ClearField("attribute")
        output = next(value for value in proto.graph.output if value.name == name)
        output.type.CopyFrom(onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None))
        notes.append(f"Output {name!r} was a map from class to probability; it is a plain tensor now, its columns {classes}.")
    for output in [value for value in proto.graph.output if value.type.tensor_type.elem_type == onnx.TensorProto.STRING]:
        if len(proto.graph.output) == 1:
            raise InputError(
                f"The only output, {output.name!r}, is text.", "Export the model with its scores or class numbers as an output."
            )
        proto.graph.output.remove(output)
        notes.append(f"Output {output.name!r} is text, which no metric reads; it was left out.")
    return tuple(notes)


def _zipmaps(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    outputs = {value.name for value in proto.graph.output}
    return [node for node in proto.graph.node if node.op_type == "ZipMap" and outputs.intersection(node.output)]


def _classes(node: onnx.NodeProto) -> str:
    """The classes of a ZipMap in their order, the first few of many."""
    found = [name for attribute in node.attribute for name in onnx.helper.get_attribute_value(attribute)]
    shown = ", ".join(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in found[:_MOST_CLASSES])
    return f"the classes {shown}" + (f" ... ({len(found)} in all)" if len(found) > _MOST_CLASSES else "")
