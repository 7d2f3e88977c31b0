"""From a graph as it lies in a file to one that every later step can rely on; all in place, on the importer's own graph.

Afterwards: opset 20 or newer; no functions, Constant nodes or initializers among the inputs; every node of the main graph has
a name of its own; every free dimension of an input has a name; shapes are what follows from the inputs, not what was declared.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript.version_converter import ConvertVersionPass

from optimizer.errors import InputError
from optimizer.graph import unique
from optimizer.plan import Shape

OPSET = 20
"""What graphs are raised to: per-channel Q/DQ is valid, and every adapter up to here was seen to work."""

Size = int | str | None
"""A dimension: a number, a name, or unknown."""

_IR_VERSION = 10
_UNNAMED = frozenset({"", "?", "-1", "None", "unk", "unknown"})

# It warns of the route it takes for opsets below 18, and of failures, which show in the opset and in the comparison of answers.
logging.getLogger("onnxscript.version_converter").setLevel(logging.ERROR)


def tidy(model: ir.Model) -> tuple[str, ...]:
    """Bring a graph into the form above, its opset apart; returns what a user should know of it."""
    if "ai.onnx" in model.opset_imports:  # the other name of the main domain
        model.opset_imports.setdefault("", model.opset_imports.pop("ai.onnx"))
    before = len(model.graph.inputs)
    for step in (
        passes.InlinePass(),
        passes.RemoveInitializersFromInputsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        passes.RemoveUnusedOpsetsPass(),
    ):
        step(model)
    model.ir_version = max(model.ir_version, _IR_VERSION)
    stripped = before - len(model.graph.inputs)
    return (f"{stripped} initializers that were declared as inputs, too, are constants now.",) if stripped else ()


def raise_opset(model: ir.Model) -> tuple[str, ...]:
    """Raise the main opset to 20 where it is older; names and metadata of nodes stay.

    Raises:
        InputError: the converter has no way up for one of the operators.
    """
    old = model.opset_imports.get("", OPSET)
    if old >= OPSET:
        return ()
    kept = {value.name: (node.name, dict(node.metadata_props)) for node in model.graph for value in node.outputs}
    ConvertVersionPass(target_version=OPSET, fallback=True)(model)
    if model.opset_imports.get("") != OPSET:
        raise InputError(
            f"The model is written in opset {old}, and an operator in it can't be raised to opset {OPSET}.",
            f"Export it with opset {OPSET}.",
        )
    for node in model.graph:  # onnx's own converter, which raises opsets below 18, drops both
        for value in node.outputs:
            if value.name in kept:
                name, metadata = kept[value.name]
                node.name = name
                node.metadata_props.update(metadata)
    # It may have come back with Constant nodes for arguments that used to be attributes.
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return (f"Raised from opset {old} to {OPSET}.",)


def name_nodes(model: ir.Model) -> None:
    """Give every node a unique name: its own, else the operator and its first output."""
    taken: set[str] = set()
    for node in model.graph:
        node.name = unique(node.name or _derived(node), taken)


def _derived(node: ir.Node) -> str:
    output = next((value.name for value in node.outputs if value.name), "")
    return f"{node.op_type}:{output}" if output else node.op_type


def name_dimensions(model: ir.Model) -> None:
    """Name the free dimensions of inputs that nobody named: two that are called `?` need not be of one size."""
    for value in model.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape([_dimension(value.name or "", axis, size) for axis, size in enumerate(value.shape)])


def _dimension(name: str, axis: int, size: int | ir.SymbolicDim) -> int | str:
    if isinstance(size, int):
        return size if size >= 0 else f"{name}_{axis}"
    return f"{name}_{axis}" if (size.value or "") in _UNNAMED else str(size.value)


def fix_shapes(model: ir.Model, shapes: Mapping[str, Shape]) -> None:
    """Give free dimensions of the inputs the sizes that `shapes` fix; a dimension of the same name elsewhere gets the same.

    Raises:
        InputError: no such input, another number of dimensions, another size than the model's, or one name with two sizes.
    """
    inputs = {value.name: value for value in model.graph.inputs}
    fixed: dict[str, int] = {}
    for name, wanted in shapes.items():
        if name not in inputs:
            known = ", ".join(str(known) for known in inputs)
            raise InputError(f"The model has no input {name!r}.", f"Its inputs are: {known}.")
        _agree(name, inputs[name], wanted, fixed)
    for value in inputs.values():
        if value.shape is not None:
            value.shape = ir.Shape([size if isinstance(size, int) else fixed.get(str(size.value), size) for size in value.shape])


def _agree(name: str, value: ir.Value, wanted: Shape, fixed: dict[str, int]) -> None:
    if value.shape is None:
        value.shape = ir.Shape([f"{name}_{axis}" for axis in range(len(wanted.usual))])
    if len(value.shape) != len(wanted.usual):
        raise InputError(
            f"The input {name!r} has {len(value.shape)} dimensions, {value.shape}, and was given {len(wanted.usual)}.",
            "Give one size for each dimension.",
        )
    for axis, (declared, low, high) in enumerate(zip(value.shape, wanted.smallest, wanted.largest, strict=True)):
        if isinstance(declared, int) and not low == high == declared:
            raise InputError(
                f"Dimension {axis} of the input {name!r} is {declared} in the model, and was asked to be {_words(low, high)}.",
                "Export the model with that dimension free, or ask for its own size.",
            )
        if low == high and not isinstance(declared, int) and fixed.setdefault(str(declared.value), low) != low:
            raise InputError(
                f"The dimension {declared.value!r} was given both {fixed[str(declared.value)]} and {low}.",
                "Give dimensions of one name one size.",
            )


def _words(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def infer(model: ir.Model) -> None:
    """Write shapes that follow from the inputs, forgetting what the file declared of computed values of the main domain."""
    declared = {}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            declared[value] = value.shape
            value.shape = None
    passes.ShapeInferencePass(strict_mode=False)(model)
    for value, shape in declared.items():
        producer = value.producer()
        if value.shape is None and producer is not None and producer.domain != "":
            value.shape = shape  # nobody but its author can infer such an operator


def learn_types(model: ir.Model, types: Mapping[str, str]) -> None:
    """Write down the types, in ONNX Runtime's words, of tensors that onnx could not infer: behind operators that it does not know."""
    for node in model.graph:
        for value in node.outputs:
            if (word := types.get(value.name or "", "")).startswith("tensor("):
                value.type = ir.TensorType(ir.DataType[word.removeprefix("tensor(").removesuffix(")").upper()])


