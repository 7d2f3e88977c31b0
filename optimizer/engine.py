"""What was built, what it was seen to do, and the protocol of a thing that runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kernels.load import Load
from kernels.timing import Timing
from optimizer.errors import InputError
from optimizer.model import TensorSpec
from optimizer.plan import Plan

Arrays = Mapping[str, NDArray[Any]]
"""Arrays by the name of the input or output."""

LIBRARY = "engine.so"
"""File beside an engine that brings the operators which its runtime lacks: native code of the user's, loaded with it."""

Verdict = Literal["pass", "fail", "inconclusive"]


class Engine(Protocol):
    """A loaded engine. `run` takes what the model takes, every input by name, and returns every output by name."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def peak_bytes(self) -> int | None:
        """Memory that a run needs beside the weights, where the engine tells."""
        ...

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Realised:
    """What became of one layer: read back from the built engine and set beside the plan.

    `realised` is a precision, or "folded" where the layer no longer exists in the engine; `reason` says why it differs
    from `planned`, `ms` is the time it took in the engine's own profile, where that can be had.  `weights` and `activations` are
    the bytes that its kernel reads of the one and writes of the other, None where it runs inside another layer's kernel or nobody
    tells; `multiplications` how often it multiplies by a weight in a run, None where it holds no weights.
    """

    layer: str
    operator: str
    planned: str
    realised: str
    kernel: str = ""
    ms: float | None = None
    reason: str = ""
    weights: int | None = None
    activations: int | None = None
    multiplications: int | None = None


@dataclass(frozen=True)
class Launch:
    """One kernel launch of an engine: the source layers it covers, its type, the bytes it reads and writes."""

    name: str
    kind: str
    layers: tuple[str, ...]
    precision: str
    bytes: int


@dataclass(frozen=True)
class Built:
    """What a build tells, even where the engine can't be loaded. `memory` holds bytes by kind (weights, activations ...)."""

    realised: tuple[Realised, ...]
    memory: Mapping[str, int] = field(default_factory=dict)
    launches: tuple[Launch, ...] = ()
    notes: tuple[str, ...] = ()
    """What the build lost or changed, in the user's words: goes into the report."""

    def elsewhere(self, why: str) -> Built:
        """What this tells of another target than the machine that built it: no times, and `why` as a note; all of it where that is ""."""
        if not why:
            return self
        return replace(self, realised=tuple(replace(layer, ms=None) for layer in self.realised), notes=(*self.notes, why))


@dataclass(frozen=True)
class Parity:
    """The answer to "does the engine lose less than the budget?", with one-sided 95 % bounds of the drop.

    `drop`, `low`, `high` and `budget` are in the metric's own unit, positive where the engine is worse; `threshold` is the
    parent's metric less the budget, which the engine must keep. Scores are None where there is nothing to measure.
    """

    verdict: Verdict
    metric: str
    parent: float | None
    engine: float | None
    budget: float | None
    drop: float | None
    low: float | None
    high: float | None
    samples: int
    samples_needed: int | None
    gated_on: str
    reason: str
    notes: tuple[str, ...] = ()
    threshold: float | None = None


