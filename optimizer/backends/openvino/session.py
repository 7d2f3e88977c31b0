"""A compiled OpenVINO engine: settings that make it repeatable, and inputs that are checked before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from kernels.target import this_cpu
from optimizer.engine import Arrays, check
from optimizer.errors import InputError, UnavailableError
from optimizer.model import TensorSpec
from optimizer.plan import Knobs

FILE = "engine.xml"

HINT = ["optimize", "inference_precision"]
"""Where in the IR the precision stands in which the plugin is to run what is not marked: "f32" or "bf16"."""


def compiled(file: Path, knobs: Knobs, profiled: bool = False) -> ov.CompiledModel:
    """The engine in `file`, compiled for this CPU: one stream, a fixed number of threads, float as its IR says.

    Raises:
        UnavailableError: OpenVINO can't read or compile it.
    """
    try:
        core = ov.Core()
        model = core.read_model(file)
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": model.get_rt_info(HINT).astype(str),
            "INFERENCE_NUM_THREADS": int(knobs.get("threads", this_cpu().cores)),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # a pinned thread waits where something else runs on its core
            "PERF_COUNT": profiled,
        }
        return core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise UnavailableError(
            f"OpenVINO {ov.__version__.partition('-')[0]} can't compile this engine: {last_line(error)}",
            "Choose another precision or another backend.",
        ) from None


def last_line(error: Exception) -> str:
    """What an error of OpenVINO's says: the lines before tell where in its source it was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class Session:
    """An Engine on OpenVINO. Its inputs are checked here, so that a mistake is told in the words of the model.

    Raises:
        UnavailableError: OpenVINO can't compile the file.
    """

    peak_bytes: int | None = None

    def __init__(self, file: Path, knobs: Knobs) -> None:
        self._model: ov.CompiledModel | None = compiled(file, knobs)
        self.inputs = tuple(_spec(port) for port in self._model.inputs)
        self.outputs = tuple(_spec(port) for port in self._model.outputs)
        self._request = self._model.create_infer_request()

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Every output by name.

        Raises:
            InputError: an input is missing, unknown, of the wrong dtype or shape, or holds what a layer can't take.
        """
        if self._model is None:
            raise ValueError("this engine was closed")
        check(feeds, self.inputs)
        try:
            found = self._request.infer({name: np.ascontiguousarray(array) for name, array in feeds.items()}, share_inputs=True)
        except RuntimeError as error:
            raise InputError(f"The engine can't run on this input: {last_line(error)}", "Check the values of the inputs.") from None
        return {spec.name: found[number] for number, spec in enumerate(self.outputs)}

    def close(self) -> None:
        """Free weights, buffers and threads."""
        self._model = self._request = None


def _spec(port: Any) -> TensorSpec:
    sizes = tuple(f"?{axis}" if size.is_dynamic else size.get_length() for axis, size in enumerate(port.get_partial_shape()))
    return TensorSpec(port.get_any_name(), np.dtype(port.get_element_type().to_dtype()).name, sizes)
