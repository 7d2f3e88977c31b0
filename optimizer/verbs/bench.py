"""`bench`: engines, and the models they came from, timed against each other in interleaved pairs on the same inputs."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from kernels.load import Load, fewest, load_test
from kernels.target import this_cpu
from kernels.timing import Timing, race
from optimizer import importers
from optimizer.data import open_samples, random_samples
from optimizer.engine import Arrays, Engine, check
from optimizer.errors import InputError
from optimizer.importers import ImportRequest
from optimizer.model import TensorSpec
from optimizer.package.load import LoadedEngine, load
from optimizer.plan import Shape
from optimizer.preprocessing import Preprocessing
from optimizer.progress import Track, silent
from optimizer.reference import Reference

_FEEDS = 16


@dataclass(frozen=True)
class Bench:
    """Timings by name, each against the first one; `inputs` says what they ran on; `loads` are load tests, where they were asked for."""

    timings: Mapping[str, Timing]
    baseline: str
    inputs: str
    loads: Mapping[str, Load] = field(default_factory=dict)


def bench(
    paths: Sequence[Path],
    *,
    seconds: float = 10.0,
    evaluation: str | None = None,
    shapes: Mapping[str, Shape] | None = None,
    trust: bool = False,
    threads: int | None = None,
    concurrency: int | None = None,
    seed: int = 0,
    track: Track = silent,
) -> Bench:
    """Time engine folders, and ONNX models run as they are by ONNX Runtime, against the first of `paths`.

    They run on seeded random numbers by the first one's inputs (free dimensions 1, or the usual size of `shapes`), or on the
    first samples of `evaluation`, prepared as that engine's passport says. `threads` counts for models; an engine keeps its own.
    `trust` lets engines run libraries of custom operators that they bring. With a `concurrency` each is put to a load test, too, of so
    many clients that ask again as soon as they are answered, for `seconds` altogether.

    Raises:
        InputError: nothing to time, a model that can't be read, or inputs that do not fit all of them.
        VerificationError, UnavailableError: an engine that is not what its passport says, or can't run here.
    """
    cpu = this_cpu()
    names = _names(paths)
    with ExitStack() as stack:
        engines = {name: stack.enter_context(_opened(path, threads or cpu.cores, trust)) for name, path in zip(names, paths, strict=True)}
        first = engines[names[0]]
        feeds, told = _feeds(first, evaluation, shapes or {}, seed)
        for name, engine in engines.items():
            _fits(name, engine, feeds[0])
        runs = {name: _run(engine, feeds) for name, engine in engines.items()}
        timings = race(runs, names[0], seconds=seconds, timed_on=cpu.device, track=track, seed=seed)
        loads = {} if concurrency is None else _loads(runs, concurrency, seconds / len(runs), cpu.device, track)
    return Bench(timings, names[0], told, loads)


def _loads(runs: Mapping[str, Callable[[], object]], concurrency: int, seconds: float, device: str, track: Track) -> dict[str, Load]:
    """A load test of each, one after the other, long enough to bound a p99."""
    loads = {}
    for number, (name, run) in enumerate(runs.items()):
        track("load test", number, len(runs))
        loads[name] = load_test(run, requests=2 * fewest("p99"), seconds=seconds, concurrency=concurrency, timed_on=device)
    return loads


def _names(paths: Sequence[Path]) -> list[str]:
    """A name for each path, as short as it can be while they differ."""
    if not paths:
        raise InputError("There is nothing to time.", "Give one engine folder or more.")
    full = [path.resolve() for path in paths]
    if len(set(full)) < len(full):
        raise InputError("The same engine was given twice.", "Give each once: differences of one to itself are noise.")
    for parts in itertools.count(1):
        names = ["/".join(path.parts[-parts:]) for path in full]
        if len(set(names)) == len(names):
            return names
    raise AssertionError


@contextmanager
def _opened(path: Path, threads: int, trust: bool) -> Iterator[Engine]:
    if path.is_dir():
        with load(path, trust) as engine:
            yield engine
        return
    with tempfile.TemporaryDirectory() as scratch:
        model = importers.load(ImportRequest(path, Path(scratch), Path.cwd()))
        with closing(Reference(model.graph, threads=threads, optimized=True)) as reference:
            yield reference


def _feeds(engine: Engine, evaluation: str | None, shapes: Mapping[str, Shape], seed: int) -> tuple[list[Arrays], str]:
    """What to run on, and in words what that is."""
    inputs = tuple(_sized(spec, shapes) for spec in engine.inputs)
    if evaluation is None:
        sizes = ", ".join(f"{spec.name} {'x'.join(map(str, spec.shape))}" for spec in inputs)
        return list(random_samples(inputs, _FEEDS, seed)), f"random numbers ({sizes})"
    preprocessing = engine.passport.preprocessing if isinstance(engine, LoadedEngine) else Preprocessing()
    samples = open_samples(evaluation, inputs, preprocessing, Path.cwd())
    feeds: list[Arrays] = list(itertools.islice(samples, _FEEDS))
    return feeds, f"the first {len(feeds)} samples of {samples.source}"


def _sized(spec: TensorSpec, shapes: Mapping[str, Shape]) -> TensorSpec:
    if spec.name not in shapes:
        return spec
    usual = shapes[spec.name].usual
    if len(usual) != len(spec.shape):
        raise InputError(f"The input {spec.name!r} has {len(spec.shape)} dimensions, not {len(usual)}.", "Give --shapes as many sizes.")
    return replace(spec, shape=usual)


def _fits(name: str, engine: Engine, feed: Arrays) -> None:
    """Raises InputError, naming the engine, where it does not take the feed of the first one."""
    try:
        check(feed, engine.inputs)
    except InputError as error:
        raise InputError(f"{name} does not take the same inputs: {error.reason}", "Time engines of one model together.") from None


def _run(engine: Engine, feeds: Sequence[Arrays]) -> Callable[[], object]:
    """A run on the next of the feeds, in rotation."""
    turn = itertools.cycle(feeds)
    return lambda: engine.run(next(turn))
