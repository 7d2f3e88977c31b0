"""Part of tf_source.py: what every TensorFlow format becomes, a frozen graph, and what can't come along in one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow.python.grappler import tf_optimizer

if TYPE_CHECKING:
    import numpy as np

    from optimizer.child import Channel

AGGRESSIVE = 3  # RewriterConfig's function_optimization: also what is called in several places is inlined

CODE = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles", "Save", "SaveSlices"})
"""Operators that call Python or touch files; those that restore a SavedModel's variables are not among them."""

CARRIERS = frozenset({"Placeholder", "Identity", "IdentityN"})
"""Operators that only pass on what they are given."""

VARIABLES = frozenset({"Variable", "VariableV2", "VarHandleOp", "ReadVariableOp"})


class Opened(NamedTuple):
    """A model of any format, opened.

    `inputs` and `outputs` map the names that the user knows to tensors, of `graph` where there is one; `specs` are the inputs'
    dtypes and shapes, None for what is free.  `run` gives arrays by output name, computed by the model as it was before it was
    frozen; `tensors`, any tensors by name.  `layers` are paths that are known to be layers; `trusted` says that code in the file ran.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    specs: Mapping[str, tuple[str, list[int | None] | None]]
    run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
    tensors: Callable[[Mapping[str, np.ndarray], Sequence[str]], Mapping[str, np.ndarray]]
    graph: Any = None
    layers: Sequence[str] = ()
    notes: Sequence[str] = ()
    signature: str | None = None
    tags: Sequence[str] = ()
    trusted: bool = False


def nodes(graph: Any) -> Iterator[Any]:
    """Every node of a GraphDef, those in functions included."""
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def refuse_code(channel: Channel, name: str, graph: Any) -> None:
    """Refuse a graph that would call Python or touch files when it runs."""
    for node in nodes(graph):
        if node.op in CODE:
            channel.refuse(
                f"{name} holds the operator {node.op} ({node.name}), which calls Python or touches files.",
                "Take that step out of the model: what it does belongs in front of it or behind it.",
            )


def inlined(graph: Any, tensors: Sequence[str]) -> Any:
    """A GraphDef with all calls of functions inlined and what `tensors` do not need removed; loops and branches stay functions.

    Folds nothing: a constant that TensorFlow folded into a convolution would take the layer's name along.
    """
    for function in graph.library.function:
        function.attr.pop("api_implements", None)  # a second form for GPUs, which keeps it from being inlined
    for node in nodes(graph):
        node.attr.pop("_output_shapes", None)
        if "_lower_using_switch_merge" in node.attr:
            node.attr["_lower_using_switch_merge"].b = False
    with tf.Graph().as_default():
        tf.import_graph_def(graph, name="")
        meta = tf.compat.v1.train.export_meta_graph(graph_def=graph)
    fetched = meta_graph_pb2.CollectionDef()
    fetched.node_list.value.extend(tensors)
    meta.collection_def["train_op"].CopyFrom(fetched)
    config = config_pb2.ConfigProto()
    rewrite = config.graph_options.rewrite_options
    rewrite.optimizers.extend(["function", "dependency"])
    rewrite.function_optimization = AGGRESSIVE
    rewrite.min_graph_nodes = -1
    return tf_optimizer.OptimizeGraph(config, meta)


def with_shapes(graph: Any, inputs: Mapping[str, str], shapes: Mapping[str, Sequence[Sequence[int]]]) -> Any:
    """Give placeholders the shapes that the user fixed or, where they have none at all, the number of dimensions."""
    wanted = {tensor.split(":")[0]: shapes[name] for name, tensor in inputs.items() if name in shapes}
    for node in graph.node:
        if node.name in wanted:
            smallest, _, largest = wanted[node.name]
            shape = [low if low == high else None for low, high in zip(smallest, largest)]
            known = tf.TensorShape(node.attr["shape"].shape)
            if known.is_compatible_with(shape):
                node.attr["shape"].shape.CopyFrom(known.merge_with(shape).as_proto())
    return graph


class Session:
    """A frozen graph in a session of its own."""

    def __init__(self, graph: Any, inputs: Mapping[str, str]) -> None:
        self.graph = tf.Graph()
        with self.graph.as_default():
            tf.import_graph_def(graph, name="")
        self._session = tf.compat.v1.Session(graph=self.graph)
        self._inputs = inputs

    def run(self, feeds: Mapping[str, np.ndarray], wanted: Mapping[str, str]) -> Mapping[str, np.ndarray]:
        """The tensors `wanted` (name to tensor), by name."""
        fed = {self._inputs[name]: array for name, array in feeds.items()}
        return dict(zip(wanted, self._session.run(list(wanted.values()), fed)))

    def tensors(self, feeds: Mapping[str, np.ndarray], names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """The tensors of numbers called `names`; those that the graph does not have are left out."""
        return self.run(feeds, {name: name for name in names if self._has(name)})

    def specs(self) -> dict[str, tuple[str, list[int | None] | None]]:
        """dtype and shape of each input; None for what is free."""
        return {name: spec(self.graph.get_tensor_by_name(tensor)) for name, tensor in self._inputs.items()}

    def _has(self, name: str) -> bool:
        try:
            return is_number(self.graph.get_tensor_by_name(name).dtype)
        except (KeyError, ValueError):
            return False


def spec(tensor: Any) -> tuple[str, list[int | None] | None]:
    return tensor.dtype.base_dtype.name, None if tensor.shape.rank is None else tensor.shape.as_list()


def is_number(dtype: Any) -> bool:
    return dtype not in (tf.string, tf.resource, tf.variant)


def refuse_text(channel: Channel, name: str, graph: tf.Graph) -> None:
    """Refuse strings and table look-ups, by name, and say where to cut the model: the first numbers that come out of them."""
    found = [op for op in graph.get_operations() if op.type != "Const" and _is_text(op)]
    if not found:
        return
    before = _reached(found, lambda op: [value.op for value in op.inputs])
    fed = _reached(
        (op for op in graph.get_operations() if op.type == "Placeholder"), lambda op: [r for v in op.outputs for r in v.consumers()]
    )
    cuts = [
        value
        for op in graph.get_operations()
        if op in before and op in fed and op.type != "Placeholder"
        for value in op.outputs
        if is_number(value.dtype) and any(reader not in before for reader in value.consumers())
    ]
    work = next((op for op in found if op in fed and op.type not in CARRIERS), found[0])
    channel.refuse(
        f"{name} works on strings or look-up tables ({work.type} in {work.name!r}{_more(len(found) - 1)}), which no engine does.",
        f"Cut the model there: save it anew so that {' and '.join(map(_told, cuts))} is its input, and do what comes before outside of it."
        if cuts
        else "Save the model anew without them, and do what they do outside of it.",
    )


def _is_text(op: Any) -> bool:
    table = op.type.startswith("LookupTable") or "HashTable" in op.type
    return table or any(value.dtype == tf.string for value in (*op.inputs, *op.outputs))


def _reached(start: Iterable[Any], following: Callable[[Any], Iterable[Any]]) -> set[Any]:
    reached, open_ = set(), list(start)
    while open_:
        op = open_.pop()
        if op not in reached:
            reached.add(op)
            open_.extend(following(op))
    return reached


def _more(count: int) -> str:
    return f" and {count} more" if count else ""


def _told(tensor: Any) -> str:
    dtype, shape = spec(tensor)
    sizes = "of any shape" if shape is None else "x".join("?" if size is None else str(size) for size in shape) or "scalar"
    return f"{tensor.name!r} ({dtype} {sizes})"
