"""A small engine folder as a build leaves it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer.model import Source, TensorSpec
from optimizer.package.passport import Passport, seal
from optimizer.preprocessing import InputPreprocessing, Preprocessing


@pytest.fixture
def passport() -> Passport:
    return Passport(
        name="net",
        target="cpu",
        compute="x86-64",
        backend="onnxruntime",
        engine="engine.onnx",
        inputs=(TensorSpec("input", "float32", ("batch", 3, 4, 4)),),
        outputs=(TensorSpec("logits", "float32", ("batch", 10)),),
        source=Source("onnx", "net.onnx", "0" * 64),
        verdict="pass",
        gated_on="this machine",
        timed_on="this machine",
        precision="int8",
        knobs={"threads": 2},
        preprocessing=Preprocessing({"input": InputPreprocessing("NHWC", 1 / 255, (0.5,) * 3, (0.25,) * 3)}),
    )


@pytest.fixture
def sealed(tmp_path: Path, passport: Passport) -> Callable[..., Path]:
    """A function that makes a sealed folder; the files may be given as name=bytes."""

    def make(name: str = "engine", engine: bytes = b"engine" * 100) -> Path:
        folder = tmp_path / name
        (folder / "handover").mkdir(parents=True)
        (folder / "engine.onnx").write_bytes(engine)
        (folder / "plan.json").write_text("{}")
        (folder / "report.json").write_text('{"schema": "optimize.report/1"}')
        (folder / "handover" / "build.sh").write_text("true\n")
        seal(folder, passport)
        return folder

    return make