def sizes(value: ir.Value) -> list[Size] | None:
    """The shape of a value as numbers, names, and None for what is not known."""
    if value.shape is None:
        return None
    return [size if isinstance(size, int) else size.value for size in value.shape]


def correct_outputs(model: ir.Model, declared: Mapping[str, Sequence[Size] | None], seen: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """Give each output a shape that is true: inferred, else `declared`, both corrected by the shape `seen` in a run.

    Returns a note for each output that the file had declared otherwise.
    """
    static = all(value.shape is not None and value.shape.is_static() for value in model.graph.inputs)
    notes = []
    for value in model.graph.outputs:
        name = value.name or ""
        said = declared.get(name)
        known = sizes(value) or list(said or ())
        if name in seen:
            known = known if len(known) == len(seen[name]) else [None] * len(seen[name])
            known = [_true(size, run, static, f"{name}_{axis}") for axis, (size, run) in enumerate(zip(known, seen[name], strict=True))]
            value.shape = ir.Shape(known)
        elif value.shape is None and said is not None:
            value.shape = ir.Shape(known)
        if said is not None and _contradict(said, known):
            notes.append(f"Output {name!r} is declared as {_shown(said)} and is {_shown(known)}.")
    return tuple(notes)


def _true(known: Size, seen: int, static: bool, name: str) -> Size:
    """A dimension that is `known` in some way and was `seen` in a run; one that was untrue is not constant and gets a name."""
    if static or known == seen:
        return seen
    return known if isinstance(known, str) and known else name


def _contradict(said: Sequence[Size], known: Sequence[Size]) -> bool:
    if len(said) != len(known):
        return True
    return any(isinstance(size, int) and size >= 0 and size != true for size, true in zip(said, known, strict=True))


def _shown(shape: Sequence[Size]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape) or "a scalar"
