"""TensorRT for RTX: engines for NVIDIA GPUs that are not here, built ahead of time without a GPU and without a driver.

`tensorrt-rtx` is NVIDIA's, under NVIDIA's licence, installed and accepted by the user, and used through its documented API only.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import onnx_ir as ir

from kernels.gpus import RTX, RTX_LISTED
from kernels.target import Target
from optimizer.backends.tensorrt.capability import capability_of
from optimizer.backends.tensorrt.driver import present
from optimizer.backends.tensorrt.layers import kernels_from_log, memory_from_log
from optimizer.backends.tensorrt.losses import losses_of
from optimizer.backends.tensorrt.network import shapes_of, written
from optimizer.backends.tensorrt.realised import launches, realised, summary
from optimizer.backends.tensorrt.runtime import opened
from optimizer.engine import Built, Engine
from optimizer.errors import InputError, UnavailableError
from optimizer.graph import clone, infer_shapes
from optimizer.plan import Capability, Knobs
from optimizer.process import Workers, run_worker
from optimizer.progress import Track, silent
from optimizer.work import counted

_MODULE = "tensorrt_rtx"
_ENGINE = "engine.plan"
_WORKER = (sys.executable, "-P", "-m", "optimizer.backends.tensorrt.worker")


def capability(target: Target) -> Capability:
    """What an engine for this GPU can hold; it runs here where a GPU of its architecture and NVIDIA's driver are."""
    return capability_of(target, runs_here=find_spec(_MODULE) is not None and present(target.compute))


def knobs(target: Target) -> Mapping[str, tuple[Any, ...]]:  # noqa: ARG001
    """None: TensorRT-RTX ignores optimization level, tiling and tactic sources, and picks kernels on the target itself."""
    return {}


def missing(target: Target) -> str | None:
    """Why no engine can be built for this target, and the way out; None where one can."""
    if target.kind != "gpu":
        return "TensorRT builds for NVIDIA GPUs; --backend onnxruntime serves this CPU"
    if RTX not in target.features:
        return (
            f"TensorRT-RTX has no target for it: the handover alone is written, and trtexec builds from it on the target ({target.compute})"
        )
    if find_spec(_MODULE) is None:
        return "tensorrt-rtx is not installed: pip install 'optimize[tensorrt-rtx]' (NVIDIA's licence applies)"
    return None


def build(
    graph: ir.Model,
    target: Target,
    knobs: Knobs,  # noqa: ARG001
    folder: Path,
    track: Track = silent,
    workers: Workers | None = None,  # noqa: ARG001 - a builder has gigabytes, which it gives back as it ends
) -> Built:
    """Build `folder/engine.plan` from a typed graph, in a child process; the same graph gives the same bytes.

    Inputs are fixed, or their shapes stand in the graph's metadata (`optimizer.model.SHAPES`). `Built.memory` holds bytes: `weights`,
    `activations` of one run with `scratch`, the largest working space in them, and `engine`, the file. On an error or Ctrl-C
    nothing is left in the folder.

    Raises:
        UnavailableError: TensorRT-RTX has no such target, can't read or build the graph, would change its numbers, or crashed.
        InputError: an input has free dimensions without sizes, or the graph is not valid ONNX.
    """
    reason = missing(target)
    if reason is not None:
        raise UnavailableError(f"No engine can be built for {target.name}: {reason}.", "Choose another --target, or use the handover.")
    folder = folder.resolve()
    graph = clone(graph)
    infer_shapes(graph)
    losses = losses_of(graph, target)
    shapes = {name: list(asdict(shape).values()) for name, shape in shapes_of(graph).items()}
    engine = folder / _ENGINE
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".network-") as scratch:
            network = written(graph, Path(scratch))
            request = {"model": str(network.file), "engine": str(engine), "compute": [_sm(target)], "shapes": shapes}
            said = _built_by_child({**request, "layers": network.layers}, Path(scratch), target, track)
        kernels = kernels_from_log(said["layers"])
    except BaseException:
        engine.unlink(missing_ok=True)
        raise
    layers = counted(realised(graph, kernels, network.layers, losses.reasons, target.compute), graph)
    return Built(
        realised=layers,
        memory={**memory_from_log(said["memory"]), "engine": engine.stat().st_size},
        launches=launches(kernels, network.layers),
        notes=(*_notes(target, said["release"]), *losses.notes, *summary(layers)),
    )


def load(folder: Path, knobs: Knobs) -> Engine:  # noqa: ARG001
    """The engine of a folder, ready to run on this machine's GPU. Written for it, never run: no such GPU was at hand.

    Raises:
        UnavailableError: no driver or GPU, no TensorRT-RTX, or an engine of another release or architecture.
    """
    return opened(folder / _ENGINE, "tensorrt_rtx")


def _sm(target: Target) -> str:
    return target.compute.replace("sm_", "SM")


def _built_by_child(request: Mapping[str, Any], folder: Path, target: Target, track: Track) -> dict[str, Any]:
    """Run the builder and return what it listed; its crash is an answer too."""
    said: dict[str, Any] = {}
    try:
        worker = run_worker(_WORKER, request=request, folder=folder, what=f"TensorRT-RTX, building for {target.name},")
        with closing(cast(Generator[dict[str, Any]], worker)) as events:  # an error in `track` ends the child as well
            for event in events:
                if event["event"] == "progress":
                    track(f"TensorRT-RTX for {target.name}: {event['step']}", event["done"], event["total"])
                elif event["event"] == "list":
                    said = event
    except InputError as error:
        raise UnavailableError(
            error.reason,
            "Keep the operator at fault out of the model, or take another target: h100, which TensorRT-RTX lacks, gets the handover.",
        ) from None
    return said


def _notes(target: Target, release: str) -> tuple[str, ...]:
    never = "" if present(target.compute) else ", never run"
    notes = [
        f"built by TensorRT-RTX {release}{never}; an engine wants the same release on the target",
        "TF32 is off: what is typed FP32 multiplies in FP32",
    ]
    if RTX_LISTED not in target.features:
        notes.append(f"TensorRT-RTX builds for {target.compute}, but NVIDIA's support matrix does not list it")
    return tuple(notes)
