"""Small models that are cut, and plans that say where."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.graph import infer_shapes
from optimizer.model import Model, Source
from optimizer.plan import Plan, Region

HEAD = '<ir_version: 10, opset_import: ["" : 20]>'


@pytest.fixture
def model() -> Callable[[str], Model]:
    """`model(text)`: a graph from text, its weights, `float[...]` between `<` and `>`, filled at random."""

    def made(text: str) -> Model:
        draw = np.random.default_rng(3)
        weights = [
            ir.tensor(draw.standard_normal([int(size) for size in sizes.split(",")]).astype(np.float32), name=name)
            for sizes, name in re.findall(r"float\[([\d,]+)\] (\w+)", "".join(re.findall(r"\) <([^>]*)> \{", text)))
        ]
        graph = ir.from_onnx_text(f"{HEAD}\n{text}", initializers=weights)
        infer_shapes(graph)
        return Model(graph, Source("onnx", "net.onnx", "0" * 64))

    return made


@pytest.fixture
def cut() -> Callable[..., Plan]:
    """`cut("a b", "c")`: a plan with a region for each, in turns by one backend and another."""

    def made(*regions: str, **words: object) -> Plan:
        found = tuple(Region(("onnxruntime", "openvino")[number % 2], tuple(names.split())) for number, names in enumerate(regions))
        return Plan("onnxruntime", "cpu", "fp32", regions=found, **words)  # type: ignore[arg-type]

    return made