@dataclass(frozen=True)
class Rung:
    """One step of the parity ladder: a form of the model against its parent and against the form before, on the same samples.

    `agreement`, `sqnr_db` and `max_abs` are held against the parent.  `difference` is held against the form called `against`, relative
    to the size of the output, and `explained` is how much of it rounding at the form's precision explains: the rung `breaks` where it
    is several times as much.  `worst_layer` is then the first layer that diverges; of a lossy rung that holds, the one that loses most
    by itself.  `sizes` tells in which sizes of the inputs this was seen; `over_time`, of a model that carries a state, is the error at
    each step of a sequence.
    """

    rung: str
    metric: str
    agreement: float | None
    sqnr_db: float | None
    max_abs: float | None
    output_sensitivity: float | None
    worst_layer: str | None = None
    note: str = ""
    against: str = ""
    difference: float | None = None
    explained: float | None = None
    breaks: bool = False
    sizes: tuple[str, ...] = ()
    over_time: tuple[float, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A plan that was tried: what it built to, how fast it was, how far from the parent, and what became of it.

    `name` is short and unique in a search ("int8", "int8 without 3 layers"); `distance` is the relative error of the worst output on
    the screening samples; `agreement` is the share of decisions that stayed the same there, `flip_rate` the share that is predicted to
    change, with one-sided 95 % bounds `flip_low` and `flip_high` (None where the outputs decide nothing); `seconds` is what finding,
    building and screening it took, `gain` how many times as fast it is as the fastest of those that were tried before it; `loads` are
    load tests of it; `outcome` is "shipped", "passed", "refused", "slower", "not finalist" or "not built".
    """

    name: str
    plan: Plan
    folder: Path | None = None
    built: Built | None = None
    timing: Timing | None = None
    distance: float | None = None
    agreement: float | None = None
    flip_rate: float | None = None
    flip_low: float | None = None
    flip_high: float | None = None
    seconds: float | None = None
    gain: float | None = None
    parity: Parity | None = None
    loads: tuple[Load, ...] = ()
    outcome: str = "tried"
    reason: str = ""

    @property
    def loss(self) -> float | None:
        """What it is predicted to lose, from calibration samples alone: the share of decisions that change.

        Where the outputs decide nothing it is what the mean cosine to the parent's loses, half the squared error.  A plan without a
        lossy step loses nothing, unless it gives no numbers; None where a lossy one was not screened.
        """
        if self.plan.lossless and self.distance != math.inf:
            return 0.0
        if self.flip_rate is not None or self.distance is None:
            return self.flip_rate
        return self.distance**2 / 2


@dataclass(frozen=True)
class Point:
    """A candidate on the Pareto front of latency against loss: nothing that was tried is both faster and nearer to the parent.

    `loss` is predicted from calibration samples: the share of decisions that change where `decides`, else what the outputs' cosine
    to the parent's loses; `milliseconds` and `speedup` are measured.
    """

    name: str
    backend: str
    milliseconds: float
    speedup: float
    loss: float
    decides: bool


class SourceRun(Protocol):
    """The parent in the framework that trained it, run beside the graph that was imported from it: the ladder's first rung."""

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Every output of the imported model by name, as the source framework computes it."""
        ...

    def layers(self, feeds: Arrays, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """What the layers called `names` give, by layer name; those that the framework can't show are left out."""
        ...

    def close(self) -> None: ...


def check(feeds: Arrays, inputs: Sequence[TensorSpec]) -> None:
    """Refuse feeds that do not fit an engine's inputs: names, dtypes, ranks, fixed sizes, and free sizes that go by one name.

    Raises:
        InputError: the first thing that is wrong.
    """
    wanted = f"The engine takes {', '.join(_words(spec) for spec in inputs)}."
    if missing := [spec.name for spec in inputs if spec.name not in feeds]:
        raise InputError(f"There is no array for input {missing[0]!r}.", wanted)
    if len(feeds) > len(inputs):
        unknown = sorted(feeds.keys() - {spec.name for spec in inputs})
        raise InputError(f"There is no input called {unknown[0]!r}.", wanted)
    free: dict[str, tuple[int, str]] = {}
    for spec in inputs:
        array = feeds[spec.name]
        if not isinstance(array, np.ndarray):
            raise InputError(f"Input {spec.name!r} is a {type(array).__name__}, not a numpy array.", wanted)
        if array.dtype.name != spec.dtype and not (spec.dtype == "object" and array.dtype.kind in "OSU"):
            reason = f"Input {spec.name!r} has dtype {array.dtype.name}, not {spec.dtype}."
            raise InputError(reason, f"{wanted} Convert it with .astype({spec.dtype!r}).")
        if len(array.shape) != len(spec.shape) or any(
            isinstance(size, int) and size != found for size, found in zip(spec.shape, array.shape, strict=True)
        ):
            raise InputError(f"Input {spec.name!r} has shape {_size(array.shape)}, not {_size(spec.shape)}.", wanted)
        for size, found in zip(spec.shape, array.shape, strict=True):
            if isinstance(size, str) and not size.startswith("?") and free.setdefault(size, (found, spec.name))[0] != found:
                other, name = free[size]
                raise InputError(f"{size!r} is {found} in input {spec.name!r} and {other} in input {name!r}.", wanted)


def checker(inputs: Sequence[TensorSpec]) -> Callable[[Arrays], None]:
    """`check` for one engine: where sizes are fixed, feeds that fit cost a fifth of it, which counts beside a run of 50 microseconds."""
    fixed = [(spec.name, np.dtype(spec.dtype), spec.shape) for spec in inputs if all(isinstance(size, int) for size in spec.shape)]

    def checked(feeds: Arrays) -> None:
        if len(feeds) == len(fixed) == len(inputs):
            for name, dtype, shape in fixed:
                array = feeds.get(name)
                if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
                    break
            else:
                return
        check(feeds, inputs)

    return checked


def _words(spec: TensorSpec) -> str:
    return f"{spec.name} ({spec.dtype} {_size(spec.shape)})"


def _size(shape: Sequence[int | str]) -> str:
    return "x".join(map(str, shape)) if shape else "scalar"
