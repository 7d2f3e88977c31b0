"""Part of torch_export.py and torch_run.py: the network in a file or folder, ready to run, whatever form it was kept in."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optimize_checkpoint  # these lie beside this file; optimizer/child.py made them importable
import optimize_huggingface
import optimize_inputs
import torch
from torch import nn
from torch.utils import _pytree

if TYPE_CHECKING:
    from optimizer.child import Channel

FACTORY = "Pass --factory file.py:function (or module:function); the function returns the network, without weights or with."
INTACT = "Get the whole file, or use the release of torch that wrote it (--source-python)."

OLDEST = (1, 13)


@dataclass
class Opened:
    """A network and its inputs; `program` is what an exporter takes in the network's place, where that is something else."""

    network: nn.Module
    inputs: optimize_inputs.Inputs
    modules: Mapping[str, str]
    notes: list[str] = field(default_factory=list)
    program: Any = None
    trusted: bool = False
    code_ran: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)


def opened(channel: Channel, request: Mapping[str, Any]) -> Opened:
    """The network that the request is about."""
    if tuple(int(number) for number in torch.__version__.split(".")[:2]) < OLDEST:
        channel.refuse(
            f"PyTorch {torch.__version__} is older than 1.13, the first that reads weights and runs nothing that lies beside them.",
            "Pass an interpreter with a newer one with --source-python: it reads the files of older ones, too.",
        )
    kind = request["kind"]
    if kind in {"folder", "torchscript", "exported"} and request["factory"] is not None:
        channel.refuse(f"{request['name']} is a whole model: a factory has nothing to make for it.", "Leave --factory away.")
    if kind == "folder":
        folder = optimize_huggingface.read(channel, request)
        return Opened(folder.network, folder.inputs, modules_of(folder.network), folder.notes, versions=folder.versions)
    return {"torchscript": scripted, "exported": exported}.get(kind, from_checkpoint)(channel, request)


def from_checkpoint(channel: Channel, request: Mapping[str, Any]) -> Opened:
    """Weights put into the network that the user's factory makes, or a network that was saved whole and is trusted."""
    checkpoint, trusted = optimize_checkpoint.read(channel, request)
    saved = list(optimize_checkpoint.whole(checkpoint))
    if saved:
        place, network = saved[0]
        notes = [f"The network is the one under {place!r}; the file also holds {', '.join(repr(key) for key, _ in saved[1:])}."]
        notes = notes if len(saved) > 1 else []
    else:
        if request["factory"] is None:
            channel.refuse(f"{request['name']} holds weights, and no network to put them into.", FACTORY)
        if not trusted:
            channel.see(Path(request["folder"]))
        network = made(channel, request["factory"], request["factory_args"])
        notes = list(optimize_checkpoint.filled(channel, request["name"], network, checkpoint))
    with channel.theirs("The network", "Save its weights alone, and pass --factory."):
        network = network.cpu().eval().requires_grad_(False)
    notes.extend(optimize_checkpoint.in_float32(network))
    inputs = optimize_inputs.of_forward(channel, network, request["shapes"])
    return Opened(network, inputs, modules_of(network), notes, trusted=trusted, code_ran=True)


