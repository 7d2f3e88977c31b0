"""Part of torch_export.py: the arguments of a network's forward, their types, and the sizes that they are tried in."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from optimizer.child import Channel

WHOLE = frozenset({"ids", "index", "indices", "mask", "token", "tokens", "label", "labels", "position", "positions"})
"""Words in the names of inputs that hold integers."""

SHAPES = "Pass --shapes, for instance --shapes {}=1x3x224x224 (1:4:16 in place of a size gives it a range)."


class Inputs:
    """The arguments of a network's forward: names, types that it runs with, sizes to try."""

    def __init__(self, channel: Channel, network: nn.Module, shapes: Mapping[str, Any]) -> None:
        parameters = inspect.signature(network.forward).parameters.values()
        named = [p for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}]
        names = [p.name for p in named]
        needed = [p.name for p in named if p.default is p.empty]
        unknown, missing = [name for name in shapes if name not in names], [name for name in needed if name not in shapes]
        if unknown:
            channel.refuse(
                f"The network's forward has no argument {unknown[0]!r}; it takes {', '.join(names)}.",
                SHAPES.format(names[0] if names else "x"),
            )
        if missing:
            channel.refuse(f"The shape of the network's input {missing[0]!r} is not known.", SHAPES.format(missing[0]))
        self.shapes = {name: shapes[name] for name in names if name in shapes}
        self.free = {
            name: [axis for axis, (low, high) in enumerate(zip(smallest, largest, strict=True)) if low != high]
            for name, (smallest, _, largest) in self.shapes.items()
        }
        self.dtypes = self._dtypes(network)
        whole = [name for name, dtype in self.dtypes.items() if dtype == torch.int64]
        self.notes = [f"Input {name!r} is int64, the type that forward runs with." for name in whole]

    def _dtypes(self, network: nn.Module) -> dict[str, torch.dtype]:
        """Float or integer for each input: by its name, all float, all integer; the first that runs, else the first's error."""
        guess = {name: torch.int64 if whole_numbers(name) else torch.float32 for name in self.shapes}
        first: Exception | None = None
        for self.dtypes in (guess, dict.fromkeys(guess, torch.float32), dict.fromkeys(guess, torch.int64)):
            try:
                network(**self.example({}))
                return self.dtypes
            except Exception as error:
                first = first or error
        assert first is not None
        raise first

    def example(self, sizes: Mapping[tuple[str, int], int]) -> dict[str, torch.Tensor]:
        """Made-up inputs of the usual shape, some dimensions in other `sizes`: normal numbers, or 0 and 1 for integers."""
        torch.manual_seed(0)
        feeds = {}
        for name, (_, usual, _) in self.shapes.items():
            shape = [sizes.get((name, axis), size) for axis, size in enumerate(usual)]
            feeds[name] = torch.randn(shape) if self.dtypes[name] == torch.float32 else torch.randint(0, 2, shape)
        return feeds

    def traced(self) -> dict[str, torch.Tensor]:
        """The example for an exporter, which takes a free dimension of 0 or 1 for a constant."""
        sizes = {}
        for name, axes in self.free.items():
            _, usual, largest = self.shapes[name]
            sizes.update({(name, axis): max(usual[axis], min(2, largest[axis])) for axis in axes})
        return self.example(sizes)

    def probes(self, channel: Channel, network: nn.Module) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """Inputs at the usual shape, then with each free dimension at two more sizes at which the network itself runs.

        Where it does not run with that dimension alone at another size, all that have the same three sizes move together.
        """
        yield "the usual shape", self.example({})
        for name, axes in self.free.items():
            for axis in axes:
                sizes = [shape[axis] for shape in self.shapes[name]]
                ran = 0
                for size in dict.fromkeys((sizes[0], sizes[1] + 1, sizes[2], (sizes[0] + sizes[1]) // 2)):
                    if ran < 2 and size != sizes[1] and sizes[0] <= size <= sizes[2]:
                        feeds = self._running(network, name, axis, size)
                        if feeds is not None:
                            ran += 1
                            yield f"{name}[{axis}] = {size}", feeds
                if not ran:
                    channel.refuse(
                        f"The network runs at no other size of dimension {axis} of {name!r} than {sizes[1]}.",
                        "Fix that dimension in --shapes, or give sizes that the network takes.",
                    )

    def zeros(self, network: nn.Module) -> dict[str, torch.Tensor] | None:
        """The usual example with all its numbers 0, where the network takes that; what holds integers or masks stays as it is.

        There the guards work that keep an answer finite (the epsilon of a logarithm or a division), which random numbers never need.
        """
        numbers = [name for name, dtype in self.dtypes.items() if dtype == torch.float32 and not whole_numbers(name)]
        feeds = self.example({})
        feeds.update({name: torch.zeros_like(feeds[name]) for name in numbers})
        try:
            network(**feeds)
        except Exception:  # it wants numbers that are not all alike
            return None
        return feeds if numbers else None

    def _running(self, network: nn.Module, name: str, axis: int, size: int) -> dict[str, torch.Tensor] | None:
        alike = [shape[axis] for shape in self.shapes[name]]
        together = {(other, k): size for other, axes in self.free.items() for k in axes if [s[k] for s in self.shapes[other]] == alike}
        for sizes in ({(name, axis): size}, together):
            feeds = self.example(sizes)
            try:
                network(**feeds)
                return feeds
            except Exception:  # this size is not one of the network's
                continue
        return None


def whole_numbers(name: str) -> bool:
    return not WHOLE.isdisjoint(name.lower().split("_"))
