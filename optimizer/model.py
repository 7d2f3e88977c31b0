"""A model as it travels: the graph, where it came from, what was fused.

A layer is a node of the main graph and is called as the user's source calls it: `node.name` holds that name, unique in the
graph.  Importers set it, fusion joins it (`joined`), precision and backends only read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

Dimension = int | str
"""A known size, or the name of a free dimension."""

HELPERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "Identity", "Constant"})
"""Operators that carry numbers from one form to another: no layers of the user's."""

FOR_LAYER = "optimize.for"
"""Metadata key of a node that a later step put in for a layer: the layer's name."""

PLANNED = "optimize.planned"
"""Metadata key of a layer in a typed graph: the precision that the plan gave it."""

SAME_NUMBERS = "optimize.same_numbers"
"""Metadata key of a value that a rewrite put in: the tensor of the original graph whose numbers it holds in another arrangement, all
or some of them, zeros added or not, so that what was seen of that one bounds this one."""

BY_NAME = "optimize.half_by_name"
"""Metadata key of a typed graph that stays in float32: its engine reads off PLANNED which layers run in FP16 or BF16."""

SATURATES = "optimize.saturates"
"""Metadata key of a typed graph for a CPU that adds pairs of uint8 x int8 products in 16 bits: neighbouring "terms", or "places"."""

CUSTOM_OPS = "optimize.custom_ops"
"""Metadata key of a graph with operators that ONNX Runtime lacks: the path of the library that brings them, never saved with it."""

SHAPES = "optimize.shapes"
"""Metadata key of a graph with free dimensions: JSON, smallest, usual and largest shape by input."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: name, numpy dtype name, shape of known sizes and names of free dimensions."""

    name: str
    dtype: str
    shape: tuple[Dimension, ...]


@dataclass(frozen=True)
class Source:
    """Where a model came from.

    `file` is a name without its folder; `code_ran` says that code of the user's was run; `trusted`, that the file itself could
    run code, which `--trust` allowed; `interpreter`, which Python of the user's own read it, with `--source-python`.
    """

    framework: str
    file: str
    sha256: str
    factory: str | None = None
    factory_args: Mapping[str, str] = field(default_factory=dict)
    code_ran: bool = False
    trusted: bool = False
    interpreter: str | None = None
    signature: str | None = None
    tags: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fusion:
    """What one application of a rule did: the source layers that went in, the layer that came out."""

    rule: str
    layers: tuple[str, ...]
    result: str


@dataclass(frozen=True)
class Layer:
    """A node of the main graph under its source name; `parameters` counts the numbers of its own weights, not sizes and axes."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: int


@dataclass(frozen=True)
class Model:
    """A graph in opset 20 or newer with unique layer names, its source and the fusions done to it."""

    graph: ir.Model
    source: Source
    fusions: tuple[Fusion, ...] = ()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(spec(value) for value in self.graph.graph.inputs)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(spec(value) for value in self.graph.graph.outputs)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return layers(self.graph)

    def with_graph(self, graph: ir.Model, fusions: Iterable[Fusion] = ()) -> Model:
        """This model with another graph, the fusions that led there appended."""
        return replace(self, graph=graph, fusions=(*self.fusions, *fusions))


def spec(value: ir.Value) -> TensorSpec:
    """The TensorSpec of an input or output; dimensions that nobody named are called `?0`, `?1` ..."""
    shape = value.shape if value.shape is not None else ()
    sizes = tuple(size if isinstance(size, int) else (size.value or f"?{axis}") for axis, size in enumerate(shape))
    dtype = value.dtype.numpy().name if value.dtype is not None else "float32"
    return TensorSpec(value.name or "", dtype, sizes)


def layers(graph: ir.Model) -> tuple[Layer, ...]:
    """The user's layers in topological order, without the helpers that precision put between them."""
    return tuple(
        Layer(
            node.name or "",
            node.op_type,
            tuple(value.name or "" for value in node.inputs if value is not None),
            tuple(value.name for value in node.outputs if value.name),
            sum(_learned(value) for value in node.inputs if value is not None),
        )
        for node in graph.graph
        if is_layer(node)
    )


def _learned(value: ir.Value) -> int:
    """How many numbers of the model's own a constant holds: sizes, axes and indices that an operator goes by are none."""
    tensor = value.const_value
    return 0 if tensor is None or tensor.dtype in {ir.DataType.INT64, ir.DataType.BOOL} else tensor.size


def is_layer(node: ir.Node) -> bool:
    """Whether a node of the main graph is a layer of the user's rather than a helper between layers."""
    return node.op_type not in HELPERS and FOR_LAYER not in node.metadata_props


def joined(names: Iterable[str]) -> str:
    """One name for layers that became one: `layer1.0.conv1`, `layer1.0.bn1` -> `layer1.0.conv1+bn1`.

    A name of the same parent module as the first is shortened to its last part; repeats are left out, and so is a piece of a call
    whose name is there (`fc/Add` beside `fc`).
    """
    parts = list(dict.fromkeys(part for name in names for part in _parts(name)))
    parts = [part for part in parts if part.rpartition("/")[0] not in parts]
    if not parts:
        return ""
    parent = parts[0].rpartition(".")[0]
    short = [part.removeprefix(parent + ".") if parent else part for part in parts[1:]]
    return "+".join([parts[0], *short])


def _parts(name: str) -> list[str]:
    """The source names inside a joined name, written out in full."""
    first, *rest = name.split("+")
    parent = first.rpartition(".")[0]
    return [first, *(part if "." in part or not parent else f"{parent}.{part}" for part in rest)]
