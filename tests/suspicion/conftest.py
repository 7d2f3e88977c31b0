"""Small models from text, and samples of arrays for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.data import Samples, open_samples
from optimizer.model import Model, Source
from optimizer.preprocessing import InputPreprocessing, Preprocessing


@pytest.fixture
def model() -> Callable[..., Model]:
    """A model of one input `x` from the lines of its graph; constants are given by name."""

    def make(shape: str, body: str, result: str = "float[n, k]", **constants: Any) -> Model:
        text = f'<ir_version: 9, opset_import: ["" : 20]> g (float[{shape}] x) => ({result} y) {{ {body} }}'
        graph = ir.from_onnx_text(text)
        for name, numbers in constants.items():
            tensor = ir.tensor(numbers, name=name)
            value = next(one for node in graph.graph for one in node.inputs if one is not None and one.name == name)
            value.const_value, value.type, value.shape = tensor, ir.TensorType(tensor.dtype), tensor.shape
            graph.graph.register_initializer(value)
        return Model(graph, Source("onnx", "m.onnx", "0"))

    return make


@pytest.fixture
def samples(tmp_path: Path) -> Callable[..., Samples]:
    """Samples of arrays for the one input of a model."""

    def make(model: Model, x: np.ndarray, y: np.ndarray | None = None, name: str = "d", **how: Any) -> Samples:
        np.savez(tmp_path / f"{name}.npz", x=x, **({} if y is None else {"y": y}))
        return open_samples(f"{name}.npz", model.inputs, Preprocessing({model.inputs[0].name: InputPreprocessing(**how)}), tmp_path)

    return make
