"""What stands around a layer: index paths, attentions, patterns that fuse, the end of the model. Read off the graph, once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from optimizer.graph import constant, readers
from optimizer.precision import walks

INDEX_INPUTS: Mapping[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "CenterCropPad": (1,),
    "ConstantOfShape": (0,),
    "Equal": (0, 1),
    "Expand": (1,),
    "Gather": (1,),
    "GatherElements": (1,),
    "GatherND": (1,),
    "GridSample": (1,),
    "If": (0,),
    "LSTM": (4,),
    "GRU": (4,),
    "Loop": (0, 1),
    "MaxRoiPool": (1,),
    "MaxUnpool": (1, 2),
    "NonMaxSuppression": (2,),
    "OneHot": (0, 1),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "ReverseSequence": (1,),
    "RoiAlign": (1, 2),
    "ScatterElements": (1,),
    "ScatterND": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unique": (0,),
    "Unsqueeze": (1,),
}
"""Inputs that name places, sizes or codes: one rounding step there means another row. Equal and Unique compare codes."""

COUNTS: Mapping[str, tuple[int, ...]] = {
    "Cast": (0,),
    "Greater": (0, 1),
    "GreaterOrEqual": (0, 1),
    "Less": (0, 1),
    "LessOrEqual": (0, 1),
    "Mod": (0, 1),
}
"""Inputs that must stay exact where they are made of integers: positions beside a length, say. BF16 counts to 256, FP16 to 2,048."""

_INTEGERS = frozenset(
    {ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64}
    | {ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64}
)

_CARRIES_INDICES = frozenset(
    {"Abs", "Add", "Cast", "Ceil", "Clip", "Concat", "CumSum", "Div", "Expand", "Flatten", "Floor", "Gather", "GatherElements"}
    | {"GatherND", "Identity", "Max", "Min", "Mod", "Mul", "Neg", "Pad", "ReduceMax", "ReduceMin", "ReduceSum", "Reshape", "Round"}
    | {"ScatterElements", "ScatterND", "Slice", "Split", "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where"}
)
"""Operators whose output may be an index because an input is; a matrix product or an ArgMax makes new numbers."""

_NORMALIZING = frozenset({"Erf", "Exp", "HardSigmoid", "Pow", "Reciprocal", "ReduceMean", "Sigmoid", "Softmax", "Softplus", "Sqrt", "Tanh"})
_ELEMENTWISE = frozenset({"Add", "Div", "Mul", "Sub"})
_BEFORE_SOFTMAX = frozenset({"Add", "Cast", "Div", "Identity", "Mul", "Sub", "Where"})
_AFTER_SOFTMAX = frozenset({"Cast", "Dropout", "Identity", "Mul", "Where"})
_AFTER_LAST = frozenset({"Add", "Cast", "Flatten", "Identity", "LogSoftmax", "Reshape", "Sigmoid", "Softmax", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class Attention:
    """QK and PV of one attention by layer name; head size and length where the shapes tell them."""

    scores: str
    mixed: str
    head_size: int | None
    length: int | None


@dataclass(frozen=True)
class Surroundings:
    """`indices`: tensors that carry indices. `attentions`: by the name of QK and of PV. `patterns`, `last`: layer names."""

    indices: frozenset[str]
    attentions: Mapping[str, Attention]
    patterns: frozenset[str]
    last: frozenset[str]


def surroundings(graph: ir.Graph) -> Surroundings:
    """All that the placement rules ask about a graph. Attentions and patterns are those not already fused to one node."""
    return Surroundings(
        indices=_index_tensors(graph),
        attentions={name: attention for attention in _attentions(graph) for name in (attention.scores, attention.mixed)},
        patterns=_in_patterns(graph),
        last=frozenset(node.name or "" for node in graph if node.op_type in {"Gemm", "MatMul"} and _ends_the_model(node)),
    )


def at_run(value: ir.Value | None) -> bool:
    """Whether a value is computed at every run rather than known before."""
    return value is not None and constant(value) is None


def _index_tensors(graph: ir.Graph) -> frozenset[str]:
    """Walks back from every index input through what moves, cuts and counts indices."""
    waiting = [value for node in graph.all_nodes() for value in _exact_inputs(node)]
    found: dict[str, ir.Value] = {}
    while waiting:
        value = waiting.pop()
        if (value.name or "") in found:
            continue
        found[value.name or ""] = value
        producer = value.producer()
        if producer is not None and producer.op_type in _CARRIES_INDICES:
            waiting.extend(source for source in producer.inputs if source is not None and at_run(source))
    return frozenset(found)


def _exact_inputs(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads that names places or codes, and what it compares or truncates of counts."""
    named, counted = INDEX_INPUTS.get(node.op_type, ()), COUNTS.get(node.op_type, ())
    for place in (*named, *counted):
        value = node.inputs[place] if place < len(node.inputs) else None
        if value is not None and at_run(value) and (place in named or _counts(node, value)):
            yield value


