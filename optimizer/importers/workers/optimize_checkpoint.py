"""Part of torch_export.py: reads a checkpoint without running anything that it names, and puts its weights into a network."""

from __future__ import annotations

import contextlib
import pickletools
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from optimizer.child import Channel

NESTS = (
    *("state_dict", "model_state_dict", "model_state", "model", "ema", "ema_state_dict", "params_ema"),
    *("net", "network", "params", "weights", "module", "generator", "net_g", "g_ema"),
)
"""Where training scripts put the weights, the likeliest first."""

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name, the latter also in the middle, where a part was compiled."""

HARNESSES = 3
"""How many attributes deep a training harness may hold the network."""

SAVE_WEIGHTS = (
    "Where you trust the file, pass --trust, or load it yourself and save the weights alone: torch.save(model.state_dict(), FILE)."
)
IMPORTABLE = (
    "Call optimize from the folder in which the model's code can be imported; what was saved as __main__ is looked up in the file "
    "that --factory names."
)


def read(channel: Channel, request: Mapping[str, Any]) -> tuple[Any, bool]:
    """What lies in the checkpoint, all its shards together, on the CPU, and whether code that it names may have run.

    It has not unless the user trusts the file and torch's `weights_only` loader would not have it.
    """
    parts = [Path(part) for part in request["parts"]]
    if request["kind"] == "safetensors":
        loaded = [safetensors(channel, part) for part in parts]
        return together(loaded), False
    try:
        return together([torch.load(part, map_location="cpu", weights_only=True) for part in parts]), False
    except Exception as error:
        refused = error
    said = " ".join(str(refused).split())
    unsafe = asked_for(parts[0], said)
    if unsafe and request["trust"]:
        return trusted(channel, request), True
    if unsafe:
        what = "holds a whole network" if "torch.nn.modules" in unsafe else "holds more than weights"
        channel.refuse(
            f"{request['name']} {what}: it asks for {unsafe}, which only running code from the file could build; nothing in it was run.",
            SAVE_WEIGHTS,
        )
    channel.refuse(f"{request['name']} can't be read as a checkpoint: {type(refused).__name__}: {said[:200]}", "Get the whole file.")


def safetensors(channel: Channel, file: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        channel.refuse(f"Reading {file.name} needs safetensors, which is not installed.", "Run pip install safetensors.", exit_code=5)
    try:
        return load_file(str(file))  # type: ignore[no-any-return]
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        channel.refuse(f"{file.name} can't be read as a checkpoint: {type(error).__name__}: {said}", "Get the whole file.")


def together(loaded: list[Any]) -> Any:
    """What lies in one file, or the weights of all shards."""
    if len(loaded) == 1:
        return loaded[0]
    return {name: tensor for shard in loaded for name, tensor in shard.items()}


def trusted(channel: Channel, request: Mapping[str, Any]) -> Any:
    """What lies in a file that the user trusts, its classes found in their folder."""
    channel.see(Path(request["folder"]))
    if request["factory"] is not None:  # what a script saved calls its classes __main__'s; they are where the factory is
        home = sys.modules[channel.function(request["factory"], "factory").__module__]
        for name, value in vars(home).items():
            if not name.startswith("__"):
                setattr(sys.modules["__main__"], name, value)
    with channel.theirs(f"Loading {request['name']}", IMPORTABLE):
        return together([torch.load(part, map_location="cpu", weights_only=False) for part in request["parts"]])


def whole(value: Any) -> Iterator[tuple[str, nn.Module]]:
    """The networks that were saved whole, the likeliest first, each with its place in the checkpoint."""
    if isinstance(value, nn.Module):
        yield "", value
    elif isinstance(value, Mapping):
        keys = [key for key in value if isinstance(key, str) and isinstance(value[key], nn.Module)]
        for key in sorted(keys, key=likeliness):
            yield key, value[key]


def asked_for(file: Path, said: str) -> str:
    """The Python objects that a pickle names and the loader refuses, as far as that can be told without running it."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # no zip file of torch's, or an older torch; read what it says of one object, or the pickle's own words
        names = [said.partition("GLOBAL")[2].split()[0]] if "GLOBAL" in said else list(named(file))
    names = sorted(names, key=lambda name: not name.startswith("torch.nn.modules"))  # a whole network is told by them
    return ", ".join(dict.fromkeys(names[:4]))


def named(file: Path) -> Iterator[str]:
    """The objects outside torch that a plain pickle names, read from its instructions."""
    words: list[str] = []
    with file.open("rb") as stream, contextlib.suppress(Exception):  # not a pickle, or broken from here on
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
    for key in sorted(keys, key=likeliness):
        yield from states(value[key], f"{place}.{key}" if place else key, depth + 1)


def likeliness(key: str) -> int:
    return NESTS.index(key) if key in NESTS else len(NESTS)


def without_prefix(state: dict[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights without what was put before their names: by torch, or by a harness that held the network as an attribute."""
    found = [unwrapped(state, wanted)]
    for _ in range(HARNESSES):
        for inner in found:
            if not differences(inner, wanted):
                return inner
        found = [unwrapped(part, wanted) for inner in found for part in attributes(inner)]
    return next((inner for inner in found if not differences(inner, wanted)), unwrapped(state, wanted))


def unwrapped(state: dict[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights without torch's own prefixes."""
    while prefix := next((prefix for prefix in PREFIXES if state and all(key.startswith(prefix) for key in state)), None):
        if any(key.startswith(prefix) for key in wanted):
            break
        state = {key[len(prefix) :]: tensor for key, tensor in state.items()}
    if any("._orig_mod." in key for key in wanted):
        return state
    return {key.replace("._orig_mod.", "."): tensor for key, tensor in state.items()}


def attributes(state: Mapping[str, torch.Tensor]) -> Iterable[dict[str, torch.Tensor]]:
    """The weights under each first part of the names, without it."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        first, dot, rest = key.partition(".")
        if dot:
            parts.setdefault(first, {})[rest] = tensor
    return parts.values()


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
    kinds = {str(tensor.dtype)[len("torch.") :] for tensor in network.state_dict().values() if tensor.is_floating_point()}
    if kinds - {"float32"}:
        network.float()
        yield f"Weights in {', '.join(sorted(kinds - {'float32'}))} were taken to float32."
