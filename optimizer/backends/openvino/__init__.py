"""OpenVINO on the CPU: FP32, BF16 by layer, and static INT8 by Q/DQ on what its products read."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import onnx_ir as ir

from kernels.cpus import elsewhere, multiplies_bf16, runs_here, saturates
from kernels.target import Target, this_cpu
from optimizer.engine import Built, Engine
from optimizer.plan import Capability, Knobs, Precision
from optimizer.process import Workers
from optimizer.progress import Track, silent

_REFUSALS: Mapping[str, str] = {
    "fp16": "OpenVINO's CPU kernels compute FP16 in FP32",
    "int8_dynamic": "OpenVINO has no INT8 kernel that finds its activations' range at every run",
    "int8:LSTM": "OpenVINO has no INT8 LSTM",
    "int8:GRU": "OpenVINO has no INT8 GRU",
}


def capability(target: Target) -> Capability:
    """What OpenVINO can do for a CPU: BF16 where the CPU multiplies it, full 8-bit weights where it has VNNI."""
    precisions: frozenset[Precision] = frozenset({"fp32", "int8"})
    refusals = dict(_REFUSALS)
    if multiplies_bf16(target.features):
        precisions |= {"bf16"}
    else:
        refusals["bf16"] = "this CPU has no BF16 instructions (avx512_bf16, amx_bf16)"
    return Capability(
        precisions=precisions,
        activation="uint8",
        int8_operators=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
        base="fp32",
        opset=23,  # the first in which all of ONNX that OpenVINO runs in BF16 is defined for it
        runs_here=runs_here(target),
        float_bias=True,
        half_by_name=True,
        saturates="places" if saturates(target.features) else "",
        weight_limit=63 if saturates(target.features) else 127,
        refusals=refusals,
    )


def knobs(target: Target) -> Mapping[str, tuple[int | float | str | bool, ...]]:
    """Threads: all cores first, then half of them, down to one; 0, as many as the machine has that loads it, where the target is
    not here."""
    counts = [target.cores]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return {"threads": tuple(counts)}


def missing(target: Target) -> str | None:
    """Why no engine can be built for this target here, and the way out, or None."""
    if target.kind != "cpu":
        return "OpenVINO engines are built for CPUs; --backend tensorrt serves GPUs."
    if target.compute != this_cpu().compute:
        return f"This machine is not an {target.compute} CPU; build the engine on one."
    if find_spec("openvino") is None:
        return "openvino is not installed: pip install 'optimize[openvino]'"
    return None


def build(graph: ir.Model, target: Target, knobs: Knobs, folder: Path, track: Track = silent, workers: Workers | None = None) -> Built:
    """Write OpenVINO's IR, `engine.xml` and `engine.bin`, and read back what its CPU plugin makes of each layer.

    All of it in a child process, since there are graphs that end the process which reads them. `Built.memory` holds bytes: `file` on
    disk, `weights` as the plugin holds them, `activations` that are alive at once, at most, in a run on the usual sizes.

    Raises:
        UnavailableError: OpenVINO can't read or compile the graph, or crashed on it.
    """
    from optimizer.backends.openvino.convert import written
    from optimizer.backends.openvino.memory import memory
    from optimizer.backends.openvino.realised import notes, realised

    track("writing the engine", 0, 2)
    seen = written(graph, folder, knobs, workers)
    track("reading back what was realised", 1, 2)
    built = Built(realised(graph, seen.kernels), memory(seen, folder), notes=notes(graph, seen))
    track("reading back what was realised", 2, 2)
    return built.elsewhere(elsewhere(target))


def load(folder: Path, knobs: Knobs) -> Engine:
    """The engine that `build` wrote into `folder`.

    Raises:
        UnavailableError: OpenVINO can't compile it here.
    """
    from optimizer.backends.openvino.session import FILE, Session

    return Session(folder / FILE, knobs)
