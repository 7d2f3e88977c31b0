"""A build for a CPU that is not here: built, not timed, gated by a simulation of what that CPU's kernels do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from kernels import cpus
from kernels.cpus import CPUS
from kernels.target import Target

Make = Callable[..., Path]
Build = Callable[..., tuple[Any, dict[str, Any]]]


@pytest.fixture(autouse=True)
def zen4(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine counts as a Zen 4, whatever it is: only its words are asked for here, not its kernels."""
    features = CPUS["cpu:avx512-bf16"].features
    monkeypatch.setattr(cpus, "this_cpu", lambda: Target("cpu", "cpu", "x86-64", "AMD EPYC (family 25, model 17)", features, cores=2))


def test_an_older_cpu_gets_weights_of_seven_bits_and_the_report_says_what_was_not_seen(make: Make, build: Build) -> None:
    outcome, report = build(make(), targets=("cpu:haswell",), backends=("onnxruntime",), precision="int8", threads=None)
    assert outcome.exit_code in (0, 4)
    assert report["target"]["name"] == "cpu:avx2"
    assert report["gate"]["gated_on"] == "simulation"
    assert report["speed"]["timed_on"] is None
    assert "never run on an AVX2 CPU" in report["headline"]
    assert any("has avx512f, avx512_vnni, avx512_bf16 beyond it" in note for note in report["notes"])
    assert all(layer["ms"] is None for layer in report["precision"]["layers"])
    engine = onnx.load(outcome.folder / "engine.onnx")
    integers = [numpy_helper.to_array(one) for one in engine.graph.initializer if one.data_type == onnx.TensorProto.INT8]
    assert max(np.abs(array.astype(int)).max() for array in integers if array.ndim == 2) <= 63
    with outcome.engine() as loaded:
        assert loaded.run({"x": np.ones((1, 16), np.float32)})["y"].shape == (1, 10), "more features than the target's do no harm"


def test_several_cpus_go_to_folders_without_a_colon(make: Make, build: Build) -> None:
    outcome, report = build(make(), targets=("cpu:avx2", "cpu:amx"), backends=("onnxruntime",), precision="fp32", threads=None)
    assert report["targets"].keys() == {"cpu:avx2", "cpu:amx"}
    assert (outcome.folder / "cpu-avx2" / "engine.onnx").is_file()
    assert (outcome.folder / "cpu-amx" / "passport.json").is_file()
