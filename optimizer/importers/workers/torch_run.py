"""Keeps a network of PyTorch's open and runs it: the parent of an imported graph, in its own framework.

The request is that of torch_export.py, without `exporter` and `out`; the answer `ready` {modules}. Then, again and again: `run` {layers}
with arrays `in.NAME`, answered by `ran` with arrays `out.N` and, for each of `layers` [[path, place, pieces, recurrent]] that can be
shown, `layer.N`.  A module is shown by what its call gave: it became `pieces` nodes in the graph, alike for each of its calls, of which the
last gives the call's result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import optimize_network
import torch
from torch import nn

if TYPE_CHECKING:
    from optimizer.child import Channel


def main(channel: Channel) -> None:
    opened = optimize_network.opened(channel, channel.receive().event)
    channel.send("ready", modules=opened.modules)
    modules = modules_heard(opened.network)
    with torch.no_grad():
        while True:
            asked = channel.receive()
            feeds = {name[len("in.") :]: torch.from_numpy(array.copy()) for name, array in asked.arrays.items()}
            layers = asked.event["layers"]
            paths = {path for path, *_ in layers if path in modules}
            with channel.theirs("The network", "Give inputs that it takes."), heard(modules, paths) as calls:
                outputs = optimize_network.tensors_of(opened.inputs.run(**opened.inputs.completed(feeds)))
            arrays = {f"out.{number}": tensor.numpy() for number, tensor in enumerate(outputs)}
            for number, (path, *place) in enumerate(layers):
                array = shown(modules[path], calls[path], *place) if path in calls else None
                if array is not None:
                    arrays[f"layer.{number}"] = array
            channel.send("ran", arrays)


def modules_heard(network: nn.Module) -> Mapping[str, nn.Module]:
    """The modules by path whose calls can be heard; inside TorchScript nobody hears them."""
    return {} if isinstance(network, torch.jit.ScriptModule) else dict(network.named_modules())


@contextmanager
def heard(modules: Mapping[str, nn.Module], paths: set[str]) -> Iterator[Mapping[str, list[Any]]]:
    """What each call of the modules at `paths` gives, by path, as long as this is open."""
    calls: dict[str, list[Any]] = {}

    def keep(path: str) -> Callable[..., None]:
        return lambda _module, _given, result: calls.setdefault(path, []).append(result)

    hooks = [modules[path].register_forward_hook(keep(path)) for path in paths]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def shown(module: nn.Module, calls: Sequence[Any], place: int, pieces: int, recurrent: bool) -> np.ndarray | None:
    """What the node at `place` of the `pieces` that the module's calls became gives, where that is what a call gave."""
    if pieces % len(calls) or (place + 1) % (pieces // len(calls)):
        return None
    result = calls[(place + 1) * len(calls) // pieces - 1]
    if recurrent:
        return by_direction(module, result[0])
    return result.numpy() if isinstance(result, torch.Tensor) else None


def by_direction(module: nn.Module, result: Any) -> np.ndarray | None:
    """The sequence that a recurrent module gave as ONNX has it: (time, direction, batch, features)."""
    if not isinstance(result, torch.Tensor) or result.dim() != 3:
        return None
    result = result.transpose(0, 1) if module.batch_first else result
    directions = 2 if module.bidirectional else 1
    return np.ascontiguousarray(result.unflatten(2, (directions, -1)).transpose(1, 2).numpy())
