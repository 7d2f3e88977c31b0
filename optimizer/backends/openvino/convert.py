"""A typed graph to an engine in OpenVINO's IR, made by a child that also runs it and tells what its CPU plugin does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.backends.openvino.kernels import PRODUCTS, Kernel, kernels_from, layer_of
from optimizer.backends.openvino.session import FILE, settings
from optimizer.errors import InputError, UnavailableError
from optimizer.graph import LARGE, clone, constant, readers, save, weights_bytes
from optimizer.model import PLANNED, SHAPES, is_layer
from optimizer.plan import Knobs
from optimizer.process import Workers, isolated

_WORKER = Path(__file__).with_name("worker.py")
_Q_DQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
_EXCHANGED = frozenset(
    {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BOOL}
    | {ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64}
    | {ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64}
)
_ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Abs", "Sqrt", "Erf", "Relu", "LeakyRelu", "PRelu", "Clip", "Elu", "Gelu"}
    | {"Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Mish", "Tanh", "Softplus"}
)
_ANOTHER = "Choose another backend."


@dataclass(frozen=True)
class Seen:
    """The kernels of an engine in the order of a run, and why it could not be run, or ""."""

    kernels: tuple[Kernel, ...]
    failure: str


def written(graph: ir.Model, folder: Path, knobs: Knobs, workers: Workers | None) -> Seen:
    """Write `engine.xml` and `engine.bin` into `folder`, and look at what they become; without `workers` in a child for this one alone.

    BF16 is a hint for the whole engine; a layer that is planned in FP32 beside BF16 ones is marked `precise`, a mark that the
    plugin obeys for most operators (`realised.py` sees where not) and that only the file itself can carry.

    Raises:
        UnavailableError: OpenVINO has no form of an operator, can't compile the graph, or crashed on it.
    """
    if why := _unfit(graph):
        raise UnavailableError(why, _ANOTHER)
    with TemporaryDirectory(dir=folder, prefix=".openvino-") as scratch:
        file = Path(scratch).resolve() / "typed.onnx"
        save(_without_unit_scales(graph), file, beside="typed.weights" if weights_bytes(graph) > LARGE else None)
        request = {"model": str(file), "engine": str((folder / FILE).resolve()), **_request(graph, knobs)}
        with nullcontext(workers) if workers is not None else Workers(Path(scratch)) as asked:
            event = _told(request, asked)
    return Seen(kernels_from(event["kernels"], graph), event["failure"])


def _without_unit_scales(graph: ir.Model) -> ir.Model:
    """The graph with each scale of exactly 1, as raw pixels have it, one rounding step larger, where there is one.

    OpenVINO leaves out a multiplication by 1, then does not know the rest for a DequantizeLinear, and runs what reads it in FP32.
    """
    copy = clone(graph)
    for value in copy.graph.initializers.values():
        scales = [use.node.op_type in _Q_DQ and use.idx == 1 for use in value.uses()]
        if scales and all(scales) and (numbers := constant(value)) is not None and np.any(numbers == 1):
            larger = np.nextafter(np.float32(1), np.float32(2))
            value.const_value = ir.tensor(np.where(numbers == 1, larger, numbers).astype(numbers.dtype), name=value.name)
    return copy


def _unfit(graph: ir.Model) -> str:
    """Why a graph's types keep it from OpenVINO, or ""."""
    made = [value for node in graph.graph.all_nodes() for value in node.outputs]
    ends = [*graph.graph.inputs, *graph.graph.outputs]
    for value in (*ends, *graph.graph.initializers.values(), *made):
        if value.dtype == ir.DataType.STRING:
            return f"OpenVINO's CPU engines can't hold text, and {value.name!r} is text."
    for value in ends:
        if value.dtype is not None and value.dtype not in _EXCHANGED:
            return f"OpenVINO can't take or give {value.dtype.name} from Python, which {value.name!r} is."
    return ""


def _request(graph: ir.Model, knobs: Knobs) -> dict[str, Any]:
    planned = {node.name or "": node.metadata_props.get(PLANNED, "fp32") for node in graph.graph if is_layer(node)}
    half = "bf16" in planned.values()
    usual = json.loads(graph.metadata_props.get(SHAPES, "{}"))
    return {
        "hint": "bf16" if half else "f32",
        "exact": _exact(graph, planned) if half else [],
        "layers": {value.name: layer_of(node) for node in graph.graph for value in node.outputs if value.name and layer_of(node)},
        "quantizers": [value.name for node in graph.graph for value in node.outputs if node.op_type in _Q_DQ],
        "inputs": [value.name for value in graph.graph.inputs],
        "outputs": [value.name for value in graph.graph.outputs],
        "sizes": {name: sizes[1] for name, sizes in usual.items()},
        "settings": settings(knobs),
    }


def _exact(graph: ir.Model, planned: Mapping[str, str]) -> list[str]:
    """The layers to mark: those planned in FP32, and the sum behind a product of theirs with what another layer gives, to the end of the
    chain that the plugin makes one kernel of. It has none that multiplies in FP32 and sums in BF16, and would not compile.
    """
    exact = {layer for layer, precision in planned.items() if precision == "fp32"}
    products = [node for node in graph.graph if node.op_type in PRODUCTS and node.name in exact]
    for node in products:
        chain = _appended(node)
        if any(one.op_type == "Add" and all(constant(value) is None for value in one.inputs) for one in chain):
            exact.update(one.name or "" for one in chain)
    return sorted(exact)


def _appended(node: ir.Node) -> list[ir.Node]:
    """The element-wise operators behind that alone read what comes before them."""
    found: list[ir.Node] = []
    while len(after := readers(node.outputs[0])) == 1 and after[0].op_type in _ELEMENTWISE:
        node = after[0]
        found.append(node)
    return found


def _told(request: Mapping[str, Any], workers: Workers) -> dict[str, Any]:
    """What the worker tells; its crash is an answer too."""
    try:
        return workers.ask(isolated(_WORKER), request, what="OpenVINO, building this engine,")
    except InputError as error:
        raise UnavailableError(error.reason, _ANOTHER) from None
