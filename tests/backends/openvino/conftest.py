"""Small models with random weights, built by the OpenVINO backend as the planner would have them built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from calibration.ranges import Range
from kernels.target import this_cpu
from optimizer.backends import backend
from optimizer.engine import Built, Engine, Realised
from optimizer.graph import infer_shapes
from optimizer.model import Model, Source
from optimizer.plan import Plan, Precision
from optimizer.precision import typed
from optimizer.reference import Reference

pytest.importorskip("openvino", reason="openvino, an extra, is not installed")


@dataclass(frozen=True)
class Made:
    """A model, what the backend built of it, and where."""

    model: Model
    folder: Path
    built: Built

    def load(self) -> Engine:
        return backend("openvino").load(self.folder, {"threads": 1})

    def layer(self, name: str) -> Realised:
        return next(layer for layer in self.built.realised if layer.layer == name)

    def largest_difference(self, feeds: Mapping[str, np.ndarray]) -> float:
        """Between the engine's outputs and those of the graph run as written, by name."""
        engine, reference = self.load(), Reference(self.model.graph)
        found, wanted = engine.run(feeds), reference.run(feeds)
        assert list(found) == list(wanted)
        assert all(found[name].shape == wanted[name].shape and found[name].dtype == wanted[name].dtype for name in wanted)
        return max(float(np.abs(found[name].astype(float) - wanted[name]).max(initial=0)) for name in wanted)


@pytest.fixture
def model() -> Callable[..., Model]:
    """`model(text, weights)`: each layer called by its first output; weights of these shapes are random."""

    def made(text: str, weights: Mapping[str, tuple[int, ...]] | None = None) -> Model:
        graph = ir.from_onnx_text(f'<ir_version: 9, opset_import: ["":20, "ai.onnx.ml":3]> {text}')
        rng = np.random.default_rng(0)
        for name, shape in (weights or {}).items():
            value = next(value for node in graph.graph.all_nodes() for value in node.inputs if value is not None and value.name == name)
            value.const_value = ir.tensor((0.2 * rng.standard_normal(shape)).astype(np.float32), name=name)
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
            graph.graph.register_initializer(value)
        for node in graph.graph:
            node.name = node.outputs[0].name
        infer_shapes(graph)
        return Model(graph, Source("onnx", "net.onnx", "0" * 64))

    return made


@pytest.fixture
def built(tmp_path: Path) -> Callable[..., Made]:
    """`built(model, "bf16", {"y": "fp32"}, {"x": (0, 255)})`: base, layers that differ, and ranges by tensor."""

    def made(
        model: Model,
        base: Precision = "fp32",
        precisions: Mapping[str, Precision] | None = None,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> Made:
        cpu, openvino = this_cpu(), backend("openvino")
        if base == "bf16" and "bf16" not in openvino.capability(cpu).precisions:
            pytest.skip("this CPU has no BF16 instructions")
        chosen = {name: Range("minmax", *ends) for name, ends in (ranges or {}).items()}
        plan = Plan("openvino", "cpu", base, precisions=precisions or {}, ranges=chosen)
        folder = tmp_path / "engine"
        folder.mkdir()
        graph = typed(model, plan, openvino.capability(cpu))
        return Made(model, folder, openvino.build(graph, cpu, {"threads": 1}, folder))

    return made
