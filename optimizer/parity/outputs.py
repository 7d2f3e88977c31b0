"""What a metric keeps of a model's outputs, one sample at a time: memory holds one sample, a temporary file the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.data import Samples
from optimizer.engine import Arrays
from optimizer.errors import InputError
from optimizer.parity.metrics import Metric
from optimizer.progress import Track, silent
from optimizer.sequence import carried, states_of

Array = NDArray[Any]

_IN_MEMORY = 64 << 20
"""Bytes of kept outputs from which on they lie in a temporary file."""

BROKEN = -1
"""The decision of an output that holds NaN or infinity: no class, so always wrong."""


@dataclass(frozen=True)
class Reading:
    """How the answer is read from the outputs: which output (None: all), along which axis the classes lie (None: the output is
    one score a position, or a decision itself), and at which score a binary answer turns positive (None: no binary answer).

    `whole` answers are those of all positions together (a text, of its letters): where one position changes, the answer does.
    """

    output: str | None
    axis: int | None = None
    threshold: float | None = None
    note: str = ""
    whole: bool = False


class Rows:
    """An append-only list of arrays of one dtype, in memory up to 64 MiB, then in an unnamed temporary file."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - lives and goes with this object
        self._shapes: list[tuple[int, ...]] = []
        self._starts = [0]
        self._dtype: np.dtype[Any] | None = None

    def append(self, row: Array) -> None:
        if self._dtype is None:
            self._dtype = row.dtype
        self._shapes.append(row.shape)
        self._starts.append(self._starts[-1] + row.size * self._dtype.itemsize)
        try:
            self._file.seek(self._starts[-2])
            self._file.write(np.ascontiguousarray(row, self._dtype).tobytes())
        except OSError as error:
            raise InputError(f"The outputs can't be kept for the gate: {error.strerror}.", "Free space in the temporary folder.") from None

    def __len__(self) -> int:
        return len(self._shapes)

    def __iter__(self) -> Iterator[Array]:
        for index, shape in enumerate(self._shapes):
            self._file.seek(self._starts[index])
            data = self._file.read(self._starts[index + 1] - self._starts[index])
            yield np.frombuffer(data, self._dtype).reshape(shape)

    def stacked(self) -> Array:
        """All rows as one array (n, ...).

        Raises:
            InputError: the rows differ in shape.
        """
        if len(set(self._shapes)) > 1:
            raise InputError("The outputs differ in shape from sample to sample.", "Use a metric that scores one sample at a time.")
        self._file.seek(0)
        return np.frombuffer(self._file.read(), self._dtype).reshape(len(self._shapes), *self._shapes[0])


@dataclass(frozen=True)
class Outputs:
    """What was kept of one model on all samples: rows by output name, how they were read, which samples had NaN or infinity.

    `in_sequence` says that each sample was run with the state that the one before it left.
    """

    reading: Reading
    rows: Mapping[str, Rows]
    broken: NDArray[np.bool_]
    in_sequence: bool = False

    def __len__(self) -> int:
        return len(self.broken)

    @property
    def only(self) -> Rows:
        return next(iter(self.rows.values()))


def collect(
    run: Callable[[Arrays], Arrays],
    samples: Iterable[Arrays],
    metric: Metric,
    labels: Array | None = None,
    *,
    like: Reading | None = None,
    track: Track = silent,
    step: str = "gate",
) -> Outputs:
    """Runs every sample and keeps what the metric needs. The engine is read `like` its parent.

    A model that carries a state is run in the samples' order with its own state fed back.  A feed whose inputs all have n rows,
    and whose output has as many, counts as n samples.

    Raises:
        InputError: no output can be read as the metric wants it.
    """
    reading, rows, broken = like, dict[str, Rows](), list[bool]()
    total, in_sequence = 0, False
    if isinstance(samples, Samples):
        total, in_sequence, run = len(samples), bool(states_of(samples.preprocessing)), carried(run, samples)
    for number, feeds in enumerate(samples):
        track(step, number, total)
        outputs = run(feeds)
        batch = _batch(feeds, outputs)
        for row in _split(outputs, batch):
            if reading is None:
                reading = reading_for(metric, row, None if labels is None else per_sample(labels, batch))
            kept = {name: _keep(metric, row[name], reading) for name in ([reading.output] if reading.output is not None else row)}
            broken.append(any(bad for _, bad in kept.values()))
            for name, (array, _) in kept.items():
                rows.setdefault(name, Rows()).append(array)
    if reading is None:
        raise InputError("There is no sample to evaluate.", "Give evaluation data with at least one sample.")
    if like is None and metric.keeps == "decision":
        reading = _with_threshold(reading, rows)
    return Outputs(reading, rows, np.array(broken, dtype=np.bool_), in_sequence)


def samples_of(feeds: Arrays, outputs: Arrays) -> Iterator[dict[str, Array]]:
    """The outputs of each sample that a feed holds, without the batch axis."""
    return _split(outputs, _batch(feeds, outputs))


def _batch(feeds: Arrays, outputs: Arrays) -> int:
    """How many samples a feed holds: the first size of every input, where an output has it too, else 1."""
    sizes = {array.shape[0] if array.ndim else 1 for array in feeds.values()}
    size = sizes.pop() if len(sizes) == 1 else 1
    return size if any(array.ndim and array.shape[0] == size for array in outputs.values()) else 1


