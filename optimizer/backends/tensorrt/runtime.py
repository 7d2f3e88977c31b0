"""An engine at run time, on the machine with its GPU; Polygraphy moves the arrays. Written, never run: no such GPU was at hand.

TensorRT-RTX and TensorRT 10 and 11 have one API here, so the module is a parameter; Polygraphy takes one of them a process.
It looks up CUDA's runtime library (libcudart) in the usual places, or in NVIDIA's `nvidia-cuda-runtime` wheel.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from optimizer.backends.tensorrt.driver import absent
from optimizer.engine import Arrays, check
from optimizer.errors import InputError, UnavailableError
from optimizer.model import TensorSpec

Flavour = Literal["tensorrt_rtx", "tensorrt"]
"""The Python module of TensorRT-RTX, or of TensorRT 10 and 11."""

_REMEDY = "Run it on the GPU that it was built for, with the release of TensorRT that built it."


class Loaded:
    """An engine with its execution context and stream; one run at a time."""

    def __init__(self, trt: Any, engine: Any, runner: Any, refusals: type[Exception]) -> None:
        self._trt = trt
        self._engine = engine
        self._runner = runner
        self._refusals = refusals
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.inputs = tuple(self._spec(name) for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
        self.outputs = tuple(self._spec(name) for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT)

    @property
    def peak_bytes(self) -> int | None:
        """Device memory of one run beside the weights."""
        return int(self._engine.device_memory_size_v2)

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Every output by name, in host memory of its own.

        Raises:
            InputError: an input is left out or unknown, or its shape or type is not the engine's.
        """
        check(feeds, self.inputs)
        given = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        try:
            found = self._runner.infer(given, check_inputs=True)
        except self._refusals as error:
            raise InputError(
                f"The engine can't run on these inputs: {error}.", "Feed every input in the engine's shape and type."
            ) from None
        return {name: np.array(array) for name, array in found.items()}

    def close(self) -> None:
        self._runner.deactivate()

    def _spec(self, name: str) -> TensorSpec:
        shape = tuple(size if size >= 0 else f"{name}:{axis}" for axis, size in enumerate(self._engine.get_tensor_shape(name)))
        return TensorSpec(name, np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name))).name, shape)


def opened(file: Path, flavour: Flavour) -> Loaded:
    """The engine of a file, on this machine's first GPU.

    Raises:
        UnavailableError: no driver or GPU, a package is missing, or TensorRT refuses the engine.
    """
    reason = absent() or next((f"{package} is not installed" for package in (flavour, "polygraphy") if find_spec(package) is None), None)
    if reason is not None:
        raise UnavailableError(f"{file.name} can't be loaded here: {reason}.", "Take it to the machine with its GPU and load it there.")
    trt = import_module(flavour)
    settings: Any = import_module("polygraphy.config")
    settings.USE_TENSORRT_RTX = flavour == "tensorrt_rtx"  # read when its TensorRT part is imported, which must come after
    refusals: type[Exception] = import_module("polygraphy.exception").PolygraphyException
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(file.read_bytes())
    if engine is None:
        raise UnavailableError(f"{flavour} {trt.__version__} refuses {file.name}.", _REMEDY)
    runner = import_module("polygraphy.backend.trt").TrtRunner(engine)
    try:
        runner.activate()
    except (refusals, OSError) as error:
        raise UnavailableError(f"{file.name} can't be set up on this GPU: {' '.join(str(error).split())}.", _REMEDY) from None
    return Loaded(trt, engine, runner, refusals)