def made(channel: Channel, reference: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network that the user's factory returns."""
    function = channel.function(reference, "factory")
    what = f"The factory {reference}"
    with channel.theirs(what, "Correct the factory or its --factory-arg, then build again."):
        network = function(**arguments)
    if not isinstance(network, nn.Module):
        channel.refuse(f"{what} returned {type(network).__name__}, not a torch.nn.Module.", "Let it return the network.")
    return network


def scripted(channel: Channel, request: Mapping[str, Any]) -> Opened:
    """A TorchScript program, which the user trusts."""
    with channel.theirs(f"Loading {request['name']}", INTACT):
        network = torch.jit.load(request["file"], map_location="cpu").eval()
    notes = list(optimize_checkpoint.in_float32(network))
    inputs = optimize_inputs.of_forward(channel, network, request["shapes"])
    modules = {path: plain_class(module._c._type().qualified_name()) for path, module in network.named_modules()}
    return Opened(network, inputs, modules, notes, program=network, trusted=True)


def plain_class(name: str) -> str:
    """`__torch__.torch.nn.modules.conv.___torch_mangle_3.Conv2d` as it was called in Python."""
    return re.sub(r"___torch_mangle_\d+\.", "", name.replace("__torch__.", "", 1))


def exported(channel: Channel, request: Mapping[str, Any]) -> Opened:
    """A program of torch.export, which the user trusts: its inputs, their types and free dimensions stand in it."""
    with channel.theirs(f"Loading {request['name']}", INTACT):
        program = torch.export.load(request["file"])
        network = torch.export.unflatten(program)
    named = [spec.arg for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    holders = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    tensors = {arg.name: holders[arg.name] for arg in named if isinstance(holders.get(arg.name), torch.Tensor)}
    if unknown := [name for name in request["shapes"] if name not in tensors]:
        remedy = "Leave --shapes away: the program has its own."
        channel.refuse(f"The program has no input {unknown[0]!r}; it takes {', '.join(tensors)}.", remedy)
    shapes = {name: request["shapes"].get(name) or own_shape(program, tensor) for name, tensor in tensors.items()}
    labels = {(name, axis): str(size) for name, tensor in tensors.items() for axis, size in enumerate(tensor.shape)}

    def run(**feeds: torch.Tensor) -> Any:
        leaves = [feeds[arg.name] if arg.name in tensors else arg.value for arg in named]
        positional, keyword = _pytree.tree_unflatten(leaves, program.call_spec.in_spec)
        return network(*positional, **keyword)

    with channel.theirs("The program", "Give shapes that it was exported for."), torch.no_grad():
        inputs = optimize_inputs.Inputs(run, shapes, labels, {name: tensor.dtype for name, tensor in tensors.items()})
        run(**inputs.example({}))
    stacks = [stack for node in program.graph.nodes for stack in node.meta.get("nn_module_stack", {}).values()]
    modules = {path: kind if isinstance(kind, str) else class_name(kind) for path, kind in stacks}
    return Opened(network, inputs, modules, program=program, trusted=True)


def own_shape(program: Any, tensor: torch.Tensor) -> list[list[int]]:
    """The smallest, usual and largest shape of an input: free sizes from their range in the program, at most 64 times the usual."""
    three = [own_range(program, size) for size in tensor.shape]
    return [[size[place] for size in three] for place in range(3)]


def own_range(program: Any, size: Any) -> tuple[int, int, int]:
    if isinstance(size, int):
        return size, size, size
    bounds = program.range_constraints[size.node.expr]
    low = max(1, int(bounds.lower))
    usual = max(low, 2)
    high = usual * 64
    return low, usual, min(high, int(bounds.upper)) if bounds.upper < high else high


def modules_of(network: nn.Module) -> dict[str, str]:
    return {path: class_name(type(module)) for path, module in network.named_modules()}


def class_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def tensors_of(outputs: Any) -> list[torch.Tensor]:
    """The tensors that a network gave, in order."""
    return [leaf for leaf in _pytree.tree_flatten(outputs)[0] if isinstance(leaf, torch.Tensor)]


def output_names(outputs: Any) -> list[str]:
    """Keys where forward returns a mapping, else `output`, or `output_0`, `output_1` ..."""
    if isinstance(outputs, Mapping) and all(isinstance(value, torch.Tensor) for value in outputs.values()):
        return [str(key) for key in outputs]
    count = len(tensors_of(outputs))
    return ["output"] if count == 1 else [f"output_{number}" for number in range(count)]


def takes(function: Any, argument: str) -> bool:
    """Whether this release's function has an argument of that name."""
    return argument in inspect.signature(function).parameters
