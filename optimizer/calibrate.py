"""Calibration: the data streams once through the graph, and integer counts of every tensor remain.

Each sample runs alone and on one thread, as many samples side by side as there are threads, and counts add up exactly: the
table is the same bits for any order, split or number of threads.  ONNX Runtime may optimize the graph, which on a ResNet-50 takes
an eighth of the time away: a tensor's last bits then depend on which others are watched with it, never on the data around it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing

import numpy as np
import onnx_ir as ir

from calibration.observers import Statistics
from calibration.table import Table
from optimizer.engine import Arrays
from optimizer.errors import InputError
from optimizer.graph import clone, constant, elements, floats, infer_shapes, readers
from optimizer.model import Model
from optimizer.progress import Track, silent
from optimizer.reference import Reference

RUN_BYTES = 256 << 20
"""What the watched tensors of one run may hold; a graph with more is run several times a sample, for a slice of them each."""

_SIDE_BY_SIDE = 8
"""Samples in memory at once, at most: more would gain little, because counting holds Python's lock."""

_ABSORB = frozenset({"Add", "Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that every engine fuses into the layer that writes their input, which is then never seen from outside."""

_REARRANGES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "DepthToSpace", "SpaceToDepth"})
"""Operators whose output holds the very numbers of their first input: counted once."""


def calibrate(
    model: Model,
    samples: Iterable[Arrays],
    *,
    key: Mapping[str, str],
    tensors: Sequence[str] | None = None,
    track: Track = silent,
    threads: int = 1,
    run_bytes: int = RUN_BYTES,
) -> Table:
    """The statistics of `tensors` (default: `watched(model)`) over all samples, each a feed by input name.

    Memory does not grow with the samples: at most `threads` of them are in flight, each with `run_bytes` of tensors.

    Raises:
        InputError: there are no samples, or the same one over and over; an input or activation holds NaN, or nothing but
            infinities; a sample can't be run.
    """
    typed = _typed(model.graph)
    computed = {value.name or "": value for value in floats(typed.graph)}
    wanted = watched(model) if tensors is None else tuple(tensors)
    source = {name: _source(computed[name]).name or "" for name in wanted}
    counted = set(source.values())
    feeds = iter(samples)
    first = next(feeds, None)
    if first is None:
        raise InputError("The calibration data holds no samples.", "Give data with at least one sample.")
    sizes = _bytes(typed, [name for name in computed if name in counted], first)
    with ExitStack() as stack:
        runs = [(part, stack.enter_context(closing(Reference(typed, watch=part, optimized=True)))) for part in _slices(sizes, run_bytes)]
        counting = _Counting(runs, {name: _words(value) for name, value in computed.items()})
        total = len(samples) if isinstance(samples, Sized) else 0
        count = counting.through(_varied(first, feeds), max(1, min(threads, _SIDE_BY_SIDE)), track, total)
    seen = counting.statistics()
    for name in sizes:
        if seen[name].count == 0 and seen[name].infs > 0:
            raise InputError(
                f"{counting.words[name]} is infinite everywhere in the calibration data.", "Check the model and its preprocessing."
            )
    return Table(dict(key), {name: seen[source[name]] for name in wanted}, count)


def watched(model: Model) -> tuple[str, ...]:
    """The tensors that Q/DQ could stand on: float, computed at run time, in the order in which the graph makes them.

    What only a Relu, or a Clip from 0 on, reads of a kernel's result is left out: no engine writes it.
    """
    computed = floats(_typed(model.graph).graph)
    return tuple(value.name or "" for value in computed if constant(value) is None and not _is_clipped(value))


def _typed(graph: ir.Model) -> ir.Model:
    """The graph with its tensors' types and shapes inferred, where it came without some of the types."""
    if all(value.dtype is not None for node in graph.graph for value in node.outputs if value.name):
        return graph
    inferred = clone(graph)
    infer_shapes(inferred)
    return inferred


def _is_clipped(value: ir.Value) -> bool:
    """Whether a kernel that writes integers does the Relu behind it by its own clipping, so that nobody writes this value."""
    after, producer = readers(value), value.producer()
    if producer is None or producer.op_type not in _ABSORB or len(after) != 1 or value.is_graph_output():
        return False
    return after[0].op_type == "Relu" or (after[0].op_type == "Clip" and _from_zero(after[0]))


def _from_zero(clip: ir.Node) -> bool:
    low, high = (clip.inputs[index] if index < len(clip.inputs) else None for index in (1, 2))
    start = constant(low)
    return start is not None and not start.any() and (high is None or constant(high) is not None)


