"""A typed graph to an engine in OpenVINO's IR, made by a child that also runs it and tells what its CPU plugin does."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from optimizer.backends.openvino.session import FILE, settings
from optimizer.errors import InputError, UnavailableError
from optimizer.graph import LARGE, clone, constant, readers, save, weights_bytes
from optimizer.model import FOR_LAYER, PLANNED, SHAPES, is_layer
from optimizer.plan import Knobs
from optimizer.process import isolated, run_worker

_WORKER = Path(__file__).with_name("worker.py")
_Q_DQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
_ANOTHER = "Choose another backend."


@dataclass(frozen=True)
class Kernel:
    """A node of the plugin's own graph.

    `layers` are computed by it, in whole or in part, the one that it is about first; of `quantizes` it computes Q/DQ.  `bytes` are
    those of its outputs, where their sizes are known; `reads` the numbers of its sources.  A `constant` one runs before the first run.
    """

    layers: tuple[str, ...]
    quantizes: tuple[str, ...]
    kind: str
    primitive: str
    precision: str
    ms: float | None
    bytes: int | None
    reads: tuple[int, ...]
    constant: bool = False

    @property
    def owner(self) -> str:
        """The layer that its time belongs to; "" for what only carries numbers from one kernel to another."""
        return next(iter((*self.layers, *self.quantizes)), "")


_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_HOLD_PRODUCTS = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul", "Subgraph"})

_OF_NO_LAYER = frozenset({"Const", "Input", "Output", "Reorder"})
"""Kinds of kernels that hold numbers or carry them from one form to another."""


@dataclass(frozen=True)
class Seen:
    """The plugin's graph in the order of a run, the bytes that a run took beside the engine, and why it could not be run, or ""."""

    kernels: tuple[Kernel, ...]
    peak: int | None
    failure: str


def written(graph: ir.Model, folder: Path, knobs: Knobs) -> Seen:
    """Write `engine.xml` and `engine.bin` into `folder`, and look at what they become.

    BF16 is a hint for the whole engine; a layer that is planned in FP32 beside BF16 ones is marked `precise`, a mark that the
    plugin obeys for most operators (`realised.py` sees where not) and that only the file itself can carry.

    Raises:
        UnavailableError: OpenVINO has no form of an operator, can't compile the graph, or crashed on it.
    """
    if (text := _text(graph)) is not None:
        raise UnavailableError(f"OpenVINO's CPU engines can't hold text, and {text!r} is text.", _ANOTHER)
    with TemporaryDirectory(dir=folder, prefix=".openvino-") as scratch:
        file = Path(scratch).resolve() / "typed.onnx"
        save(_without_unit_scales(graph), file, beside="typed.weights" if weights_bytes(graph) > LARGE else None)
        event = _of_child({"model": str(file), "engine": str((folder / FILE).resolve()), **_request(graph, knobs)}, Path(scratch))
    kernels = _constants_marked([_kernel(told) for told in event["kernels"]])
    return Seen(_remembered(graph, _attributed(kernels)), event["peak"], event["failure"])


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


def _text(graph: ir.Model) -> str | None:
    """The name of a tensor that holds text, if one does."""
    values = (
        *graph.graph.inputs,
        *graph.graph.initializers.values(),
        *(value for node in graph.graph.all_nodes() for value in node.outputs),
    )
    return next((value.name for value in values if value.dtype == ir.DataType.STRING), None)


def _request(graph: ir.Model, knobs: Knobs) -> dict[str, Any]:
    planned = {node.name or "": node.metadata_props.get(PLANNED, "fp32") for node in graph.graph if is_layer(node)}
    half = "bf16" in planned.values()
    usual = json.loads(graph.metadata_props.get(SHAPES, "{}"))
    return {
        "hint": "bf16" if half else "f32",
        "exact": [layer for layer, precision in planned.items() if half and precision == "fp32"],
        "layers": {value.name: _layer(node) for node in graph.graph for value in node.outputs if value.name and _layer(node)},
        "quantizers": [value.name for node in graph.graph for value in node.outputs if node.op_type in _Q_DQ],
        "inputs": [value.name for value in graph.graph.inputs],
        "outputs": [value.name for value in graph.graph.outputs],
        "sizes": {name: sizes[1] for name, sizes in usual.items()},
        "settings": settings(knobs),
    }


def _layer(node: ir.Node) -> str:
    return node.metadata_props.get(FOR_LAYER) or (node.name or "" if is_layer(node) else "")


def _of_child(request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the worker tells; its crash is an answer too."""
    told: dict[str, Any] = {}
    try:
        worker = run_worker(isolated(_WORKER), request=request, folder=folder, what="OpenVINO, building this engine,")
        with closing(cast(Generator[dict[str, Any]], worker)) as events:
            for event in events:
                told = event if event["event"] == "built" else told
    except InputError as error:
        raise UnavailableError(error.reason, _ANOTHER) from None
    return told


def _kernel(told: Mapping[str, Any]) -> Kernel:
    return Kernel(
        layers=tuple(told["layers"]),
        quantizes=tuple(told["quantizes"]),
        kind=told["kind"],
        primitive=told["primitive"],
        precision=told["precision"],
        ms=told["ms"],
        bytes=told["bytes"],
        reads=tuple(told["reads"]),
    )


def _constants_marked(kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels, told which of them give the same numbers in every run; those take no time and are no layer's."""
    marked: list[Kernel] = []
    for kernel in kernels:
        if kernel.kind == "Const" or (kernel.reads and all(marked[number].constant for number in kernel.reads)):
            kernel = replace(kernel, layers=(), quantizes=(), ms=None, constant=True)
        marked.append(kernel)
    return marked


def _attributed(kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels, those that compute and that no name leads from given to the layer that reads what they compute.

    So are parts of a layer that the plugin took apart: a bidirectional LSTM is two kernels without a name.
    """
    named = [kernel.layers for kernel in kernels]
    for number in reversed(range(len(kernels))):
        for source in kernels[number].reads:
            if named[number] and not kernels[source].owner and not kernels[source].constant and not named[source]:
                named[source] = named[number][:1]
    return [
        kernel if kernel.kind in _OF_NO_LAYER else replace(kernel, layers=layers) for kernel, layers in zip(kernels, named, strict=True)
    ]


def _remembered(graph: ir.Model, kernels: Sequence[Kernel]) -> tuple[Kernel, ...]:
    """The kernels, with the products in them that OpenVINO forgot to name: merged with what follows, that alone gives its name."""
    place = {layer: number for number, kernel in reversed(list(enumerate(kernels))) for layer in kernel.layers}
    found = list(kernels)
    for node in graph.graph:
        number = _following(node, place) if node.op_type in _PRODUCTS and node.name not in place else None
        if number is not None and found[number].kind in _HOLD_PRODUCTS:
            found[number] = replace(found[number], layers=(node.name or "", *found[number].layers))
    return tuple(found)


def _following(node: ir.Node, place: Mapping[str, int]) -> int | None:
    """The kernel of the nearest layer behind that has one, where one way leads there."""
    while len(after := {reader for value in node.outputs for reader in readers(value)}) == 1:
        node = after.pop()
        if (number := place.get(_layer(node))) is not None:
            return number
    return None
