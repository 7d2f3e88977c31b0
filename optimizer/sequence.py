"""Models that carry a state: an input takes what an output gave for the sample before, from zeros at the start of a sequence.

`[inputs.state] state = "stateN"` in optimize.toml says so.  Parent and engine are each run over the data in its order with their
own state fed back, so that what an engine loses may add up as it would in use.  What looks at one sample alone (calibration,
screening, the numeric gate) gets it with the state that the parent had there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.data import Samples
from optimizer.engine import Arrays
from optimizer.errors import InputError
from optimizer.model import Model, TensorSpec
from optimizer.preprocessing import Preprocessing

Run = Callable[[Arrays], Arrays]

_WINDOW = 5.0
"""Correlations are summed up to this many times the time that they sum up to (Sokal 1997): further out they are noise."""


def states_of(preprocessing: Preprocessing) -> dict[str, str]:
    """The inputs that carry a state, each with the output that it takes."""
    return {name: how.state for name, how in preprocessing.inputs.items() if how.state is not None}


def refuse_wrong_states(preprocessing: Preprocessing, model: Model) -> None:
    """Hold what optimize.toml says of states against the model.

    Raises:
        InputError: an output that the model does not have, or one of another type, rank or size than the input.
    """
    inputs, outputs = ({spec.name: spec for spec in specs} for specs in (model.inputs, model.outputs))
    for name, state in states_of(preprocessing).items():
        if state not in outputs:
            reason = f"optimize.toml says that the input {name!r} carries the output {state!r}, which the model does not have."
            raise InputError(reason, f"Its outputs are: {', '.join(outputs)}.")
        if not _fits(inputs[name], outputs[state]):
            reason = f"The input {name!r} ({_words(inputs[name])}) can't carry the output {state!r} ({_words(outputs[state])})."
            raise InputError(reason, "Name the output that has the type and shape of the input.")


def _fits(one: TensorSpec, other: TensorSpec) -> bool:
    pairs = zip(one.shape, other.shape, strict=False)
    sizes = all(a == b or isinstance(a, str) or isinstance(b, str) for a, b in pairs)
    return one.dtype == other.dtype and len(one.shape) == len(other.shape) and sizes


def _words(spec: TensorSpec) -> str:
    return f"{spec.dtype} {'x'.join(map(str, spec.shape)) or 'scalar'}"


class _Carrying:
    """A run over samples in their order that holds the state in between."""

    def __init__(self, run: Run, samples: Samples) -> None:
        self._run = run
        self._states = states_of(samples.preprocessing)
        self._starts = samples.starts
        self._held: dict[str, NDArray[Any]] = {}
        self._step = 0

    def step(self, feeds: Arrays) -> tuple[Arrays, Arrays]:
        """What the run was given for these feeds, and what it gave. The first of a sequence is run as it came."""
        if self._step in self._starts:
            self._held = {}
        self._step += 1
        fed = {**feeds, **self._held}
        outputs = self._run(fed)
        self._held = {name: outputs[state] for name, state in self._states.items()}
        return fed, outputs


def carried(run: Run, samples: Samples) -> Run:
    """`run` for one pass over `samples` in their order, its own state fed back; `run` itself where the model carries none."""
    if not states_of(samples.preprocessing):
        return run
    carrying = _Carrying(run, samples)
    return lambda feeds: carrying.step(feeds)[1]


@dataclass(frozen=True)
class Recorded:
    """`samples` with the states that `run` had there: each pass runs it over them, one sample at a time."""

    run: Run
    samples: Samples

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Arrays]:
        carrying = _Carrying(self.run, self.samples)
        return (carrying.step(feeds)[0] for feeds in self.samples)


def error_over_time(parent: Run, engine: Run, samples: Samples) -> tuple[float, ...]:
    """The engine's error at each sample, both with their own state fed back: of the float output where it is largest.

    States count only where the model gives nothing else.  Relative to the root mean square of the parent's output over all samples,
    so that quiet stretches do not blow it up; infinite where the engine gives what is no number.
    """
    one, other = carried(parent, samples), carried(engine, samples)
    errors: dict[str, list[float]] = {}
    energy: dict[str, float] = {}
    for feeds in samples:
        found = other(feeds)
        for name, array in one(feeds).items():
            if array.dtype.kind == "f" and array.size:
                exact = array.astype(np.float64)
                error = math.sqrt(float(np.square(found[name].astype(np.float64) - exact).mean()))
                errors.setdefault(name, []).append(error if math.isfinite(error) else math.inf)
                energy[name] = energy.get(name, 0.0) + float(np.square(exact).mean())
    states = set(states_of(samples.preprocessing).values())
    told = [name for name in errors if name not in states] or list(errors)
    relative = [_relative(errors[name], math.sqrt(energy[name] / len(errors[name]))) for name in told]
    return tuple(max(step) for step in zip(*relative, strict=True))


def _relative(errors: list[float], size: float) -> list[float]:
    return [error / size if size else (math.inf if error else 0.0) for error in errors]


def independent_after(errors: Sequence[float]) -> int:
    """How many consecutive samples of a sequence make one that does not depend on the next, by how long their errors stay alike.

    Twice the errors' autocorrelation time, which is 1 + twice the sum of their autocorrelations (Sokal, Monte Carlo Methods in
    Statistical Mechanics, 1997): with once, blocks still hang together (docs/gate.md).  1 where the errors do not vary, or are no
    numbers.
    """
    series = np.asarray(errors, np.float64)
    if len(series) < 2 or not np.isfinite(series).all() or not series.std() > 0:
        return 1
    spectrum = np.abs(np.fft.rfft(series - series.mean(), 2 * len(series))) ** 2
    correlation = np.fft.irfft(spectrum)[: len(series)]
    times = 2.0 * np.cumsum(correlation / correlation[0]) - 1.0
    enough = np.flatnonzero(np.arange(len(times)) >= _WINDOW * times)
    return max(1, round(2.0 * float(times[enough[0] if len(enough) else -1]) - 1.0))
