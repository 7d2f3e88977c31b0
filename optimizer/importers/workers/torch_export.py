"""Turns a network of PyTorch's into an ONNX file, in a process of its own that finds none of our packages.

The request: `file`, `name`, `kind` and `parts` (see `_torch_file`), `trust`, `factory`, `factory_args`, `folder` (the user's), `shapes`
{input: [smallest, usual, largest]}, `exporter` ("dynamo" or "legacy"), `out`.  The answers: `model` {modules, outputs, versions, notes,
trusted, code_ran}, then `exported` {opset, notes} or `unexportable` {said}, then `probe` {words, zeros} with the inputs and outputs of
the network itself, at each size tried and where all numbers are 0.  Beside torch it needs onnx, which both exporters import, and
onnxscript for the newer one; it is written for torch 1.13 and Python 3.8.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optimize_network
import torch

if TYPE_CHECKING:
    from optimizer.child import Channel

OPSETS = {"dynamo": 20, "legacy": 17}
INLINE = 1 << 30
DECIDED = "Choose with torch.where, which computes both ways, and leave checks out of forward."


def main(channel: Channel) -> None:
    request = channel.receive().event
    opened = optimize_network.opened(channel, request)
    with channel.theirs("The network", "Correct its forward, then build again."), torch.no_grad():
        outputs = opened.inputs.run(**opened.inputs.example({}))
    channel.send(
        "model",
        modules=opened.modules,
        outputs=optimize_network.output_names(outputs),
        notes=[*opened.notes, *opened.inputs.notes],
        versions={"torch": torch.__version__, "python": platform.python_version(), **opened.versions},
        trusted=opened.trusted,
        code_ran=opened.code_ran,
    )
    export(channel, opened, request)
    with torch.no_grad():
        for words, feeds in opened.inputs.probes(channel):
            probe(channel, opened, words, feeds)
        if (zeros := opened.inputs.zeros()) is not None:
            probe(channel, opened, "all-zero inputs", zeros, zeros=True)


def probe(channel: Channel, opened: optimize_network.Opened, words: str, feeds: Mapping[str, torch.Tensor], zeros: bool = False) -> None:
    """Send what the network answers to `feeds`."""
    arrays = {f"in.{name}": tensor.numpy() for name, tensor in feeds.items()}
    outputs = optimize_network.tensors_of(opened.inputs.run(**feeds))
    channel.send("probe", {**arrays, **{f"out.{n}": tensor.numpy() for n, tensor in enumerate(outputs)}}, words=words, zeros=zeros)


def export(channel: Channel, opened: optimize_network.Opened, request: Mapping[str, Any]) -> None:
    """Write the ONNX file."""
    exporter = request["exporter"]
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always", torch.jit.TracerWarning)
            {"dynamo": dynamo, "legacy": legacy}[exporter](opened, request["out"])
    except Exception as error:
        cause = root(error)
        if type(cause).__name__ == "GuardOnDataDependentSymNode":
            channel.refuse(f"What forward decides by the numbers in a tensor{channel.place(cause)} can't be told in a graph.", DECIDED)
        channel.send("unexportable", said=f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}")
        channel.hang_up()
    channel.send("exported", opset=OPSETS[exporter], notes=list(dict.fromkeys(decided(channel, heard))))


def root(error: BaseException) -> BaseException:
    """What an exporter wrapped in advice on how to report it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def decided(channel: Channel, heard: Iterable[warnings.WarningMessage]) -> Iterator[str]:
    """What the user's own lines took from the example's numbers or sizes while it was traced, and the graph now holds for good."""
    for warning in heard:
        place = Path(warning.filename)
        theirs = any(folder in place.parents for folder in channel.folders)
        if theirs and issubclass(warning.category, torch.jit.TracerWarning):
            yield f"What {place.name}, line {warning.lineno}, decides by a tensor, the graph holds decided, as for made-up inputs."


def dynamo(opened: optimize_network.Opened, out: str) -> None:
    """torch.export's graph; free dimensions by name.

    Not optimized by the exporter: its rules take any number within 1e-8 of 0 for 0 and drop the guard in log(x + 1e-10), without
    a word.  Our own fusion folds exactly, and tells.
    """
    if not optimize_network.takes(torch.onnx.export, "optimize"):
        raise RuntimeError(f"torch {torch.__version__} does not have it")
    how = {"dynamo": True, "opset_version": OPSETS["dynamo"], "verbose": False, "optimize": False}
    if opened.program is not None:
        written = torch.onnx.export(opened.program, **how)
    else:
        feeds, free = opened.inputs.traced(), opened.inputs.named()
        shapes = {name: free.get(name) for name in feeds} if free else None
        written = torch.onnx.export(opened.network, (), kwargs=feeds, dynamic_shapes=shapes, **how)
    size = sum(tensor.numel() * tensor.element_size() for tensor in opened.network.state_dict().values())
    written.save(out, external_data=size > INLINE)


def legacy(opened: optimize_network.Opened, out: str) -> None:
    """The traced graph of torch's older exporter. PRESERVE keeps it from folding BatchNorms, of which it would leave no trace."""
    feeds = opened.inputs.traced()
    with positional(opened, list(feeds)):
        torch.onnx.export(
            opened.network,
            tuple(feeds.values()),
            out,
            **({"dynamo": False} if optimize_network.takes(torch.onnx.export, "dynamo") else {}),
            opset_version=OPSETS["legacy"],
            input_names=list(feeds),
            dynamic_axes=opened.inputs.named(),
            training=torch.onnx.TrainingMode.PRESERVE,
        )


@contextmanager
def positional(opened: optimize_network.Opened, names: list[str]) -> Iterator[None]:
    """Let forward take its inputs in order and give its tensors flat: releases differ in what else that exporter takes."""
    network = opened.network
    if isinstance(network, torch.jit.ScriptModule):
        yield  # its schema has them in order
        return
    forward = network.forward
    network.forward = lambda *given: tuple(optimize_network.tensors_of(forward(**dict(zip(names, given)))))
    try:
        yield
    finally:
        del network.forward
