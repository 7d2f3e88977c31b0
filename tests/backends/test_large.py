"""Large weights are mapped, shared and streamed: no step on the way to an engine holds more than half of them beside what it needs."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from kernels.target import this_cpu
from optimizer import importers
from optimizer.backends import onnxruntime as backend
from optimizer.calibrate import calibrate
from optimizer.graph import sha256
from optimizer.importers import ImportRequest
from optimizer.reference import float64

WIDTH = 4096
LAYERS = 3
SIZE = 4 * LAYERS * WIDTH * WIDTH


@pytest.fixture(scope="module")
def large() -> ModuleType:
    spec = spec_from_file_location("large", Path(__file__).parents[2] / "benchmarks" / "large.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


@contextmanager
def own_memory_below(limit: float, large: ModuleType) -> Iterator[None]:
    """Fails where this process and its children came to hold `limit` bytes more, not counting pages that a file backs."""
    over = threading.Event()
    before, peak = large.held(os.getpid())[1], 0

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.02):
            peak = max(peak, large.held(os.getpid())[1] - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert peak < limit, f"{peak / SIZE:.2f} times the weights"


@pytest.mark.slow
def test_no_step_copies_the_weights_but_a_session_of_the_engine(large: ModuleType, tmp_path: Path) -> None:
    folder, scratch, engine = tmp_path / "model", tmp_path / "scratch", tmp_path / "engine"
    for made in (folder, scratch, engine):
        made.mkdir()
    file = large.write_model(folder, LAYERS, WIDTH)
    feeds = [{"x": np.random.default_rng(seed).standard_normal((1, WIDTH), np.float32)} for seed in range(2)]
    children = 150 << 20  # an interpreter with onnx and ONNX Runtime
    with own_memory_below(0.5 * SIZE + children, large):
        model = importers.load(ImportRequest(file, scratch, folder))
    with own_memory_below(0.5 * SIZE, large):
        sha256(model.graph)
        calibrate(model, feeds, key={})
    with own_memory_below((1 + 2 / LAYERS) * SIZE, large):  # one layer's weights in float64, and numpy's own copy of them
        float64(model.graph, feeds[0])
    with own_memory_below(1.5 * SIZE, large):  # a kernel's own order of all weights, and one layer on its way into it
        backend.build(model.graph, this_cpu(), {"threads": 1}, engine)
    assert sorted(path.name for path in engine.iterdir()) == ["engine.onnx", "engine.weights"]
