"""Turns a PyTorch checkpoint and the user's factory into an ONNX file, in a process of its own that finds none of our packages.

The request: `file`, `name`, `factory`, `factory_args`, `folder` (the user's), `shapes` {input: [smallest, usual, largest]},
`exporter` ("dynamo" or "legacy"), `out`.  The answers: `model` {modules, outputs, versions, notes}, then `exported` {notes}, then
`probe` {words, zeros} with the inputs and outputs of the network itself, at each size tried and where all numbers are 0.  The checkpoint
is read before any code of the user's runs, and only by torch's `weights_only` loader, which builds tensors and plain containers
and calls nothing.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import optimize_checkpoint  # these two lie beside this file; optimizer/child.py made them importable
import optimize_inputs
import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree

if TYPE_CHECKING:
    from optimizer.child import Channel

OPSETS = {"dynamo": 20, "legacy": 17}
INLINE = 1 << 30
FACTORY = "Pass --factory file.py:function (or module:function); the function returns the network, without weights or with."
DECIDED = "Choose with torch.where, which computes both ways, and leave checks out of forward."


def main(channel: Channel) -> None:
    request = channel.receive().event
    checkpoint = optimize_checkpoint.read(channel, request)
    if request["factory"] is None:
        channel.refuse(f"{request['name']} holds weights, and no network to put them into.", FACTORY)
    channel.see(Path(request["folder"]))
    network = made(channel, request["factory"], request["factory_args"])
    notes = [*optimize_checkpoint.filled(channel, request["name"], network, checkpoint), *optimize_checkpoint.in_float32(network)]
    with channel.theirs("The network", "Correct its forward, then build again."), torch.no_grad():
        inputs = optimize_inputs.Inputs(channel, network, request["shapes"])
        usual = inputs.example({})
        outputs = network(**usual)
    modules = {path: f"{type(module).__module__}.{type(module).__qualname__}" for path, module in network.named_modules()}
    channel.send(
        "model",
        modules=modules,
        outputs=output_names(outputs),
        notes=[*notes, *inputs.notes],
        versions={"torch": torch.__version__, "onnx": onnx.__version__, "python": platform.python_version()},
    )
    export(channel, network, inputs, request)
    with torch.no_grad():
        for words, feeds in inputs.probes(channel, network):
            probe(channel, network, words, feeds)
        if (zeros := inputs.zeros(network)) is not None:
            probe(channel, network, "all-zero inputs", zeros, zeros=True)


def probe(channel: Channel, network: nn.Module, words: str, feeds: Mapping[str, torch.Tensor], zeros: bool = False) -> None:
    """Send what the network answers to `feeds`."""
    tensors = [leaf for leaf in _pytree.tree_leaves(network(**feeds)) if isinstance(leaf, torch.Tensor)]
    arrays = {f"in.{name}": tensor.numpy() for name, tensor in feeds.items()}
    channel.send("probe", {**arrays, **{f"out.{n}": tensor.numpy() for n, tensor in enumerate(tensors)}}, words=words, zeros=zeros)


def made(channel: Channel, reference: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network that the user's factory returns, in evaluation mode, on the CPU."""
    function = channel.function(reference, "factory")
    what = f"The factory {reference}"
    with channel.theirs(what, "Correct the factory or its --factory-arg, then build again."):
        network = function(**arguments)
    if not isinstance(network, nn.Module):
        channel.refuse(f"{what} returned {type(network).__name__}, not a torch.nn.Module.", "Let it return the network.")
    return network.cpu().eval().requires_grad_(False)


def output_names(outputs: Any) -> list[str]:
    """Keys where forward returns a mapping, else `output`, or `output_0`, `output_1` ..."""
    if isinstance(outputs, Mapping) and all(isinstance(value, torch.Tensor) for value in outputs.values()):
        return [str(key) for key in outputs]
    count = sum(isinstance(leaf, torch.Tensor) for leaf in _pytree.tree_leaves(outputs))
    return ["output"] if count == 1 else [f"output_{number}" for number in range(count)]


def export(channel: Channel, network: nn.Module, inputs: optimize_inputs.Inputs, request: Mapping[str, Any]) -> None:
    """Write the ONNX file; check that it has the opset that was asked for, which an exporter may ignore in silence."""
    free = {name: {axis: f"{name}_{axis}" for axis in axes} for name, axes in inputs.free.items() if axes}
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always", torch.jit.TracerWarning)
            opset = {"dynamo": dynamo, "legacy": legacy}[request["exporter"]](network, inputs.traced(), free, request["out"])
    except Exception as error:
        cause = root(error)
        if isinstance(cause, GuardOnDataDependentSymNode):
            channel.refuse(f"What forward decides by the numbers in a tensor{channel.place(cause)} can't be told in a graph.", DECIDED)
        channel.send("unexportable", said=f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}")
        channel.hang_up()
    wanted = OPSETS[request["exporter"]]
    if opset != wanted:
        channel.refuse(f"The exporter wrote opset {opset} where {wanted} was asked for.", "Use another release of torch.")
    channel.send("exported", notes=list(dict.fromkeys(decided(channel, heard))))


def root(error: BaseException) -> BaseException:
    """What an exporter wrapped in advice on how to report it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def decided(channel: Channel, heard: Iterable[warnings.WarningMessage]) -> Iterator[str]:
    """What the user's own lines took from the example's numbers or sizes while it was traced, and the graph now holds for good."""
    for warning in heard:
        place = Path(warning.filename)
        theirs = any(place.is_relative_to(folder) for folder in channel.folders)
        if theirs and issubclass(warning.category, torch.jit.TracerWarning):
            yield f"What {place.name}, line {warning.lineno}, decides by a tensor, the graph holds decided, as for made-up inputs."


def dynamo(network: nn.Module, feeds: dict[str, torch.Tensor], free: Mapping[str, dict[int, str]], out: str) -> int | None:
    """torch.export's graph; free dimensions by name. Returns the opset it was written in.

    Not optimized by the exporter: its rules take any number within 1e-8 of 0 for 0 and drop the guard in log(x + 1e-10), without
    a word.  Our own fusion folds exactly, and tells.
    """
    shapes = {name: free.get(name) for name in feeds} if free else None
    program = torch.onnx.export(
        network, (), kwargs=feeds, dynamo=True, opset_version=OPSETS["dynamo"], dynamic_shapes=shapes, verbose=False, optimize=False
    )
    program.save(out, external_data=sum(tensor.nbytes for tensor in network.state_dict().values()) > INLINE)
    return program.model.opset_imports.get("")


def legacy(network: nn.Module, feeds: dict[str, torch.Tensor], free: Mapping[str, dict[int, str]], out: str) -> int | None:
    """The traced graph of torch's older exporter. PRESERVE keeps it from folding BatchNorms, of which it would leave no trace."""
    torch.onnx.export(
        network,
        (),
        out,
        kwargs=feeds,
        dynamo=False,
        opset_version=OPSETS["legacy"],
        input_names=list(feeds),
        dynamic_axes=dict(free),
        training=torch.onnx.TrainingMode.PRESERVE,
    )
    opsets = onnx.load(out, load_external_data=False).opset_import
    return next((entry.version for entry in opsets if entry.domain == ""), None)
