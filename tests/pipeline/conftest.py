"""A small classifier with labelled data, as a user would have them, and a build that does not wait long for its race."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import optimizer
from optimizer.planner import finals, state

Build = Callable[..., Any]


def classifier(batch: int | str = 1, spoiled: bool = False) -> onnx.ModelProto:
    """16 numbers -> 10 scores through three layers; `spoiled` puts one column of huge weights into the second."""
    draw = np.random.default_rng(3)
    sizes = [(16, 64), (64, 64), (64, 10)]
    weights = [(draw.standard_normal(size) / np.sqrt(size[0])).astype(np.float32) for size in sizes]
    if spoiled:
        # Half of the layer's inputs are a thousand times larger than the rest and are weighed a thousand times less.
        weights[0][:, ::2] *= 1000
        weights[1][::2] /= 1000
    nodes = []
    value = "x"
    for index in range(3):
        last = index == 2
        nodes.append(helper.make_node("MatMul", [value, f"w{index}"], ["y" if last else f"h{index}"], name=f"layer{index}"))
        if not last:
            nodes.append(helper.make_node("Relu", [f"h{index}"], [f"r{index}"], name=f"relu{index}"))
            value = f"r{index}"
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(weight, f"w{index}") for index, weight in enumerate(weights)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def answers(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    a, b, c = (numpy_helper.to_array(weight) for weight in model.graph.initializer)
    return np.maximum(np.maximum(x @ a, 0) @ b, 0) @ c


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes the model and its data into a folder, and returns that folder."""

    def made(**how: Any) -> Path:
        model = classifier(**how)
        draw = np.random.default_rng(5)
        onnx.save(model, tmp_path / "model.onnx")
        for name, count in (("calibration", 40), ("evaluation", 600)):
            x = draw.standard_normal((count, 16)).astype(np.float32)
            np.savez(tmp_path / f"{name}.npz", x=x, y=answers(model, x).argmax(1))
        monkeypatch.setattr(finals, "RACE_SECONDS", 0.5)
        monkeypatch.setattr(finals, "HEAT_SECONDS", 0.3)
        monkeypatch.setattr(state, "QUICK_SECONDS", 0.1)
        monkeypatch.setattr(state, "PAIR_SECONDS", 0.1)
        return tmp_path

    return made


@pytest.fixture
def build() -> Build:
    """`build(folder, **words)`: the outcome of a build with all of the folder's data, and its report.json as a dict.

    With ONNX Runtime alone, unless the words say otherwise: which engine is the fastest is another question than most here ask.
    """

    def built(folder: Path, **words: Any) -> tuple[Any, dict[str, Any]]:
        data = {name: str(folder / f"{name}.npz") for name in ("calibration", "evaluation")}
        alone = {} if "targets" in words else {"backends": ["onnxruntime"]}
        outcome = optimizer.build(folder / "model.onnx", folder / "out", **{**data, "threads": 1, **alone, **words})
        return outcome, json.loads((folder / "out" / "report.json").read_text())

    return built
