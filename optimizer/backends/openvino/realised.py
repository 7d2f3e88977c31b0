"""Each layer's realised precision, read from the model that OpenVINO's CPU plugin runs, beside the plan."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import openvino as ov

from optimizer.backends.openvino.session import FILE, compiled, last_line
from optimizer.engine import Built, Realised
from optimizer.model import PLANNED, SHAPES, is_layer
from optimizer.plan import Knobs

_WORDS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
_MOVES = frozenset({"Reorder", "Const", "Input", "Output", "Reshape"})
_MAIN = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul", "RNNSeq", "RNNCell", "ScaledDotProductAttention"})
_LEAST_RUNS = 4
_SECONDS = 0.3
_FREE_SIZES = (1, 16, 128)


@dataclass(frozen=True)
class _Kernel:
    """A node of the plugin's own graph."""

    layers: tuple[str, ...]
    kind: str
    primitive: str
    precision: str
    ms: float | None


def read_back(graph: ir.Model, owners: Mapping[str, str], folder: Path, knobs: Knobs) -> Built:
    """Compile the engine in `folder`, run it a few times on made-up inputs, and look.

    Raises:
        UnavailableError: OpenVINO can't compile it.
    """
    model = compiled(folder / FILE, knobs, profiled=True)
    note = _run(model, graph)
    kernels = [_kernel(node, owners) for node in model.get_runtime_model().get_ordered_ops()]
    files = {suffix: (folder / FILE).with_suffix(suffix).stat().st_size for suffix in (".xml", ".bin")}
    notes = (note,) if note else ()
    return Built(
        realised=tuple(_layer(node, kernels) for node in graph.graph if is_layer(node)),
        memory={"file": sum(files.values()), "weights": files[".bin"]},
        notes=notes,
    )


def _run(model: ov.CompiledModel, graph: ir.Model) -> str:
    """Run on the first made-up inputs that it takes; a note where there were none, and so no times."""
    usual = {name: tuple(sizes[1]) for name, sizes in json.loads(graph.metadata_props.get(SHAPES, "{}")).items()}
    request, failure = model.create_infer_request(), ""
    for free in _FREE_SIZES:
        feeds = {port.get_any_name(): _array(port, usual.get(port.get_any_name()), free) for port in model.inputs}
        try:
            start, runs = time.perf_counter(), 0
            while runs < _LEAST_RUNS or time.perf_counter() - start < _SECONDS:
                request.infer(feeds)
                runs += 1
        except RuntimeError as error:
            failure = last_line(error)
        else:
            return ""
    return f"OpenVINO could not run the engine on made-up inputs, so there are no times by layer: {failure}"


def _array(port: Any, usual: tuple[int, ...] | None, free: int) -> Any:
    """Noise for floats, zeros for what may be an index; a free first dimension is the batch."""
    sizes = usual or [
        (1 if axis == 0 else free) if size.is_dynamic else size.get_length() for axis, size in enumerate(port.get_partial_shape())
    ]
    kind = np.dtype(port.get_element_type().to_dtype())
    return np.random.default_rng(0).standard_normal(sizes).astype(kind) if kind.kind == "f" else np.zeros(sizes, kind)


def _kernel(node: Any, owners: Mapping[str, str]) -> _Kernel:
    info = node.get_rt_info()

    def told(key: str) -> str:
        return str(info[key].astype(str)) if key in info else ""

    layers = dict.fromkeys(owners[name] for name in told("originalLayersNames").split(",") if name in owners)
    time_us = told("execTimeMcs")
    return _Kernel(
        layers=tuple(layers),
        kind=told("layerType"),
        primitive=told("primitiveType"),
        precision=_WORDS.get(told("runtimePrecision"), ""),
        ms=int(time_us) / 1000 if time_us.isdigit() else None,
    )


def _layer(node: ir.Node, kernels: Sequence[_Kernel]) -> Realised:
    name, planned = node.name or "", node.metadata_props.get(PLANNED, "fp32")
    inside = [kernel for kernel in kernels if name in kernel.layers]
    if not inside:
        return Realised(name, node.op_type, planned, "folded", reason="nothing is left of it: the plugin computed it before the run")
    computing = [kernel for kernel in inside if kernel.kind not in _MOVES] or inside
    kernel = next((kernel for kernel in computing if kernel.kind in _MAIN), computing[0])
    precision = kernel.precision or planned
    own = [one.ms for one in computing if one.layers[0] == name and one.ms is not None]
    words = kernel.primitive if kernel.layers[0] == name else f"{kernel.primitive} of {kernel.layers[0]}"
    return Realised(name, node.op_type, planned, precision, words, sum(own) if own else None, _why(node, planned, precision, kernel))


def _why(node: ir.Node, planned: str, found: str, kernel: _Kernel) -> str:
    if planned == found:
        return ""
    if kernel.layers[0] != node.name:
        return f"it is inside the kernel of {kernel.layers[0]}"
    if found == "bf16":
        return f"OpenVINO keeps no {node.op_type} in FP32 where the engine runs in BF16"
    if planned == "bf16":
        return f"OpenVINO has no BF16 kernel for {node.op_type}"
    if planned == "int8":
        return f"OpenVINO did not merge {node.op_type} with its Q/DQ and runs it in {found.upper()} between them"
    return "its neighbours are INT8, and it moves or changes their 8-bit numbers as they are"