def _split(outputs: Arrays, batch: int) -> Iterator[dict[str, Array]]:
    for index in range(batch):
        yield {name: array[index] if array.ndim and array.shape[0] == batch else array for name, array in outputs.items()}


def per_sample(labels: Array, batch: int) -> Array:
    """Labels (feeds, batch, ...) as (samples, ...): a feed of one sample has no batch axis in its labels."""
    return labels if batch == 1 else labels.reshape(-1, *labels.shape[2:])


def reading_for(metric: Metric, row: Arrays, labels: Array | None) -> Reading:
    """The first output that the metric can read, given one sample's outputs and all labels.

    Raises:
        InputError: there is none.
    """
    if metric.keeps == "outputs":
        return Reading(None)
    shape = None if labels is None or not metric.needs_labels else _trimmed(labels.shape[1:])
    classes = 0 if shape is None or labels is None or labels.dtype.kind == "f" else int(labels.max(initial=0)) + 1
    for name, output in row.items():
        fits, axis = _fits(metric, output, shape, classes)
        if fits:
            many = f"judged by the output {name!r}, the first of {len(row)} that fits" if len(row) > 1 else ""
            return Reading(name, axis, note=many)
    found = ", ".join(f"{name} {output.dtype} {list(output.shape)}" for name, output in row.items())
    wanted = f" and labels of shape {list(shape)}, classes up to {classes - 1}" if shape is not None and classes else ""
    raise InputError(f"{metric.name} can't be read from the outputs ({found}){wanted}.", "Choose another metric with --metric.")


def _fits(metric: Metric, output: Array, shape: tuple[int, ...] | None, classes: int) -> tuple[bool, int | None]:
    """Whether the metric can read an output of one sample, and along which axis its classes lie."""
    trimmed = _trimmed(output.shape)
    if metric.keeps == "numbers":
        return output.dtype.kind == "f" and (shape is None or trimmed == shape), None
    if metric.keeps == "score":
        return output.dtype.kind == "f" and output.size in (1, 2), None
    if metric.keeps == "decision" and output.dtype.kind in "iub":
        return (shape is None or trimmed == shape), None
    if output.dtype.kind != "f":
        return False, None
    if metric.keeps == "decision" and ((shape is None and output.size == 1) or (shape == trimmed and classes <= 2)):
        return True, None
    if shape is None:
        axis = 0 if output.ndim > 2 else output.ndim - 1
        if metric.keeps == "decision" and trimmed and output.shape[axis] == 1:
            return True, None  # a map of one channel is a binary answer a position
        return bool(trimmed), axis if trimmed else None
    axes = range(output.ndim) if output.ndim > 2 else reversed(range(output.ndim))
    for axis in axes:
        if _trimmed(output.shape[:axis] + output.shape[axis + 1 :]) == shape and output.shape[axis] >= max(classes, 2):
            return True, axis
    return False, None


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _keep(metric: Metric, output: Array, reading: Reading) -> tuple[Array, bool]:
    """What stays of one output of one sample, and whether it held NaN or infinity.

    Minus infinity before a decision is how models mask a class, and no fault.
    """
    floating = output.dtype.kind == "f"
    decides = metric.keeps in ("decision", "best five")
    bad = floating and bool(np.isnan(output).any() or (output == np.inf).any() or (not decides and np.isinf(output).any()))
    if metric.keeps == "outputs":
        return output, bad
    if metric.keeps == "numbers":
        return output.astype(np.float32).reshape(-1), bad
    if metric.keeps == "score":
        flat = output.astype(np.float64).reshape(-1)
        return flat[-1:] - flat[:1] if flat.size == 2 else flat, bad
    if metric.keeps == "best five":
        axis = reading.axis if reading.axis is not None else -1
        best = np.argsort(-output, axis=axis, kind="stable").take(range(min(5, output.shape[axis])), axis=axis)
        kept = np.moveaxis(best, axis, -1).reshape(-1, best.shape[axis])
        return np.full_like(kept, BROKEN) if bad else kept, bad
    if not floating:
        return output.astype(np.int64).reshape(-1), bad
    if reading.axis is None:
        return output.astype(np.float64).reshape(-1), bad
    decision = output.argmax(axis=reading.axis).reshape(-1)
    return np.full_like(decision, BROKEN) if bad else decision, bad


def _with_threshold(reading: Reading, rows: Mapping[str, Rows]) -> Reading:
    """A binary answer turns at 0.5 where all of the parent's scores lie in 0..1 (probabilities), else at 0 (logits)."""
    kept = next(iter(rows.values()))
    extremes = [(float(row.min()), float(row.max())) for row in kept if row.dtype.kind == "f" and row.size]
    if not extremes:
        return reading
    probable = all(low >= 0.0 and high <= 1.0 for low, high in extremes)
    threshold = 0.5 if probable else 0.0
    note = f"scores over {threshold:g} count as positive"
    return Reading(reading.output, reading.axis, threshold, f"{reading.note}; {note}" if reading.note else note)


def decisions(outputs: Outputs, threshold: float | None) -> Iterator[Array]:
    """The kept decisions, binary scores turned into 0 and 1; BROKEN where the output held NaN or infinity."""
    for row, bad in zip(outputs.only, outputs.broken, strict=True):
        if row.dtype.kind != "f":
            yield row
        elif bad or threshold is None:
            yield np.full(row.shape, BROKEN)
        else:
            yield (row > threshold).astype(np.int64)