def _counts(node: ir.Node, value: ir.Value) -> bool:
    """Whether a float that a node compares, or makes an integer again, was made of integers."""
    if value.dtype != ir.DataType.FLOAT or (node.op_type == "Cast" and node.outputs[0].dtype not in _INTEGERS):
        return False
    return any(_from_integers(made) for made in walks.before(value, _CARRIES_INDICES))


def _from_integers(node: ir.Node) -> bool:
    source = node.inputs[0] if node.op_type == "Cast" else None
    return node.op_type == "Range" or (source is not None and source.dtype in _INTEGERS)


def _attentions(graph: ir.Graph) -> Iterator[Attention]:
    for node in graph:
        if node.op_type != "Softmax":
            continue
        scores = _product_before(node.inputs[0])
        mixed = _product_after(node)
        if scores is None or mixed is None:
            continue
        query, weights = scores.inputs[0], node.outputs[0]
        yield Attention(scores.name or "", mixed.name or "", _last_size(query), _last_size(weights))


def _product_before(value: ir.Value | None) -> ir.Node | None:
    """The product of two activations that `value` comes from through scaling and masking."""
    producer = value.producer() if value is not None else None
    if producer is None:
        return None
    if producer.op_type == "MatMul" and all(at_run(source) for source in producer.inputs):
        return producer
    if producer.op_type not in _BEFORE_SOFTMAX:
        return None
    sources = (_product_before(source) for source in producer.inputs if at_run(source))
    return next((found for found in sources if found is not None), None)


def _product_after(node: ir.Node) -> ir.Node | None:
    """The product whose left side the output of `node` becomes."""
    for reader in readers(node.outputs[0]):
        if reader.op_type == "MatMul" and reader.inputs[0] is node.outputs[0] and at_run(reader.inputs[1]):
            return reader
        if reader.op_type in _AFTER_SOFTMAX and (found := _product_after(reader)) is not None:
            return found
    return None


def _last_size(value: ir.Value | None) -> int | None:
    if value is None or value.shape is None or not len(value.shape):
        return None
    size = value.shape[-1]
    return size if isinstance(size, int) else None


def _in_patterns(graph: ir.Graph) -> frozenset[str]:
    """Elementwise layers of a normalization, a Gelu, a SiLU or a softmax written out in primitives.

    These touch an operator of such a pattern, or come behind one that does with a constant as the other operand (the gain
    and shift of a normalization) or as the product that gates (x times what was made of x).
    """
    inside: set[ir.Node] = set()
    for node in graph:
        if node.op_type not in _ELEMENTWISE:
            continue
        before = [producer for value in node.inputs if value is not None and (producer := value.producer()) is not None]
        after = readers(node.outputs[0])
        touches = any(other.op_type in _NORMALIZING for other in (*before, *after))
        joins = node.op_type != "Mul" and all(at_run(value) for value in node.inputs)
        follows = any(other in inside for other in before) and not joins
        if touches or follows:
            inside.add(node)
    return frozenset(node.name or "" for node in inside)


def _ends_the_model(node: ir.Node) -> bool:
    """Whether the output leaves the model as scores: nothing learned follows."""
    output = node.outputs[0]
    after = readers(output)
    if not after:
        return output.is_graph_output()
    return all(reader.op_type in _AFTER_LAST and not _joins(reader) and _ends_the_model(reader) for reader in after)


def _joins(node: ir.Node) -> bool:
    """Whether an Add brings two branches together, rather than adding a bias."""
    return node.op_type == "Add" and all(at_run(value) for value in node.inputs)
