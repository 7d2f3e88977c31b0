"""A loaded engine takes what the model takes, or what the data set holds, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import optimizer
from kernels.load import Load, Quantile, clients
from kernels.target import this_cpu
from optimizer.backends import backend
from optimizer.engine import Engine
from optimizer.errors import InputError, UnavailableError, VerificationError
from optimizer.package.load import load
from optimizer.package.passport import Passport, seal
from optimizer.plan import Knobs
from optimizer.preprocessing import InputPreprocessing, Preprocessing

GRAPH = """<ir_version: 9, opset_import: ["": 20]> net (float[batch,3,4,4] input) => (float[batch,3] logits)
{ pooled = GlobalAveragePool(input)  logits = Flatten<axis = 1>(pooled) }"""
KNOBS = {"threads": 1, "spinning": False}


@pytest.fixture
def engine(tmp_path: Path, passport: Passport) -> Callable[..., Path]:
    """A function that builds a real engine folder; words change its passport."""

    def make(**words: object) -> Path:
        folder = tmp_path / "engine"
        folder.mkdir()
        backend("onnxruntime").build(ir.from_onnx_text(GRAPH), this_cpu(), KNOBS, folder)
        seal(folder, replace(passport, **{"knobs": KNOBS, **words}))  # type: ignore[arg-type]
        return folder

    return make


def raw(samples: int = 2) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (samples, 4, 4, 3), dtype=np.uint8)


def prepared(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return ((images / np.float32(255) - np.float32(0.5)) / np.float32(0.25)).transpose(0, 3, 1, 2).astype(np.float32)


def test_run_takes_what_the_model_takes_and_run_raw_what_the_data_holds(engine: Callable[..., Path]) -> None:
    with optimizer.load(engine()) as loaded:
        images = raw()
        expected = prepared(images).mean(axis=(2, 3))
        np.testing.assert_allclose(loaded.run({"input": prepared(images)})["logits"], expected, atol=1e-6)
        np.testing.assert_allclose(loaded.run_raw({"input": images})["logits"], expected, atol=1e-6)
        assert [spec.name for spec in (*loaded.inputs, *loaded.outputs)] == ["input", "logits"]
        assert loaded.passport.target == "cpu"


X = np.zeros((1, 3, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "no array for input 'input'"),
        ({"input": X, "mask": X}, "no input called 'mask'"),
        ({"input": X.astype(np.float64)}, r"float64, not float32.*\.astype\('float32'\)"),
        ({"input": X[0]}, "has shape"),
        ({"input": np.zeros((1, 4, 4, 3), np.float32)}, "has shape 1x4x4x3, not batchx3x4x4"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(engine: Callable[..., Path], feeds: Mapping[str, NDArray[np.float32]], words: str) -> None:
    with load(engine()) as loaded, pytest.raises(InputError, match=words):
        loaded.run(feeds)


def test_raw_data_of_an_unknown_name_or_wrong_shape_is_refused(engine: Callable[..., Path]) -> None:
    with load(engine()) as loaded:
        with pytest.raises(InputError, match="no input 'x'"):
            loaded.run_raw({"x": raw()})
        with pytest.raises(InputError, match="input"):
            loaded.run_raw({"input": raw()[:, :3]})


def test_a_function_of_the_users_is_no_part_of_the_engine(engine: Callable[..., Path]) -> None:
    function = Preprocessing({"input": InputPreprocessing(function="prepare.py:prepare")})
    with load(engine(preprocessing=function)) as loaded, pytest.raises(InputError, match=r"prepare\.py:prepare"):
        loaded.run_raw({"input": raw()})


def test_nothing_is_loaded_that_was_changed(engine: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = engine()
    (folder / "engine.onnx").write_bytes(b"\x00" + (folder / "engine.onnx").read_bytes()[1:])
    monkeypatch.setattr("optimizer.package.load.backend", lambda _: pytest.fail("a backend was asked before the hashes were"))
    with pytest.raises(VerificationError, match=r"engine\.onnx"):
        load(folder)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"target": "l4", "compute": "sm_89", "backend": "tensorrt"}, "l4"),
        ({"target": "h100", "compute": "sm_90", "backend": "tensorrt", "engine": None}, "a handover for h100"),
        ({"backend": "abacus"}, "abacus"),
    ],
)
def test_an_engine_that_can_not_run_here_ends_in_5_with_the_reason(
    engine: Callable[..., Path], words: dict[str, object], reason: str
) -> None:
    with pytest.raises(UnavailableError, match=reason):
        load(engine(**words))


def test_the_passport_carries_the_preprocessing_in_clear(engine: Callable[..., Path]) -> None:
    content = json.loads((engine() / "passport.json").read_text())
    assert content["preprocessing"]["inputs"]["input"]["layout"] == "NHWC"
    assert content["preprocessing"]["inputs"]["input"]["mean"] == [0.5, 0.5, 0.5]


def test_a_loaded_engine_serves_many_threads_in_the_streams_of_its_passport(
    engine: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    builder, opened = backend("onnxruntime"), list[Engine]()
    original = builder.load

    def noted(folder: Path, knobs: Knobs) -> Engine:
        opened.append(original(folder, knobs))
        return opened[-1]

    monkeypatch.setattr(builder, "load", noted)
    images = [prepared(raw(samples)) for samples in range(1, 5)]
    with optimizer.load(engine(knobs={**KNOBS, "streams": 2})) as loaded, clients(4) as serve:

        def ask(number: int) -> None:
            asked = images[number % 4]
            np.testing.assert_allclose(loaded.run({"input": asked})["logits"], asked.mean(axis=(2, 3)), atol=1e-6)

        serve(ask, range(100))
    assert len(opened) == 2


@pytest.mark.parametrize("streams", [0, -1, True, "two", 1.5, 10**9])
def test_streams_that_no_build_has_written_are_refused(engine: Callable[..., Path], streams: object) -> None:
    with pytest.raises(VerificationError, match="streams"):
        load(engine(knobs={**KNOBS, "streams": streams}))


def test_the_passport_tells_the_load_tests(engine: Callable[..., Path]) -> None:
    seen = Quantile(1.0, 0.9, None)
    told = Load(400, 4, None, 1, 1000.0, seen, seen, seen, "this machine")
    with load(engine(loads=(told,))) as loaded:
        assert loaded.passport.loads == (told,)
