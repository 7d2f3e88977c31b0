"""A compiled OpenVINO engine: settings that make it repeatable, and inputs that are checked before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.target import this_cpu
from optimizer.backends.openvino.worker import compiled, last_line, release, tensor
from optimizer.engine import Arrays, checker
from optimizer.errors import InputError, UnavailableError
from optimizer.model import TensorSpec
from optimizer.plan import Knobs

FILE = "engine.xml"

_WIDE = frozenset({"int64", "uint64", "uint32"})
_INT32 = np.iinfo(np.int32)


def settings(knobs: Knobs) -> dict[str, Any]:
    """The plugin's settings: one stream, a fixed number of threads. Nothing is cached on disk unless a folder is named for it."""
    return {
        "INFERENCE_NUM_THREADS": int(knobs.get("threads") or this_cpu().cores),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # a pinned thread waits where something else runs on its core
    }


class Session:
    """An Engine on OpenVINO. Its inputs are checked here, so that a mistake is told in the words of the model.

    Raises:
        UnavailableError: OpenVINO can't read or compile the file.
    """

    peak_bytes: int | None = None

    def __init__(self, file: Path, knobs: Knobs) -> None:
        try:
            model, (inputs, outputs) = compiled(file, settings(knobs))
        except RuntimeError as error:
            raise UnavailableError(
                f"OpenVINO {release()} can't load this engine: {last_line(error)}.", "Build it again with the OpenVINO that is here."
            ) from None
        self.inputs = tuple(_spec(name, port) for name, port in zip(inputs, model.inputs, strict=True))
        self.outputs = tuple(_spec(name, port) for name, port in zip(outputs, model.outputs, strict=True))
        self._check = checker(self.inputs)
        self._wide = tuple(spec for spec in self.inputs if spec.dtype in _WIDE)
        self._request: Any = model.create_infer_request()
        self._held: dict[str, tuple[Any, NDArray[Any]]] = {}

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Every output by name.

        Raises:
            InputError: an input is missing, unknown, of the wrong dtype or shape, or holds what a layer can't take.
        """
        if self._request is None:
            raise ValueError("this engine was closed")
        self._check(feeds)
        for spec in self._wide:
            _refuse_wide(spec.name, feeds[spec.name])
        try:
            for number, spec in enumerate(self.inputs):
                self._hand_over(number, spec.name, feeds[spec.name])
            self._request.infer(share_outputs=True)
            return {spec.name: self._request.get_output_tensor(number).data.copy() for number, spec in enumerate(self.outputs)}
        except RuntimeError as error:
            raise InputError(f"The engine can't run on this input: {last_line(error)}.", "Check the values of the inputs.") from None

    def _hand_over(self, number: int, name: str, array: NDArray[Any]) -> None:
        """Copy an input into the tensor that the request holds for its shape: a new tensor costs a small model a seventh of its run."""
        _, held = self._held.get(name, (None, None))
        if held is not None and held.shape == array.shape:
            np.copyto(held, array)
            return
        own = np.array(array, order="C")
        self._held[name] = tensor(own), own
        self._request.set_input_tensor(number, self._held[name][0])

    def close(self) -> None:
        """Free weights, buffers and threads."""
        self._request = None
        self._held.clear()


def _refuse_wide(name: str, array: NDArray[Any]) -> None:
    """The plugin computes with whole numbers in 32 bits and would take others for what is left of them."""
    if array.size and (array.max() > _INT32.max or array.min() < _INT32.min):
        raise InputError(
            f"Input {name!r} holds numbers beyond 32 bits, with which OpenVINO's CPU kernels compute.", "Build with --backend onnxruntime."
        )


def _spec(name: str, port: Any) -> TensorSpec:
    sizes = tuple(f"?{axis}" if size.is_dynamic else size.get_length() for axis, size in enumerate(port.get_partial_shape()))
    return TensorSpec(name, np.dtype(port.get_element_type().to_dtype()).name, sizes)
