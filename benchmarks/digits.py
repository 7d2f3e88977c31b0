"""What ONNX Runtime's own quantizers make of the demo's model: they exit 0, whatever is left of the answers.

    python -P benchmarks/digits.py

Prints the accuracy on the demo's 1,000 held-out images and the agreement with the parent, in markdown.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


class Reader(CalibrationDataReader):
    """Calibration images one by one, as ONNX Runtime asks for them."""

    def __init__(self, images: NDArray[np.float32]) -> None:
        self._images: Iterator[NDArray[np.float32]] = iter(images)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        image = next(self._images, None)
        return None if image is None else {"image": image}


def main() -> None:
    sys.path.append(str(EXAMPLES))
    from digits_data import split
    from digits_model import make

    _, calibration, evaluation = split()
    network = make()
    network.load_state_dict(torch.load(EXAMPLES / "digits.pt", weights_only=True)["state_dict"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.onnx.export(
            network.eval(),
            (torch.zeros(1, 1, 8, 8),),
            folder / "fp32.onnx",
            dynamo=True,
            opset_version=20,
            external_data=False,
            verbose=False,
        )
        quant_pre_process(folder / "fp32.onnx", folder / "prepared.onnx")
        quantize_dynamic(folder / "prepared.onnx", folder / "dynamic.onnx", per_channel=True)
        images = calibration.x[:, None, None].astype(np.float32) / 16
        quantize_static(folder / "prepared.onnx", folder / "static.onnx", Reader(images), QuantFormat.QDQ, per_channel=True)
        answers = {kind: decided(folder / f"{kind}.onnx", evaluation.x) for kind in ("fp32", "static", "dynamic")}
    print("| model | accuracy | same answer as FP32 |\n|---|---|---|")
    for kind, found in answers.items():
        print(f"| {kind} | {np.mean(found == evaluation.y):.1%} | {np.mean(found == answers['fp32']):.1%} |")


def decided(file: Path, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The class of each image."""
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    return np.array([session.run(None, {"image": image[None, None].astype(np.float32) / 16})[0].argmax() for image in images])


if __name__ == "__main__":
    main()
