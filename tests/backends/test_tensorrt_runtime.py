"""No GPU is at hand, so what runs an engine is held against the real modules' names, and tried on an engine of ours in Python."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from optimizer.backends.tensorrt import runtime
from optimizer.errors import InputError, UnavailableError
from optimizer.model import TensorSpec


class RefusalError(Exception):
    pass


class Runner:
    """Doubles its input, as Polygraphy's runner would hand it out: in a buffer that the next run overwrites."""

    def __init__(self) -> None:
        self.buffer = np.zeros((2, 3), np.float32)
        self.active = True

    def infer(self, feeds: dict[str, np.ndarray], check_inputs: bool) -> dict[str, np.ndarray]:
        assert check_inputs
        if len(feeds["x"]) > len(self.buffer):
            raise RefusalError("x is beyond the largest shape of the profile")
        self.buffer[...] = 2 * feeds["x"]
        return {"y": self.buffer}

    def deactivate(self) -> None:
        self.active = False


def loaded() -> tuple[runtime.Loaded, Runner]:
    trt: Any = SimpleNamespace(TensorIOMode=SimpleNamespace(INPUT=0, OUTPUT=1), nptype=np.dtype)
    engine: Any = SimpleNamespace(
        num_io_tensors=2,
        get_tensor_name=lambda index: "xy"[index],
        get_tensor_mode=lambda name: "xy".index(name),
        get_tensor_shape=lambda name: (-1, 3),  # noqa: ARG005
        get_tensor_dtype=lambda name: "float32",  # noqa: ARG005
        device_memory_size_v2=4096,
    )
    runner = Runner()
    return runtime.Loaded(trt, engine, runner, RefusalError), runner


def test_an_engine_tells_its_inputs_and_outputs_with_free_dimensions_by_name() -> None:
    engine, _ = loaded()
    assert engine.inputs == (TensorSpec("x", "float32", ("x:0", 3)),)
    assert engine.outputs == (TensorSpec("y", "float32", ("y:0", 3)),)
    assert engine.peak_bytes == 4096


def test_an_answer_stays_when_the_next_run_overwrites_the_buffer() -> None:
    engine, _ = loaded()
    first = engine.run({"x": np.ones((2, 3), np.float32)})
    engine.run({"x": np.zeros((2, 3), np.float32)})
    np.testing.assert_array_equal(first["y"], np.full((2, 3), 2, np.float32))


def test_a_refusal_of_the_runner_is_an_error_of_the_input() -> None:
    engine, _ = loaded()
    with pytest.raises(InputError, match="beyond the largest shape"):
        engine.run({"x": np.ones((3, 3), np.float32)})
    with pytest.raises(InputError, match="no input called 'mask'"):
        engine.run({"x": np.ones((2, 3), np.float32), "mask": np.ones(1)})


def test_closing_gives_the_gpu_back() -> None:
    engine, runner = loaded()
    engine.close()
    assert not runner.active


def test_without_a_driver_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "absent", lambda: "no NVIDIA driver is installed on this machine")
    with pytest.raises(UnavailableError, match=r"my\.plan can't be loaded here: no NVIDIA driver"):
        runtime.opened(tmp_path / "my.plan", "tensorrt")


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "absent", lambda: None)
    monkeypatch.setattr(runtime, "find_spec", lambda name: None)  # noqa: ARG005
    with pytest.raises(UnavailableError, match="tensorrt is not installed"):
        runtime.opened(tmp_path / "my.plan", "tensorrt")


def test_every_name_that_is_called_exists_in_tensorrt_rtx_and_polygraphy() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed (NVIDIA's licence)")
    config = pytest.importorskip("polygraphy.config", reason="polygraphy is not installed")
    assert hasattr(config, "USE_TENSORRT_RTX")
    for name in ("get_tensor_name", "num_io_tensors", "get_tensor_mode", "get_tensor_shape", "get_tensor_dtype", "device_memory_size_v2"):
        assert hasattr(trt.ICudaEngine, name), name
    assert {"INPUT", "OUTPUT"} <= set(dir(trt.TensorIOMode))
    assert hasattr(trt.Runtime, "deserialize_cuda_engine")
    assert trt.nptype(trt.float32) is np.float32
    base = pytest.importorskip("polygraphy.backend.base").BaseRunner
    assert {"feed_dict", "check_inputs"} <= set(inspect.signature(base.infer).parameters)
    assert callable(base.activate)
    assert callable(base.deactivate)
