"""The parent of an ONNX model is the file as it came: the ladder's first rung compares the tidied graph with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from optimizer import importers
from optimizer.engine import SourceRun
from optimizer.errors import InputError
from optimizer.importers import ImportRequest
from optimizer.model import Model
from optimizer.reference import Reference

Write = Callable[..., onnx.ModelProto]

OLD = """
    g (float[N, 3, 4] x) => (float[N, 1, 3, 4] y) {
        a = Softmax <axis = 1> (x)
        b = Unsqueeze <axes = [1]> (a)
        y = Clip(b)
    }
"""


@pytest.fixture
def opened(folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """A file from the user's folder, imported, and its parent."""

    @contextmanager
    def call(file: str | Path = "model.onnx") -> Iterator[tuple[Model, SourceRun]]:
        how = ImportRequest(folder / file, tmp_path, folder)
        model = importers.load(how)
        with closing(importers.running(how, model)) as run:
            yield model, run

    return call


def test_the_file_as_it_came_gives_the_outputs_and_layers_of_the_tidied_graph(opened: Callable[..., Any], model: Write) -> None:
    model(OLD, opset=11, names=["probabilities", "same", "same"])  # two nodes of one name, which ONNX Runtime refuses
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 3, 4)).astype(np.float32)}
    with opened() as (imported, parent):
        names = [layer.name for layer in imported.layers]
        assert {"same", "same#2"} <= set(names)
        reference = Reference(imported.graph, watch=[layer.outputs[0] for layer in imported.layers])
        for _ in range(2):
            wanted, shown, found = parent.run(feeds), parent.layers(feeds, [*names, "nobody"]), reference.run(feeds)
            assert wanted.keys() == {"y"}
            np.testing.assert_allclose(found["y"], wanted["y"], rtol=1e-6)
            assert {"same", "same#2"} <= shown.keys() < set(names)  # what the raised opset put in is in no original file
            tensors = {layer.name: layer.outputs[0] for layer in imported.layers}
            for name, array in shown.items():
                np.testing.assert_allclose(found[tensors[name]], array, rtol=1e-6)


def test_the_parent_is_the_file_and_not_what_the_importer_made_of_it(opened: Callable[..., Any], model: Write) -> None:
    model("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }")
    with opened() as (imported, parent):
        imported.graph.graph.initializers["w"].const_value = None
        assert parent.run({"x": np.ones(2, np.float32)})["y"].tolist() == [1, 2]


def test_data_that_the_file_can_not_take_is_told(opened: Callable[..., Any], model: Write, folder: Path) -> None:
    model("g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> { y = Add(x, w) }")
    with opened() as (_, parent), pytest.raises(InputError, match=r"model\.onnx can't be run on this data") as caught:
        parent.run({"x": np.ones((2, 3), np.float32)})
    assert str(folder.parent) not in caught.value.reason


def test_a_state_is_fed_back_to_the_speech_detectors_parent(opened: Callable[..., Any], assets: Path) -> None:
    feeds = {"input": np.full((1, 576), 0.1, np.float32), "state": np.zeros((2, 1, 128), np.float32), "sr": np.asarray(16000)}
    with opened(assets / "silero_vad_16k.onnx") as (imported, parent):
        reference = Reference(imported.graph)
        for _ in range(3):
            wanted, found = parent.run(feeds), reference.run(feeds)
            np.testing.assert_allclose(found["output"], wanted["output"], atol=1e-6)
            feeds["state"] = wanted["stateN"]
        assert np.abs(feeds["state"]).max() > 0
        assert len(parent.layers(feeds, [layer.name for layer in imported.layers])) == len(imported.layers)