def _source(value: ir.Value) -> ir.Value:
    """The value whose numbers a value holds, perhaps in another arrangement."""
    while (producer := value.producer()) is not None and producer.op_type in _REARRANGES:
        before = producer.inputs[0]
        if before is None or before.dtype != ir.DataType.FLOAT or constant(before) is not None:
            break
        value = before
    return value


def _words(value: ir.Value) -> str:
    producer = value.producer()
    return f"The input {value.name!r}" if producer is None else f"The output of {producer.name!r} ({producer.op_type})"


def _bytes(graph: ir.Model, tensors: Sequence[str], feed: Arrays) -> dict[str, int]:
    """Bytes of each tensor for this feed; one whose size can't be known before it is run counts as the largest known.

    In a graph of free dimensions larger samples need more, but which tensors are run together never changes their numbers.
    """
    sized = graph
    if any(elements(value) is None for value in floats(graph.graph) if value.name in tensors):
        sized = clone(graph)
        for value in sized.graph.inputs:
            if (array := feed.get(value.name or "")) is not None:
                value.shape = ir.Shape(array.shape)
        infer_shapes(sized)
    found = {value.name or "": elements(value) for value in floats(sized.graph)}
    largest = max((size for name in tensors if (size := found.get(name)) is not None), default=1)
    return {name: 4 * (largest if (size := found.get(name)) is None else size) for name in tensors}


def _slices(sizes: Mapping[str, int], limit: int) -> list[tuple[str, ...]]:
    """The tensors in their order, cut where a run's bytes would pass the limit; one tensor alone may."""
    slices: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if slices[-1] and filled + size > limit:
            slices.append([])
            filled = 0
        slices[-1].append(name)
        filled += size
    return [tuple(part) for part in slices]


def _varied(first: Arrays, others: Iterable[Arrays]) -> Iterator[Arrays]:
    """The samples as they are; raises after the last if no input was ever different from the first sample's."""
    yield first
    constant_so_far, count = set(first), 1
    for feed in others:
        count += 1
        constant_so_far = {name for name in constant_so_far if np.array_equal(feed[name], first[name])}
        yield feed
    if count == 1:
        constant_so_far = {name for name, array in first.items() if array.size == 0 or (array == array.flat[0]).all()}
    if len(constant_so_far) == len(first) > 0:
        what = "one sample of one number only" if count == 1 else f"the same sample {count} times"
        raise InputError(f"The calibration data is constant: {what}.", "Give samples like those that the model will meet.")


class _Counting:
    """Counts every watched tensor of every sample; several threads may see samples at the same time."""

    def __init__(self, runs: Sequence[tuple[tuple[str, ...], Reference]], words: Mapping[str, str]) -> None:
        self.words = words
        self._runs = runs
        self._idle: list[dict[str, Statistics]] = []

    def through(self, feeds: Iterable[Arrays], side_by_side: int, track: Track, total: int) -> int:
        """Sees every feed, `side_by_side` at a time; returns how many there were."""
        running: deque[Future[None]] = deque()
        count = 0
        with ThreadPoolExecutor(side_by_side) as pool:
            for index, feed in enumerate(feeds):
                running.append(pool.submit(self._see, index, feed))
                # Results are taken in the samples' order, so that of several bad samples the first is told.
                while len(running) > side_by_side:
                    running.popleft().result()
                    count += 1
                    track("calibrating", count, total)
            while running:
                running.popleft().result()
                count += 1
                track("calibrating", count, total)
        return count

    def statistics(self) -> dict[str, Statistics]:
        """What all threads together have seen."""
        merged: dict[str, Statistics] = {}
        for part in self._idle:
            for name, seen in part.items():
                merged[name] = merged[name].merge(seen) if name in merged else seen
        return merged

    def _see(self, index: int, feed: Arrays) -> None:
        """Adds a sample to statistics that no other thread is adding to now."""
        try:
            own = self._idle.pop()
        except IndexError:
            own = {}
        for names, reference in self._runs:
            try:
                arrays = reference.run(feed)
            except InputError as error:
                raise InputError(f"Calibration sample {index}: {error.reason}", error.remedy) from None
            for name in names:
                before = own.get(name, Statistics.nothing())
                own[name] = before.then(arrays.pop(name))  # popped: freed as soon as it is counted
                if own[name].nans:
                    remedy = "Take that sample out, or look for what makes it NaN: a division by zero, a logarithm, an overflow."
                    raise InputError(f"{self.words[name]} is NaN in calibration sample {index}.", remedy)
        self._idle.append(own)
