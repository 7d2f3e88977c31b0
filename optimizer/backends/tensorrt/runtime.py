"""An engine at run time, on the machine with its GPU; Polygraphy moves the arrays. Written, never run: no such GPU was at hand.

Imported by `load` alone, once a driver is known to be there. Polygraphy looks up CUDA's runtime library (libcudart) in the usual
places, or in NVIDIA's `nvidia-cuda-runtime` wheel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polygraphy.config
import tensorrt_rtx as trt
from numpy.typing import NDArray

polygraphy.config.USE_TENSORRT_RTX = True  # read when Polygraphy's TensorRT part is imported

from polygraphy.backend.trt import TrtRunner  # noqa: E402
from polygraphy.exception import PolygraphyException  # noqa: E402

from optimizer.engine import Arrays  # noqa: E402
from optimizer.errors import InputError, UnavailableError  # noqa: E402
from optimizer.model import TensorSpec  # noqa: E402

_REMEDY = "Run it on the GPU that it was built for, with the TensorRT-RTX release that its report names."


class Loaded:
    """An engine with its execution context and stream; one run at a time."""

    def __init__(self, engine: Any, runner: Any) -> None:
        self._engine = engine
        self._runner = runner
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
            InputError: an input is left out, or its shape or type is not the engine's.
        """
        given = {spec.name: np.ascontiguousarray(feeds[spec.name]) for spec in self.inputs if spec.name in feeds}
        try:
            found = self._runner.infer(given, check_inputs=True)
        except PolygraphyException as error:
            raise InputError(
                f"The engine can't run on these inputs: {error}.", "Feed every input in the engine's shape and type."
            ) from None
        return {name: np.array(array) for name, array in found.items()}

    def close(self) -> None:
        self._runner.deactivate()

    def _spec(self, name: str) -> TensorSpec:
        shape = tuple(size if size >= 0 else f"{name}:{axis}" for axis, size in enumerate(self._engine.get_tensor_shape(name)))
        return TensorSpec(name, np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))).name, shape)


def opened(file: Path) -> Loaded:
    """The engine of a file, on this machine's first GPU.

    Raises:
        UnavailableError: TensorRT-RTX refuses the engine, or CUDA's runtime library can't be found.
    """
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(file.read_bytes())
    if engine is None:
        raise UnavailableError(f"TensorRT-RTX {trt.__version__} refuses {file.name}.", _REMEDY)
    runner = TrtRunner(engine)
    try:
        runner.activate()
    except (PolygraphyException, OSError) as error:
        raise UnavailableError(f"The engine can't be set up on this GPU: {' '.join(str(error).split())}.", _REMEDY) from None
    return Loaded(engine, runner)
