"""Part of torch_export.py: reads a checkpoint without running anything that it names, and puts its weights into a network."""

from __future__ import annotations

import contextlib
import pickletools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from optimizer.child import Channel

NESTS = (
    *("state_dict", "model_state_dict", "model_state", "model", "ema", "ema_state_dict", "params_ema"),
    *("net", "network", "params", "weights", "module"),
)
"""Where training scripts put the weights, the likeliest first."""

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""

SAVE_WEIGHTS = "Where you trust the file, load it yourself and save the weights alone: torch.save(model.state_dict(), FILE)."


def read(channel: Channel, request: Mapping[str, Any]) -> Any:
    """What lies in the checkpoint, on the CPU, built without running anything that the file names."""
    file, name = request["file"], request["name"]
    try:
        if file.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        said = " ".join(str(error).split())
        if "TorchScript" in said or "torch.jit" in said:
            channel.refuse(f"{name} is a TorchScript program, not a checkpoint.", "Give the checkpoint it was made from, and --factory.")
        if unsafe := asked_for(file, said):
            channel.refuse(
                f"{name} asks for {unsafe}, which only running code from the file could build; nothing in it was run.", SAVE_WEIGHTS
            )
        channel.refuse(f"{name} can't be read as a checkpoint: {type(error).__name__}: {said[:200]}", "Get the whole file.")


def asked_for(file: str, said: str) -> str:
    """The Python objects that a pickle names and the loader refuses, as far as that can be told without running it."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # no zip file of torch's; read what it says of one object, or the pickle's own words
        names = [said.partition("GLOBAL")[2].split()[0]] if "GLOBAL" in said else list(named(file))
    return ", ".join(dict.fromkeys(names[:4]))


def named(file: str) -> Iterator[str]:
    """The objects outside torch that a plain pickle names, read from its instructions."""
    words: list[str] = []
    with Path(file).open("rb") as stream, contextlib.suppress(Exception):  # not a pickle, or broken from here on
        for instruction, argument, _ in pickletools.genops(stream):
            if instruction.name == "GLOBAL":
                words = str(argument).split(" ")
            elif isinstance(argument, str):
                words.append(argument)
            if instruction.name in {"GLOBAL", "STACK_GLOBAL"} and not words[-2].startswith(("torch", "collections")):
                yield ".".join(words[-2:])


def filled(channel: Channel, name: str, network: nn.Module, checkpoint: Any) -> Iterator[str]:
    """Put the checkpoint's weights into the network; tell which ones, where the file holds several."""
    wanted = network.state_dict()
    found = [(place, without_prefix(state, wanted)) for place, state in states(checkpoint)]
    if not found:
        channel.refuse(f"{name} holds no weights by name, but {type(checkpoint).__name__}.", SAVE_WEIGHTS)
    place, state = next((pair for pair in found if not differences(pair[1], wanted)), found[0])
    if wrong := differences(state, wanted):
        more = f", and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        channel.refuse(
            f"The weights in {name} don't fit the network: {'; '.join(wrong[:4])}{more}.",
            "Let the factory build the network that was trained, with the same arguments (--factory-arg).",
        )
    network.load_state_dict({**wanted, **{key: state[key] for key in wanted if key in state}})
    if len(found) > 1:
        others = ", ".join(repr(other) for other, _ in found if other != place)
        yield f"The weights are those under {place!r}; the file also holds {others}."


def states(value: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Every mapping of names to tensors in a checkpoint, the likeliest first."""
    if not isinstance(value, Mapping) or depth > 4:
        return
    tensors = {key: tensor for key, tensor in value.items() if isinstance(key, str) and isinstance(tensor, torch.Tensor)}
    if tensors:
        yield place, tensors
    keys = [key for key in value if isinstance(key, str) and isinstance(value[key], Mapping) and "optim" not in key]
    for key in sorted(keys, key=lambda key: NESTS.index(key) if key in NESTS else len(NESTS)):
        yield from states(value[key], f"{place}.{key}" if place else key, depth + 1)


def without_prefix(state: dict[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights without what was put before their names: by torch, or by a harness that held the network as an attribute."""
    while prefix := next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in state)), None):
        if any(key.startswith(prefix) for key in wanted):
            break
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    for first in dict.fromkeys(f"{key.partition('.')[0]}." for key in state):
        inner = {key.removeprefix(first): tensor for key, tensor in state.items() if key.startswith(first)}
        if not differences(inner, wanted):
            return inner
    return state


def differences(state: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> list[str]:
    """Why these weights don't fit, in words; counters of batches seen don't matter."""
    names = {key for key in (*state, *wanted) if not key.endswith("num_batches_tracked")}
    missing = [f"{key!r} is missing" for key in wanted if key in names and key not in state]
    unexpected = [f"{key!r} is not in the network" for key in state if key in names and key not in wanted]
    sizes = [
        f"{key!r} is {tuple(state[key].shape)} in the file and {tuple(wanted[key].shape)} in the network"
        for key in wanted
        if key in state and key in names and state[key].shape != wanted[key].shape
    ]
    return [*missing[:1], *unexpected[:1], *sizes[:1], *missing[1:], *unexpected[1:], *sizes[1:]]


def in_float32(network: nn.Module) -> Iterator[str]:
    """Engines start from float32, whatever the weights were kept in."""
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in network.state_dict().values() if tensor.is_floating_point()}
    if kinds - {"float32"}:
        network.float()
        yield f"Weights in {', '.join(sorted(kinds - {'float32'}))} were taken to float32."
