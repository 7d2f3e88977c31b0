"""Real engine folders and models, small enough to be made in each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from kernels.target import this_cpu
from optimizer.backends import backend
from optimizer.engine import Candidate, Parity
from optimizer.model import Model, Source
from optimizer.package.passport import Passport, seal
from optimizer.plan import Plan
from optimizer.provenance import sha256_of_file, to_json
from optimizer.report.report import Provenance, report_from

WIDTH = 64
GRAPH = f"""<ir_version: 9, opset_import: ["": 20]> net (float[batch,{WIDTH}] input) => (float[batch,{WIDTH}] y)
{{ h = MatMul(input, w)  s = Sigmoid(h)  h2 = MatMul(s, w)  y = Relu(h2) }}"""
KNOBS = {"threads": 1, "spinning": False}


def graph(width: int = WIDTH) -> ir.Model:
    weight = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32)
    proto = onnx.parser.parse_model(GRAPH.replace(str(WIDTH), str(width)))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    for node in proto.graph.node:
        node.name = f"layer.{node.output[0]}"
    return ir.from_proto(proto)


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """A model as a user has it."""
    file = tmp_path / "net.onnx"
    onnx.save(ir.to_proto(graph()), file)
    return file


@pytest.fixture
def engine(tmp_path: Path) -> Callable[..., Path]:
    """A function that builds a real engine folder with its report."""

    def make(name: str = "engine", width: int = WIDTH, target: str = "cpu", kind: str = "onnxruntime", source: Path | None = None) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        came_from = Source("onnx", "net.onnx", sha256_of_file(source) if source is not None else "0" * 64)
        model = Model(graph(width), came_from)
        built = backend("onnxruntime").build(model.graph, this_cpu(), KNOBS, folder)
        parity = Parity("pass", "numeric", None, None, None, None, None, None, 4, None, "this CPU", "it equals its parent.")
        candidate = Candidate("fp32", Plan("onnxruntime", "cpu", "fp32"), built=built, parity=parity, outcome="shipped")
        report = report_from(
            model=model,
            target=this_cpu(),
            requested="auto",
            subject=candidate,
            candidates=[candidate],
            parity=parity,
            provenance=Provenance(came_from, {}),
            exit_code=0,
        )
        (folder / "report.json").write_bytes(to_json(report))
        (folder / "plan.json").write_bytes(to_json(candidate.plan))
        passport = Passport(
            name="net",
            target=target,
            compute=this_cpu().compute,
            backend=kind,
            engine="engine.onnx",
            inputs=model.inputs,
            outputs=model.outputs,
            source=came_from,
            verdict="pass",
            gated_on="this CPU",
            timed_on=None,
            precision="fp32",
            knobs=KNOBS,
        )
        seal(folder, passport)
        return folder

    return make
