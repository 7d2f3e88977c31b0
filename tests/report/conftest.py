"""Reports as a build makes them: for a CPU with three candidates, for a GPU that is not here, and with hostile names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from kernels.target import Target
from kernels.timing import Timing
from optimizer.engine import Built, Candidate, Launch, Parity, Realised, Rung
from optimizer.model import Fusion, Model, Source
from optimizer.plan import Plan
from optimizer.preprocessing import InputPreprocessing, Preprocessing
from optimizer.report.report import Data, Provenance, Report, TensorReport, report_from

CPU = Target("cpu", "cpu", "x86-64", "AMD EPYC (family 25)", ("avx2", "avx512_vnni"), 8 << 30, cores=2)
L4 = Target("l4", "gpu", "sm_89", "NVIDIA L4", (), 24 << 30, 3e11, {"int8": 2.4e14}, 58)
GRAPH = '<ir_version: 9, opset_import: ["": 20]> net (float[1,3] input) => (float[1,3] y) { y = Relu(input) }'


def timing(milliseconds: float, ratio: float) -> Timing:
    return Timing(
        milliseconds, milliseconds * 1.1, milliseconds * 1.4, "fp32", ratio, ratio - 0.05, ratio + 0.05, 240, "it is certain", CPU.device
    )


def parity(verdict: str, drop: float, low: float, high: float, needed: int | None = None, gated_on: str = CPU.device) -> Parity:
    reason = {"pass": "the upper bound is under the budget.", "fail": "the lower bound is over the budget."}.get(
        verdict, "both are possible."
    )
    numbers = 0.8195, 0.8195 - drop, 0.008195, drop, low, high, 2000, needed
    return Parity(verdict, "top1", *numbers, gated_on, reason, threshold=0.811305)  # type: ignore[arg-type]


def layers(count: int, lossy: str, name: str = "layer{0}.{1}.conv2") -> tuple[Realised, ...]:
    return tuple(
        Realised(
            name.format(1 + index // 6, index % 6),
            "Conv",
            lossy,
            "fp32" if index == 7 else lossy,
            "jit:avx512_vnni",
            0.01 * index,
            "its output is an output of the model" if index == 7 else "",
        )
        for index in range(count)
    )


def candidate(name: str, precision: str, **more: object) -> Candidate:
    precisions = {"layer1.0.conv2": precision} if precision != "fp32" else {}
    plan = Plan("onnxruntime", "cpu", "fp32", precisions=precisions, knobs={"threads": 2})  # type: ignore[dict-item]
    return replace(Candidate(name, plan, built=Built(layers(20, precision), {"weights": 1_100_000, "activations": 300_000})), **more)  # type: ignore[arg-type]


def tensors() -> tuple[TensorReport, ...]:
    bins = np.exp(-(np.linspace(-1.5, 3.5, 48) ** 2))
    shares = tuple(float(share) for share in bins / bins.sum())
    return tuple(TensorReport(f"layer1.{index}.relu", "mse", 0.0, 3.1, -1.2, 4.0, shares, 0.003) for index in range(4))


@pytest.fixture
def make_report() -> Callable[..., Report]:
    """A function that makes a report; `name` is a pattern for the layers' names and goes into every other name too."""

    def make(name: str = "layer{0}.{1}.conv2", target: Target = CPU, verdict: str = "pass", **more: object) -> Report:
        graph = ir.from_onnx_text(GRAPH)
        hostile = name if "{" not in name else ""
        source = Source(
            "pytorch", f"{hostile}resnet20.th", "ab" * 32, "net.py:make", {"num_classes": "10"}, True, versions={"torch": "2.13.0"}
        )
        fusion = Fusion("ConvBatchNorm", (f"{hostile}conv1", "bn1"), f"{hostile}conv1+bn1")
        gpu = target.kind == "gpu"
        gated_on = "simulation" if gpu else CPU.device
        low, high = {"pass": (-0.002, 0.0052), "fail": (0.0085, 0.021), "inconclusive": (-0.002, 0.0092)}[verdict]
        drop = 0.0142 if verdict == "fail" else 0.0015
        shipped = parity(verdict, drop, low, high, 2600 if verdict == "inconclusive" else None, gated_on)
        int8 = candidate("int8", "int8", timing=timing(0.5, 1.9), parity=shipped, outcome="shipped", reason=hostile)
        tried = [
            candidate("fp32", "fp32", timing=timing(0.95, 1.0), parity=parity("pass", 0.0, 0.0, 0.0012), outcome="passed"),
            int8,
            candidate(
                f"{hostile}int8 dynamic",
                "int8_dynamic",
                timing=timing(0.3, 3.1),
                parity=parity("fail", 0.032, 0.024, 0.041),
                outcome="refused",
            ),
        ]
        if gpu:
            launches = tuple(Launch(f"{hostile}k{index}", "conv", ("conv1",), "int8", 120_000) for index in range(57))
            tried = [replace(one, timing=None, built=replace(one.built, launches=launches)) for one in tried if one.built is not None]
            int8 = tried[1]
        if hostile:
            int8 = replace(int8, built=Built(layers(20, "int8", hostile)))
            tried[1] = int8
        words: dict[str, object] = {
            "model": Model(graph, source, (fusion,)),
            "target": target,
            "requested": "auto",
            "subject": int8,
            "candidates": tried,
            "parity": int8.parity,
            "provenance": Provenance(
                source,
                {"optimize": "0.1.0", "onnxruntime": "1.32.0"},
                Preprocessing({"input": InputPreprocessing("NHWC", 1 / 255)}),
                Data(f"{hostile}calibration.npz", "cd" * 32, 1000),
                Data("evaluation.npz", "ef" * 32, 2000, 3, 1),
            ),
            "exit_code": {"pass": 0, "fail": 3, "inconclusive": 4}[verdict],
            "ladder": [
                Rung("fused", "top1", 1.0, 120.0, 1e-6, 1e-5),
                Rung("quantized", "top1", 0.99, 31.0, 0.2, 0.01, f"{hostile}layer1.0", ""),
            ],
            "calibration": [replace(tensor, name=hostile + tensor.name) for tensor in tensors()],
            "notes": [f"{hostile}the agreement is told because there are no labels"],
            "folders": [Path("/somewhere/private")],
        }
        return report_from(**{**words, **more})  # type: ignore[arg-type]

    return make


@pytest.fixture
def cpu() -> Target:
    return CPU


@pytest.fixture
def l4() -> Target:
    return L4
