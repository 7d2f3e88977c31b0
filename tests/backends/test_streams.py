"""An engine in several streams serves many threads at once, each call by one copy alone."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from kernels.load import clients, load_test
from kernels.target import this_cpu
from optimizer.backends import backend, missing, open_engine
from optimizer.engine import Arrays
from optimizer.errors import InputError, UnavailableError
from optimizer.model import TensorSpec
from optimizer.streams import Streams

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
net (float[n,64] x) => (float[n,64] y) { product = MatMul(x, w)  y = Add(product, x) }"""


class Copy:
    """An engine that breaks where two run it at once, and waits for `others` to run beside it."""

    inputs = (TensorSpec("x", "float32", ("n",)),)
    outputs = (TensorSpec("y", "float32", ("n",)),)
    peak_bytes: int | None = 100

    def __init__(self, together: threading.Barrier | None = None) -> None:
        self._together, self._busy, self.closed = together, threading.Lock(), False

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        if self.closed:
            raise ValueError("this engine was closed")
        if not self._busy.acquire(blocking=False):
            raise AssertionError("two calls at once in one copy")
        try:
            if self._together is not None:
                self._together.wait(timeout=30)
            return {"y": feeds["x"] + 1}
        finally:
            self._busy.release()

    def close(self) -> None:
        assert not self._busy.locked()
        self.closed = True


def feed(value: float = 0.0) -> Mapping[str, NDArray[np.float32]]:
    return {"x": np.full(3, value, np.float32)}


def test_all_copies_run_at_once_and_no_copy_runs_twice_at_once() -> None:
    together = threading.Barrier(3)
    streams = Streams([Copy(together) for _ in range(3)])
    with clients(6) as serve:
        serve(lambda number: np.testing.assert_array_equal(streams.run(feed(number))["y"], number + 1), range(60))


def test_a_copy_that_refuses_an_input_is_free_again() -> None:
    streams = Streams([Copy()])
    with pytest.raises(KeyError):
        streams.run({})
    assert streams.run(feed())["y"].tolist() == [1, 1, 1]


def test_a_lone_caller_is_always_served_by_the_same_copy() -> None:
    class Counting(Copy):
        runs = 0

        def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
            self.runs += 1
            return super().run(feeds)

    copies = [Counting(), Counting()]
    streams = Streams(copies)
    for _ in range(5):
        streams.run(feed())
    assert [copy.runs for copy in copies] == [5, 0]


def test_what_is_closed_says_so_and_does_not_hang() -> None:
    copies = [Copy(), Copy()]
    streams = Streams(copies)
    streams.close()
    streams.close()
    assert all(copy.closed for copy in copies)
    with pytest.raises(ValueError, match="was closed"):
        streams.run(feed())


def test_copies_count_their_memory_together() -> None:
    assert Streams([Copy(), Copy()]).peak_bytes == 200
    silent = Copy()
    silent.peak_bytes = None
    assert Streams([Copy(), silent]).peak_bytes is None


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_real_engine_gives_each_of_many_callers_their_own_answer(name: str, tmp_path: Path) -> None:
    if (why := missing(name, this_cpu())) is not None:
        pytest.skip(why)
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    graph = ir.from_onnx_text(TEXT)
    value = ir.Value(name="w", const_value=ir.tensor(weight, name="w"))
    graph.graph.register_initializer(value)
    graph.graph.node(0).replace_input_with(1, value)
    backend(name).build(graph, this_cpu(), {"threads": 1}, tmp_path)
    engine = open_engine(name, tmp_path, {"threads": 1, "streams": 2})
    samples = np.random.default_rng(1).standard_normal((40, 1, 64)).astype(np.float32)
    alone = [engine.run({"x": sample})["y"] for sample in samples]
    found: dict[int, NDArray[Any]] = {}

    def ask(number: int) -> None:
        found[number] = engine.run({"x": samples[number % 40]})["y"]

    with clients(4) as serve:
        serve(ask, range(400))
    for number, answer in found.items():
        np.testing.assert_array_equal(answer, alone[number % 40])
    load = load_test(lambda: engine.run({"x": samples[0]}), requests=50, concurrency=4)
    assert (load.requests, load.concurrency) == (50, 4)
    with pytest.raises(InputError):
        engine.run({"x": np.zeros((1, 3), np.float32)})
    engine.close()
    with pytest.raises(ValueError, match="closed"):
        engine.run({"x": samples[0]})


def test_copies_that_were_opened_are_closed_where_another_can_not_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[Copy] = []

    def load(_folder: Path, _knobs: object) -> Copy:
        if len(opened) == 2:
            raise UnavailableError("There is no memory left.", "Take fewer streams.")
        opened.append(Copy())
        return opened[-1]

    monkeypatch.setattr(backend("onnxruntime"), "load", load)
    with pytest.raises(UnavailableError, match="no memory"):
        open_engine("onnxruntime", tmp_path, {"streams": 3})
    assert [copy.closed for copy in opened] == [True, True]
