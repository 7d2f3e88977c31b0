"""Part of tf_source.py: .tflite files, run by TensorFlow Lite's interpreter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optimize_frozen
import tensorflow as tf

if TYPE_CHECKING:
    import numpy as np

    from optimizer.child import Channel

WHOLE = "Get the whole file, or convert the model again."


def opened(channel: Channel, request: Mapping[str, Any]) -> optimize_frozen.Opened:
    """The file's main graph."""
    file, name = Path(request["file"]), request["name"]
    if file.read_bytes()[4:8] != b"TFL3":
        channel.refuse(f"{name} is no TensorFlow Lite model.", WHOLE)
    with channel.theirs(f"Opening {name}", WHOLE):
        interpreter = tf.lite.Interpreter(model_path=str(file), num_threads=1, experimental_preserve_all_tensors=True)
        interpreter.allocate_tensors()
    inputs, outputs = (ends(interpreter, side) for side in ("inputs", "outputs"))
    specs = {label: (detail["dtype"].__name__, free(detail)) for label, detail in inputs.items()}
    places = {detail["name"]: detail["index"] for detail in interpreter.get_tensor_details()}

    def fed(feeds: Mapping[str, np.ndarray]) -> None:
        for label, array in feeds.items():
            interpreter.resize_tensor_input(inputs[label]["index"], array.shape)
        interpreter.allocate_tensors()
        for label, array in feeds.items():
            interpreter.set_tensor(inputs[label]["index"], array)
        interpreter.invoke()

    def run(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        fed(feeds)
        return {label: interpreter.get_tensor(detail["index"]) for label, detail in outputs.items()}

    def tensors(feeds: Mapping[str, np.ndarray], names: Sequence[str]) -> Mapping[str, np.ndarray]:
        fed(feeds)
        return {label: interpreter.get_tensor(places[label]) for label in names if label in places}

    return optimize_frozen.Opened(
        {label: detail["name"] for label, detail in inputs.items()},
        {label: detail["name"] for label, detail in outputs.items()},
        specs,
        run,
        tensors,
    )


def ends(interpreter: Any, side: str) -> dict[str, Any]:
    """Inputs or outputs by the names of the signature, where there is one, else of their tensors."""
    details = interpreter.get_input_details() if side == "inputs" else interpreter.get_output_details()
    signatures = list(interpreter.get_signature_list().values())
    labels = signatures[0][side] if len(signatures) == 1 else []
    if sorted(labels) and len(labels) == len(details):
        runner = interpreter.get_signature_runner()
        by_label = runner.get_input_details() if side == "inputs" else runner.get_output_details()
        return {label: by_label[label] for label in labels}
    return {detail["name"].split(":")[0]: detail for detail in details}


def free(detail: Mapping[str, Any]) -> list[int | None]:
    signature = detail.get("shape_signature", detail["shape"])
    return [None if size < 0 else int(size) for size in signature]
