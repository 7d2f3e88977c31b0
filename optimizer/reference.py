"""Runs a graph as written, any tensor by name; its truth in float64; and what half precision on a GPU would make of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxruntime as ort
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from optimizer.engine import Arrays
from optimizer.errors import InputError
from optimizer.graph import HEAVY, clone, free, held, infer_shapes, names, unique, weights_bytes
from optimizer.model import BY_NAME, CUSTOM_OPS, PLANNED, SATURATES, TensorSpec, spec
from optimizer.saturation import saturate

UNSEEN = (
    "the order in which the target's kernels add up",
    "half-precision accumulators inside a kernel",
    "which kernels the target chooses, and what its compiler keeps in registers",
)
"""What `simulated` cannot see of a run on the target."""

_HALVES: Mapping[str, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_HALF = frozenset(_HALVES.values())
_FLOATS = frozenset({ir.DataType.FLOAT, *_HALF})
_SHARED = frozenset({*_FLOATS, ir.DataType.INT8, ir.DataType.UINT8})
"""Types of weights that are handed over by address; ONNX Runtime wants shapes, axes and indices inside the protobuf."""

_INLINE_BYTES = 1024
"""Initializers up to this size travel inside the protobuf."""

_PERTURBATION = 2.0**-20
"""Relative change of an input: eight float32 rounding steps, so that it survives every cast to float32."""


class NoTruthError(Exception):
    """The float64 evaluator can't run this graph; `reason` says why, for the report."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Reference:
    """An Engine on ONNX Runtime's CPU that runs `graph` node by node as written and returns the tensors in `watch` too.

    Watched tensors are inputs, initializers or node outputs of the main graph.  With `optimized` ONNX Runtime may fuse (the
    same function up to float32 rounding, Q/DQ still computed in float32), which is faster and is meant for gates.

    Raises:
        InputError: ONNX Runtime refuses the graph, or a run fails.
    """

    peak_bytes: int | None = None

    def __init__(self, graph: ir.Model, watch: Sequence[str] = (), threads: int = 1, optimized: bool = False) -> None:
        watched = clone(graph)
        self.inputs: tuple[TensorSpec, ...] = tuple(spec(value) for value in watched.graph.inputs)
        self.outputs: tuple[TensorSpec, ...] = tuple(spec(value) for value in watched.graph.outputs)
        self._known = _expose(watched, watch)
        self._names = [value.name or "" for value in watched.graph.outputs]
        self._bytes = weights_bytes(watched)
        self._session, self._weights = _session(watched, threads, optimized)

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Every output and every watched tensor by name, for inputs by name."""
        try:
            results = self._session.run(self._names, dict(feeds))
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            raise InputError(f"The model can't be run on this data: {_said(error)}", "Check the data's shapes and types.") from None
        found = dict(zip(self._names, results, strict=True))
        for name, known in self._known.items():
            found[name] = feeds[name] if known is None else known
        return found

    def close(self) -> None:
        """Frees the session and its hold on the weights."""
        del self._session, self._weights
        free(self._bytes)


def _expose(model: ir.Model, watch: Sequence[str]) -> dict[str, NDArray[Any] | None]:
    """Makes node outputs named in `watch` graph outputs; returns the others: an initializer's numbers, None for an input."""
    graph = model.graph
    outputs = {value.name: value for node in graph for value in node.outputs}
    present = {value.name for value in graph.outputs}
    inputs = {value.name for value in graph.inputs}
    wanted = [name for name in dict.fromkeys(watch) if name not in present]
    if any(name in outputs and outputs[name].dtype is None for name in wanted):
        infer_shapes(model)
    known: dict[str, NDArray[Any] | None] = {}
    for name in wanted:
        if name in outputs:
            graph.outputs.append(outputs[name])
        elif name in inputs:
            known[name] = None
        elif (initializer := graph.initializers.get(name)) is not None and initializer.const_value is not None:
            known[name] = initializer.const_value.numpy()
        else:
            raise ValueError(f"the graph has no tensor {name!r}")
    return known


Addresses = Mapping[str, ort.OrtValue]


