"""Part of torch_export.py and torch_run.py: the inputs of a network, their types, and the sizes that they are tried in."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from optimizer.child import Channel

WHOLE = frozenset({"ids", "id", "index", "indices", "mask", "token", "tokens", "label", "labels", "position", "positions"})
"""Words in the names of inputs that hold integers."""

MOST_GUESSED = 6
"""Types of more inputs than that are not tried in all combinations."""

SHAPES = "Pass --shapes, for instance --shapes {}=1x3x224x224 (1:4:16 in place of a size gives it a range)."


class Inputs:
    """The inputs of a network: names, shapes as [smallest, usual, largest], types that it runs with, sizes to try.

    `run(**feeds)` is the network. `labels` name free dimensions by (input, axis); those of one label have one size. `dtypes` are
    tried out where they are not known; integers are made up from 0 to `limits` (exclusive; default 2).
    """

    def __init__(
        self,
        run: Callable[..., Any],
        shapes: Mapping[str, Any],
        labels: Mapping[tuple[str, int], str],
        dtypes: Mapping[str, torch.dtype] | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> None:
        self.run, self.shapes, self.limits = run, shapes, limits or {}
        self.free = {
            name: [axis for axis, (low, high) in enumerate(zip(smallest, largest)) if low != high]
            for name, (smallest, _, largest) in shapes.items()
        }
        self.labels = {(name, axis): labels.get((name, axis), f"{name}_{axis}") for name, axes in self.free.items() for axis in axes}
        self.dtypes = dtypes or self._dtypes()
        whole = [name for name, dtype in self.dtypes.items() if dtype != torch.float32]
        self.notes = [f"Input {name!r} is {str(self.dtypes[name])[6:]}, the type that forward runs with." for name in whole]

    def _dtypes(self) -> Mapping[str, torch.dtype]:
        """The first types that the network runs with: those that the names suggest, all float, all integer, then any; else their error."""
        first: Exception | None = None
        for guess in guesses(list(self.shapes)):
            self.dtypes = guess
            try:
                self.run(**self.example({}))
                return guess
            except Exception as error:
                first = first or error
        assert first is not None
        raise first

    def example(self, sizes: Mapping[tuple[str, int], int]) -> dict[str, torch.Tensor]:
        """Made-up inputs of the usual shape, some dimensions in other `sizes`: normal numbers, or small integers."""
        torch.manual_seed(0)
        feeds = {}
        for name, (_, usual, _) in self.shapes.items():
            shape = [sizes.get((name, axis), size) for axis, size in enumerate(usual)]
            kind = self.dtypes[name]
            whole = torch.randint(0, self.limits.get(name, 2), shape)
            feeds[name] = torch.randn(shape).to(kind) if kind.is_floating_point else whole.to(kind)
        return feeds

    def completed(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`feeds`, with made-up ones for inputs that are not there, as large as those of the same label."""
        sizes = {self.labels[name, axis]: feeds[name].shape[axis] for name, axis in self.labels if name in feeds}
        alike = {tuple(self.three(*key)): feeds[key[0]].shape[key[1]] for key in self.labels if key[0] in feeds}
        known = {key: sizes.get(label, alike.get(tuple(self.three(*key)))) for key, label in self.labels.items()}
        return {**self.example({key: size for key, size in known.items() if size is not None}), **feeds}

    def traced(self) -> dict[str, torch.Tensor]:
        """The example for an exporter, which takes a free dimension of 0 or 1 for a constant."""
        return self.example({key: max(self.three(*key)[1], min(2, self.three(*key)[2])) for key in self.labels})

    def named(self) -> dict[str, dict[int, str]]:
        """The labels of free dimensions by input and axis."""
        return {name: {axis: self.labels[name, axis] for axis in axes} for name, axes in self.free.items() if axes}

    def three(self, name: str, axis: int) -> list[int]:
        """The smallest, usual and largest size of a dimension."""
        return [shape[axis] for shape in self.shapes[name]]

    def probes(self, channel: Channel) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """Inputs at the usual shape, then with each free dimension at two more sizes at which the network itself runs.

        All that have the same three sizes move together, and then that one alone, but not to 1: what is given once is broadcast in
        PyTorch, and need not be in a graph.
        """
        yield "the usual shape", self.example({})
        seen: set[tuple[Any, ...]] = set()
        first: dict[str, tuple[str, int]] = {}
        for key, label in self.labels.items():
            first.setdefault(label, key)
        for label, (name, axis) in first.items():
            smallest, usual, largest = self.three(name, axis)
            ran = 0
            for size in dict.fromkeys((smallest, usual + 1, largest, (smallest + usual) // 2)):
                if ran < 2 and size != usual and smallest <= size <= largest:
                    running = [(sizes, feeds) for sizes in self._moves(label, size) if (feeds := self._running(sizes)) is not None]
                    ran += bool(running)
                    for sizes, feeds in running:
                        if tuple(sizes.items()) not in seen:
                            seen.add(tuple(sizes.items()))
                            yield f"{name}[{axis}] = {size}", feeds
            if not ran:
                channel.refuse(
                    f"The network runs at no other size of dimension {axis} of {name!r} than {usual}.",
                    "Fix that dimension in --shapes, or give sizes that the network takes.",
                )

    def zeros(self) -> dict[str, torch.Tensor] | None:
        """The usual example with all its numbers 0, where the network takes that; what holds integers or masks stays as it is.

        There the guards work that keep an answer finite (the epsilon of a logarithm or a division), which random numbers never need.
        """
        numbers = [name for name, dtype in self.dtypes.items() if dtype.is_floating_point and not whole_numbers(name)]
        feeds = self.example({})
        feeds.update({name: torch.zeros_like(feeds[name]) for name in numbers})
        try:
            self.run(**feeds)
        except Exception:  # it wants numbers that are not all alike
            return None
        return feeds if numbers else None

    def _moves(self, label: str, size: int) -> list[dict[tuple[str, int], int]]:
        alone = {key: size for key, other in self.labels.items() if other == label}
        alike = self.three(*next(iter(alone)))
        together = {key: size for key in self.labels if self.three(*key) == alike}
        return [together] if size == 1 or together == alone else [together, alone]

    def _running(self, sizes: Mapping[tuple[str, int], int]) -> dict[str, torch.Tensor] | None:
        """The example in these sizes, where they are ones that the network takes."""
        feeds = self.example(sizes)
        try:
            self.run(**feeds)
        except Exception:  # they are not
            return None
        return feeds


def of_forward(channel: Channel, network: nn.Module, shapes: Mapping[str, Any]) -> Inputs:
    """The inputs of a network's forward, whose `shapes` the user gave."""
    wanted = arguments(network)
    known = {name: shapes[name] for name in wanted if name in shapes}
    missing = [name for name, needed in wanted.items() if needed and name not in shapes]
    if unknown := [name for name in shapes if name not in wanted]:
        channel.refuse(
            f"The network's forward has no argument {unknown[0]!r}; it takes {', '.join(wanted)}.",
            SHAPES.format(next(iter(wanted), "x")),
        )
    if missing:
        channel.refuse(f"The shape of the network's input {missing[0]!r} is not known.", SHAPES.format(missing[0]))
    with channel.theirs("The network", "Correct its forward, then build again."), torch.no_grad():
        return Inputs(network, known, {})


def arguments(network: nn.Module) -> dict[str, bool]:
    """The arguments of forward, and which of them have no default; a TorchScript program has them in its schema."""
    if isinstance(network, torch.jit.ScriptModule):
        return {argument.name: not argument.has_default_value() for argument in network.forward.schema.arguments[1:]}
    parameters = inspect.signature(network.forward).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}}


def guesses(names: Sequence[str]) -> Iterator[dict[str, torch.dtype]]:
    """Types to try, the likeliest first."""
    likely = {name: torch.int64 if whole_numbers(name) else torch.float32 for name in names}
    yield likely
    yield dict.fromkeys(names, torch.float32)
    yield dict.fromkeys(names, torch.int64)
    if len(names) <= MOST_GUESSED:
        kinds = [(torch.bool, torch.int64, torch.float32) if "mask" in name.lower() else (torch.float32, torch.int64) for name in names]
        combinations = [dict(zip(names, combination)) for combination in itertools.product(*kinds)]
        yield from sorted(combinations, key=lambda one: sum(one[name] != likely[name] for name in names))


def whole_numbers(name: str) -> bool:
    return not WHOLE.isdisjoint(name.lower().split("_"))
