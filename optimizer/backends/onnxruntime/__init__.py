"""ONNX Runtime on the CPU: FP32, static INT8 by Q/DQ, and dynamic INT8."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from kernels.cpus import elsewhere, runs_here, saturates
from kernels.target import Target, this_cpu
from optimizer.backends.onnxruntime.operators import APPENDED, COMPUTES_INT8, DYNAMIC, MOVES_INT8, REFUSALS
from optimizer.backends.onnxruntime.profile import profiled
from optimizer.backends.onnxruntime.realised import notes, realised
from optimizer.backends.onnxruntime.session import FILE, Session
from optimizer.engine import LIBRARY, Built, Engine
from optimizer.graph import LARGE, save, weights_bytes
from optimizer.model import CUSTOM_OPS
from optimizer.plan import Capability, Knobs
from optimizer.process import Workers
from optimizer.progress import Track, silent


def capability(target: Target) -> Capability:
    """What ONNX Runtime can do for a CPU: the same operators on every x86-64, in full 8-bit weights where the CPU has VNNI."""
    return Capability(
        precisions=frozenset({"fp32", "int8", "int8_dynamic"}),
        activation="uint8",
        int8_operators=COMPUTES_INT8 | MOVES_INT8,
        dynamic_operators=DYNAMIC,
        fused_operators=APPENDED,
        base="fp32",
        opset=20,
        runs_here=runs_here(target),
        quantize_outputs=True,
        saturates="terms" if saturates(target.features) else "",
        weight_limit=63 if saturates(target.features) else 127,
        refusals=REFUSALS,
    )


def knobs(target: Target) -> Mapping[str, tuple[int | float | str | bool, ...]]:
    """Threads: all cores first, then half of them, down to one; 0, as many as the machine has that loads it, where the target is
    not here. Spinning: whether they wait busily inside a run."""
    counts = [target.cores]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return {"threads": tuple(counts), "spinning": (True, False)}


def missing(target: Target) -> str | None:
    """Why no engine can be built for this target here, and the way out, or None."""
    if target.kind != "cpu":
        return "ONNX Runtime engines are built for CPUs; --backend tensorrt serves GPUs."
    if target.compute != this_cpu().compute:
        return f"This machine is not an {target.compute} CPU; build the engine on one."
    return None


def build(
    graph: ir.Model,
    target: Target,
    knobs: Knobs,
    folder: Path,
    track: Track = silent,
    workers: Workers | None = None,  # noqa: ARG001 - ours runs in this process
) -> Built:
    """Write `engine.onnx` (beside it large weights in `engine.weights`, custom operators in `engine.so`), and read back its layers.

    The engine is loaded and run a few times on made-up inputs for that; what it optimized and the profile are removed.
    `Built.memory` holds bytes: `file` on disk, `weights` as the optimized graph holds them, `activations` at their peak.

    Raises:
        UnavailableError: ONNX Runtime can't load the graph. The files are left in `folder`.
    """
    track("writing the engine", 0, 2)
    save(graph, folder / FILE, beside="engine.weights" if weights_bytes(graph) > LARGE else None)
    if CUSTOM_OPS in graph.metadata_props:
        shutil.copyfile(graph.metadata_props[CUSTOM_OPS], folder / LIBRARY)
    track("reading back what was realised", 1, 2)
    profile = profiled(graph, folder, knobs)
    layers = realised(graph, profile)
    memory = {"file": sum(path.stat().st_size for path in folder.glob("engine.*")), "weights": profile.weights_bytes}
    if profile.activation_bytes is not None:
        memory["activations"] = profile.activation_bytes
    track("reading back what was realised", 2, 2)
    return Built(realised=layers, memory=memory, notes=notes(profile)).elsewhere(elsewhere(target))


def load(folder: Path, knobs: Knobs) -> Engine:
    """The engine that `build` wrote into `folder`.

    Raises:
        UnavailableError: ONNX Runtime can't load it.
    """
    return Session(folder / FILE, knobs)
