"""An engine in regions is one engine to its user, wherever it is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from kernels.target import this_cpu
from optimizer import backends, relay
from optimizer.backends import backend, loader, open_engine
from optimizer.engine import Engine
from optimizer.errors import InputError, UnavailableError
from optimizer.memory import measured
from optimizer.model import TensorSpec
from optimizer.relay import Line, Relay

KNOBS = {"threads": 1, "spinning": False}
X, Y, Z = (TensorSpec(name, "float32", ("batch", 4)) for name in "xyz")
FIRST = '<ir_version: 9, opset_import: ["": 20]> net (float[batch,4] x) => (float[batch,4] m) { [one] m = Neg(x) }'
SECOND = '<ir_version: 9, opset_import: ["": 20]> net (float[batch,4] m, float[batch,4] x) => (float[batch,4] y) { [two] y = Sub(m, x) }'
FEED = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """`folder(*backends)`: an engine in two regions, y = -2 x."""

    def made(*names: str, outputs: tuple[TensorSpec, ...] = (Y,), told: tuple[str, ...] = ()) -> Path:
        whole = tmp_path / "whole"
        for number, (name, text) in enumerate(zip(names, (FIRST, SECOND), strict=True)):
            place = relay.region(whole, number)
            place.mkdir(parents=True)
            backend(name).build(ir.from_onnx_text(text), this_cpu(), KNOBS, place)
        relay.write(Line(told or names, (X,), outputs), whole)
        return whole

    return made


@pytest.mark.parametrize("names", [("onnxruntime", "onnxruntime"), ("openvino", "onnxruntime"), ("onnxruntime", "openvino")])
def test_it_takes_and_gives_what_the_model_does_in_any_batch(names: tuple[str, ...], folder: Callable[..., Path]) -> None:
    for name in names:
        pytest.importorskip(name)
    engine = loader("onnxruntime", folder(*names))(KNOBS)
    assert (engine.inputs, engine.outputs) == ((X,), (Y,))
    for count in (1, 2, 3):
        given = np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)
        found = engine.run({"x": given})
        assert list(found) == ["y"]
        np.testing.assert_array_equal(found["y"], -2 * given)
    with pytest.raises(InputError, match="no array for input 'x'"):
        engine.run({})
    with pytest.raises(InputError, match="has shape"):
        engine.run({"x": np.zeros((2, 5), np.float32)})
    engine.close()
    with pytest.raises(ValueError, match="closed"):
        engine.run(FEED)


def test_it_runs_in_streams_and_is_weighed_like_any_other(folder: Callable[..., Path]) -> None:
    whole = folder("onnxruntime", "onnxruntime")
    engine = open_engine("onnxruntime", whole, {**KNOBS, "streams": 2})
    assert len(engine) == 2
    np.testing.assert_array_equal(engine.run(FEED)["y"], -2 * FEED["x"])
    engine.close()
    assert set(measured("onnxruntime", whole, KNOBS, FEED)) == {"loaded", "run"}


def test_a_backend_that_is_not_here_is_told_before_anything_is_loaded(folder: Callable[..., Path]) -> None:
    whole = folder("onnxruntime", "onnxruntime", told=("onnxruntime", "elsewhere"))
    with pytest.raises(UnavailableError, match="no backend called 'elsewhere'"):
        loader("onnxruntime", whole)


def test_where_one_region_can_not_be_loaded_the_others_are_closed(folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole, closed = folder("onnxruntime", "onnxruntime"), list[str]()

    class Opened:
        inputs = outputs = (X,)

        def close(self) -> None:
            closed.append("first")

    def load(place: Path, _knobs: Any) -> Any:
        if place == relay.region(whole, 1):
            raise UnavailableError("It can't be loaded.", "Build it again.")
        return Opened()

    monkeypatch.setattr(backends.backend("onnxruntime"), "load", load)
    with pytest.raises(UnavailableError, match="can't be loaded"):
        loader("onnxruntime", whole)(KNOBS)
    assert closed == ["first"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"no json", "can't be read"),
        (b'{"backends": ["onnxruntime"]}', "can't be read"),
        (b'{"backends": [], "inputs": [], "outputs": [], "schema": "optimize.regions/0"}', "another version"),
    ],
)
def test_a_file_that_is_no_list_of_regions_is_refused(text: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / relay.FILE).write_bytes(text)
    with pytest.raises(InputError, match=told):
        loader("onnxruntime", tmp_path)


def test_engines_that_are_no_regions_of_one_model_are_refused(folder: Callable[..., Path]) -> None:
    class Lonely:
        inputs, outputs = (Z,), (Y,)

    engine: Any = Lonely()
    engines: list[Engine] = [engine]
    with pytest.raises(InputError, match="Nothing in this engine makes 'z'"):
        Relay(engines, (X,), (Y,))
    with pytest.raises(InputError, match="Nothing in this engine makes 'z'"):
        loader("onnxruntime", folder("onnxruntime", "onnxruntime", outputs=(Y, Z)))(KNOBS)