def _session(model: ir.Model, threads: int, optimized: bool) -> tuple[ort.InferenceSession, Addresses]:
    """A session that computes with the large weights where they lie, in memory or mapped from a file, and these, which must outlive it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.disable_prepacking", "1")  # it copies every weight into the kernel's own order
    if weights_bytes(model) > HEAVY:
        # An arena keeps what it grew to, in powers of two: twice the weights of a quantized graph, which are dequantized at every run.
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    if CUSTOM_OPS in model.metadata_props:
        options.register_custom_ops_library(model.metadata_props[CUSTOM_OPS])
    weights = _share_weights(model, options)
    try:
        return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]), weights
    except Exception as error:  # as above
        remedy = "Check the model with onnx.checker, or export it again in a newer opset."
        raise InputError(f"ONNX Runtime can't load the model: {_said(error)}", remedy) from None


def _share_weights(model: ir.Model, options: ort.SessionOptions) -> Addresses:
    """Hand the large weights over by address, and leave in the model only where they are said to lie, in place.

    ONNX Runtime wants to find each of them while it loads as well: in the file, or in a copy of its own that it drops afterwards.
    """
    graph = model.graph
    weights: dict[str, ir.TensorProtocol] = {
        name: tensor
        for name, value in graph.initializers.items()
        if (tensor := value.const_value) is not None and tensor.dtype in _SHARED and tensor.nbytes > _INLINE_BYTES
    }
    addresses = {
        name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(tensor.numpy()), int(tensor.dtype))
        for name, tensor in weights.items()
    }
    for name, address in addresses.items():
        options.add_initializer(name, address)
        graph.initializers[name].const_value = None
    held(model)
    folder = next((str(tensor.base_dir) for tensor in weights.values() if isinstance(tensor, ir.ExternalTensor)), "")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    elsewhere = {name for name, tensor in weights.items() if not (isinstance(tensor, ir.ExternalTensor) and str(tensor.base_dir) == folder)}
    if elsewhere:
        options.add_external_initializers(list(elsewhere), [addresses[name] for name in elsewhere])
    for name, tensor in weights.items():
        graph.initializers[name].const_value = _outside(tensor) if name in elsewhere else tensor
    return addresses


def _outside(tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    """A tensor that is said to lie in a file, which nobody opens."""
    return ir.ExternalTensor(
        "weights", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.numpy().shape), name=tensor.name or "", base_dir=""
    )


def _said(error: Exception) -> str:
    """What an exception of native code says, on one line."""
    return " ".join(str(error).split()).removeprefix("[ONNXRuntimeError] : ")[:400] or type(error).__name__


def float64(graph: ir.Model, feeds: Arrays) -> dict[str, NDArray[Any]]:
    """The outputs of `graph` with every float tensor, attribute and input in float64: what the model means, without rounding.

    Evaluated by onnx.reference, in numpy: slow, for a few samples.

    Raises:
        NoTruthError: the evaluator lacks an operator of the graph or fails in it.
    """
    exact = held(clone(graph))
    weights = _as_inputs(exact)
    _retype(exact, _FLOATS, ir.DataType.DOUBLE)
    try:
        with np.errstate(all="ignore"):  # an exponential may overflow on its way to a sound sigmoid
            results = _evaluated(ReferenceEvaluator(ir.to_proto(exact)), {name: _exactly(array) for name, array in feeds.items()}, weights)
    except Exception as error:  # operators are plain numpy and raise whatever numpy raises
        raise NoTruthError(f"onnx.reference can't run the model in float64: {type(error).__name__}: {_said(error)}") from error
    return {value.name or "": results[value.name or ""] for value in exact.graph.outputs}


def _evaluated(evaluator: ReferenceEvaluator, feeds: Arrays, weights: Arrays) -> dict[str, Any]:
    """Every tensor by name. What `ReferenceEvaluator.run` does, but a weight is in float64 only while a node reads it."""
    results: dict[str, Any] = {"": None, **evaluator.rt_inits_, **weights, **feeds}
    for node in evaluator.rt_nodes_:
        inputs = [_exactly(results[name]) if name in weights else results[name] for name in node.input]
        outputs = node.run(*inputs, context=results) if node.need_context() else node.run(*inputs)
        results.update(zip(node.output, outputs, strict=False))
    return results


def _exactly(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float64) if _is_float(array) else array


def _as_inputs(model: ir.Model) -> dict[str, NDArray[Any]]:
    """Turns the large weights into inputs, in place, and returns them: the evaluator would hold two more copies of them."""
    weights = {}
    for name, value in list(model.graph.initializers.items()):
        if (tensor := value.const_value) is not None and tensor.nbytes > _INLINE_BYTES and not value.is_graph_output():
            weights[name] = tensor.numpy()
            del model.graph.initializers[name]
            value.const_value = None
            model.graph.inputs.append(value)
    return weights


def _is_float(array: NDArray[Any]) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def simulated(typed: ir.Model, written: Collection[str] | None = None) -> ir.Model:
    """`typed` computed in float32, with a Cast to FP16 or BF16 and back on each tensor of that type that a launch writes.

    ONNX Runtime's CPU computes half-precision graphs in float32 between operators, so that running `typed` itself hides
    overflow and rounding; here a value over 65,504 becomes inf.  `written` names the tensors that launches write, where the
    built engine tells them; by default every half-precision tensor counts, and where the engine reads off the layers' names
    which run in half (BY_NAME) all that these read and write.  Q/DQ stay: they simulate exactly, for a CPU that SATURATES less
    what its kernels lose.  UNSEEN lists what this cannot show.
    """
    model = clone(typed)
    if any(value.dtype is None for node in model.graph.all_nodes() for value in node.outputs):
        infer_shapes(model)
    if SATURATES in model.metadata_props:
        saturate(model, by_place=model.metadata_props[SATURATES] == "places")
    taken = names(model.graph)
    by_name = _by_name(model)
    _round_inputs(model.graph, by_name, taken)
    halves = [
        (node, value, half, value.dtype == half)
        for node in model.graph.all_nodes()
        for value in node.outputs
        if value.name and (half := _half_of(value, by_name)) is not None and (written is None or value.name in written)
    ]
    callers = [value for value in model.graph.inputs if value.dtype in _HALF]
    _retype(model, _HALF, ir.DataType.FLOAT, keep=callers)
    for node, value, half, written_so in halves:
        down = _cast_node(value, half, f"{value.name}/half", taken)
        up = _cast_node(down.outputs[0], ir.DataType.FLOAT, f"{value.name}/rounded", taken)
        for index, output in enumerate(model.graph.outputs):
            if output is value and written_so:
                model.graph.outputs[index] = down.outputs[0]
        value.replace_all_uses_with(up.outputs[0], replace_graph_outputs=True)
        down.replace_input_with(0, value)
        named = down if down.outputs[0].is_graph_output() else up
        value.name, named.outputs[0].name = unique(f"{value.name}/exact", taken), value.name
        node.graph.insert_after(node, [down, up])  # type: ignore[union-attr]
    for value in callers:
        up = _cast_node(value, ir.DataType.FLOAT, f"{value.name}/wide", taken)
        value.replace_all_uses_with(up.outputs[0])
        up.replace_input_with(0, value)
        model.graph.insert_before(model.graph[0], up)
    return model


def _by_name(model: ir.Model) -> dict[ir.Node, ir.DataType]:
    """The layers that run in half precision though the graph stays in float32, with their type."""
    if BY_NAME not in model.metadata_props:
        return {}
    planned = ((node, _HALVES.get(node.metadata_props.get(PLANNED, ""))) for node in model.graph)
    return {node: half for node, half in planned if half is not None}


def _half_of(value: ir.Value, by_name: Mapping[ir.Node, ir.DataType]) -> ir.DataType | None:
    """The half-precision type in which a value is written, None where it is none."""
    if value.dtype in _HALF:
        return value.dtype
    producer = value.producer()
    return by_name.get(producer) if producer is not None and value.dtype == ir.DataType.FLOAT else None


def _round_inputs(graph: ir.Graph, by_name: Mapping[ir.Node, ir.DataType], taken: set[str]) -> None:
    """Rounds what a layer in half precision reads of inputs, constants and layers in float, for that layer alone."""
    rounded: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node, half in by_name.items():
        for place, value in enumerate(node.inputs):
            if value is None or value.dtype != ir.DataType.FLOAT or value.producer() in by_name:
                continue
            if (value, half) not in rounded:
                down = _cast_node(value, half, f"{value.name}/half", taken)
                up = _cast_node(down.outputs[0], ir.DataType.FLOAT, f"{value.name}/read", taken)
                graph.insert_before(node, [down, up])
                rounded[value, half] = up.outputs[0]
            node.replace_input_with(place, rounded[value, half])


def widened(model: ir.Model) -> ir.Model:
    """`model` with every half-precision tensor in FP32, which holds all their numbers; inputs and outputs keep their types.

    A model without such tensors comes back as it is.
    """
    if not any(value.dtype in _HALF for graph in _graphs(model) for value in _values(graph)):
        return model
    found = simulated(model, written={value.name or "" for value in model.graph.outputs})
    passes.RemoveUnusedNodesPass()(found)
    return found


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from (*graph.inputs, *graph.initializers.values())
    for node in graph:
        yield from node.outputs


def _cast_node(value: ir.Value, new: ir.DataType, name: str, taken: set[str]) -> ir.Node:
    node = ir.node("Cast", [value], {"to": int(new)}, name=unique(name, taken))
    output = node.outputs[0]
    output.name, output.shape, output.type = node.name, value.shape, ir.TensorType(new)
    return node


def _retype(model: ir.Model, old: Collection[ir.DataType], new: ir.DataType, keep: Collection[ir.Value] = ()) -> None:
    """Turns every tensor, constant and type attribute of an `old` type into `new`, in place, in subgraphs too."""
    for graph in _graphs(model):
        for value in (*graph.inputs, *graph.initializers.values()):
            if value not in keep:
                _retype_value(value, old, new)
        for node in graph:
            for attribute in list(node.attributes.values()):
                if (changed := _retyped(attribute, node.op_type, old, new)) is not None:
                    del node.attributes[attribute.name]
                    node.attributes[changed.name] = changed
            for value in node.outputs:
                _retype_value(value, old, new)


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield model.graph
    yield from model.graph.subgraphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.graph.subgraphs()


def _retype_value(value: ir.Value, old: Collection[ir.DataType], new: ir.DataType) -> None:
    if value.dtype in old:
        value.type = ir.TensorType(new)
    if value.const_value is not None and value.const_value.dtype in old:
        value.const_value = _cast(value.const_value, new)


def _retyped(attribute: ir.Attr, operator: str, old: Collection[ir.DataType], new: ir.DataType) -> ir.Attr | None:
    """The attribute for the `new` type, None where it says nothing about an `old` type."""
    kind = attribute.type
    if kind == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in old:
        return ir.AttrTensor(attribute.name, _cast(attribute.as_tensor(), new))
    if kind == ir.AttributeType.INT and attribute.name in {"to", "dtype", "output_dtype"} and attribute.as_int() in {int(t) for t in old}:
        return ir.AttrInt64(attribute.name, int(new))
    if operator == "Constant" and ir.DataType.FLOAT in old and attribute.name in {"value_float", "value_floats"}:
        return ir.AttrTensor("value", ir.tensor(np.asarray(attribute.value, dtype=new.numpy())))
    return None


def _cast(tensor: ir.TensorProtocol, new: ir.DataType) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(new.numpy()), name=tensor.name)


def sensitivity(run: Callable[[Arrays], Arrays], feeds: Arrays) -> float:
    """Largest relative change of an output (L2 norm) when half the numbers of each float input grow by 2**-20 of themselves.

    Without a unit, to be set beside a relative error of the output: where both are of one size, a comparison shows nothing.
    Numbers only grow in magnitude, so that an index in a float input still means the same row.
    """
    chosen = np.random.default_rng(0)
    moved = {
        name: np.asarray(array * (1 + _PERTURBATION * chosen.integers(0, 2, array.shape)), array.dtype) if _is_float(array) else array
        for name, array in feeds.items()
    }
    before, after = run(feeds), run(moved)
    return max((_relative_change(before[name], after[name]) for name in before if _is_float(before[name])), default=0.0)


def _relative_change(before: NDArray[Any], after: NDArray[Any]) -> float:
    old, new = before.astype(np.float64), after.astype(np.float64)
    if old.shape != new.shape:
        return float("inf")
    size = float(np.linalg.norm(old))
    change = float(np.linalg.norm(new - old))
    return change / size if size else (float("inf") if change else 0.0)
