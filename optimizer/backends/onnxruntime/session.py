"""A loaded ONNX Runtime engine: options that make it deterministic and quiet, and inputs that are checked before a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from kernels.target import this_cpu
from optimizer.engine import LIBRARY, Arrays, checker
from optimizer.errors import InputError, UnavailableError
from optimizer.model import TensorSpec
from optimizer.plan import Knobs

FILE = "engine.onnx"

ERRORS: tuple[type[Exception], ...] = (
    _state.EngineError,
    _state.EPFail,
    _state.Fail,
    _state.InvalidArgument,
    _state.InvalidGraph,
    _state.InvalidProtobuf,
    _state.ModelLoaded,
    _state.NoModel,
    _state.NoSuchFile,
    _state.NotImplemented,
    _state.RuntimeException,
)
"""Everything that ONNX Runtime raises: these classes share no base but Exception."""

_NOT_WANTED = ["WeightBiasQuantization"]
"""Left out of full optimization: it rounds the weights of a layer that the plan keeps in float, where its neighbours are INT8."""

_NO_LOG = 4
"""Severity "fatal": what goes wrong is raised, so a second copy on standard error helps nobody."""

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": "object",
    **{f"tensor({name})": name for name in ("float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")},
    "tensor(bfloat16)": "bfloat16",
}


def options(knobs: Knobs) -> ort.SessionOptions:
    """The options of a session: full graph optimization, a fixed number of threads, idle between runs.

    Denormals are left alone: flushing them to zero would change the mode of the caller's thread, not only of ours.
    """
    chosen = ort.SessionOptions()
    chosen.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    chosen.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    chosen.intra_op_num_threads = int(knobs.get("threads") or this_cpu().cores)
    chosen.inter_op_num_threads = 1
    chosen.log_severity_level = _NO_LOG
    chosen.add_session_config_entry("session.intra_op.allow_spinning", "1" if knobs.get("spinning", True) else "0")
    # Threads that spin on after a run take the cores from whatever runs next: in a race, the other contender.
    chosen.add_session_config_entry("session.force_spinning_stop", "1")
    return chosen


def open_session(file: Path, chosen: ort.SessionOptions) -> ort.InferenceSession:
    """A session on the CPU, with the operators of the library that lies beside the file, if one does.

    Raises:
        UnavailableError: ONNX Runtime can't load the file or the library.
    """
    library = file.with_name(LIBRARY)
    try:
        if library.exists():
            chosen.register_custom_ops_library(str(library))
        return ort.InferenceSession(file, chosen, providers=["CPUExecutionProvider"], disabled_optimizers=_NOT_WANTED)
    except ERRORS as error:
        raise UnavailableError(
            f"ONNX Runtime {ort.__version__} can't load this engine: {first_line(error)}", "Choose another precision or another backend."
        ) from None


def specs(arguments: Sequence[Any]) -> tuple[TensorSpec, ...]:
    """The TensorSpecs of a session's inputs or outputs; dimensions that nobody named are called `?0`, `?1` ..."""
    return tuple(
        TensorSpec(
            argument.name,
            _DTYPES.get(argument.type, argument.type),
            tuple(size if size or size == 0 else f"?{axis}" for axis, size in enumerate(argument.shape)),
        )
        for argument in arguments
    )


def first_line(error: Exception) -> str:
    """What an error of ONNX Runtime's says, without its code and without the lines behind the first."""
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return line.rpartition(" : ")[2].strip()


class Session:
    """An Engine on ONNX Runtime. Its inputs are checked here, so that a mistake is told in the words of the model.

    Raises:
        UnavailableError: ONNX Runtime can't load the file.
    """

    peak_bytes: int | None = None

    def __init__(self, file: Path, knobs: Knobs) -> None:
        self._session: ort.InferenceSession | None = open_session(file, options(knobs))
        self.inputs = specs(self._session.get_inputs())
        self.outputs = specs(self._session.get_outputs())
        self._check = checker(self.inputs)
        self._names = [spec.name for spec in self.outputs]

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Every output by name.

        Raises:
            InputError: an input is missing, unknown, of the wrong dtype or shape, or holds what a layer can't take.
        """
        if self._session is None:
            raise ValueError("this engine was closed")
        self._check(feeds)
        try:
            results = self._session.run(self._names, dict(feeds))
        except ERRORS as error:
            raise InputError(f"The engine can't run on this input: {first_line(error)}", "Check the values of the inputs.") from None
        return dict(zip(self._names, results, strict=True))

    def close(self) -> None:
        """Free weights, arena and threads."""
        self._session = None
