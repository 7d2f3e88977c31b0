"""Damaged files of every format, thousands of them: each is read or refused in words, and nothing else ever happens.

    python -m benchmarks.fuzz                         all formats, from the repository's root
    python -m benchmarks.fuzz --only onnx npz --times 2      some formats, twice as many files
    python -m benchmarks.fuzz --only onnx --number 17        one file again, with what became of it

Each file goes the way that `optimize build` sends it (`importers.load` with its worker processes, `open_samples` read to the end,
`request_from_words`, `plan_from_file`), in a process that stands for the parent.  A violation is any exception but
OptimizeError, the death of that process, more than LIMIT seconds, an error that is not two plain sentences, a file made or
changed anywhere but in the scratch folder, and an error about a format's first file, which is whole.  Prints a table of counts
and exits with 1 where there was a violation.  Seeded: the same SEED damages the same way.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing import connection, get_context
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import fuzz_mutations as mutations
from benchmarks import fuzz_seeds

LIMIT = 300.0
MEMORY = 6 << 30
PARENTS = 2
WHOLE = 0
"""The number of a file that is left as it was, and has to be read."""


@dataclass(frozen=True)
class Format:
    """`count` files; `given` is a pattern of what optimize is given, `damaged` one of the files that are damaged (default: the same)."""

    count: int
    read: Callable[[Path, Path, Mapping[str, Any]], None]
    given: str
    mutations: tuple[mutations.Mutation, ...]
    damaged: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


def imported(case: Path, given: Path, options: Mapping[str, Any]) -> None:
    from optimizer import importers
    from optimizer.plan import Shape

    shapes = {name: Shape(size, size, size) for name, size in options.get("shapes", {}).items()}
    importers.load(importers.ImportRequest(given, case / "scratch", case / "user", **{**options, "shapes": shapes}))


def sampled(case: Path, given: Path, options: Mapping[str, Any]) -> None:
    from optimizer.data import open_samples
    from optimizer.model import TensorSpec
    from optimizer.preprocessing import InputPreprocessing, Preprocessing

    preprocessing = Preprocessing({name: InputPreprocessing(**how) for name, how in options.get("inputs", {}).items()})
    for _ in open_samples(given.name, (TensorSpec("x", "float32", options["shape"]),), preprocessing, case / "user"):
        pass


def configured(case: Path, given: Path, _options: Mapping[str, Any]) -> None:
    from optimizer.request import request_from_words

    request_from_words("model.onnx", "out", config=given, folder=case / "user")


def planned(_case: Path, given: Path, _options: Mapping[str, Any]) -> None:
    from optimizer.planner.given import plan_from_file

    plan_from_file(given)


NETWORK = {"factory": "net.py:make", "shapes": {"x": (1, 3, 8, 8)}}
TRUSTED = {"shapes": {"x": (1, 3, 8, 8)}, "trust": True}
IMAGES = {"shape": (None, 3, 8, 8)}
HOLDER = (*mutations.BYTES, mutations.header, mutations.header)

FORMATS = {
    "onnx": Format(500, imported, "*.onnx", mutations.PROTOBUF),
    "onnx, external data": Format(150, imported, "conv.onnx", mutations.PROTOBUF, "conv.*"),
    "PyTorch checkpoint": Format(60, imported, "*.pt", mutations.ZIP, options=NETWORK),
    "TorchScript": Format(50, imported, "net.ts", mutations.ZIP, options=TRUSTED),
    "torch.export": Format(50, imported, "net.pt2", mutations.ZIP, options=TRUSTED),
    "safetensors": Format(60, imported, "*.safetensors", HOLDER, options=NETWORK),
    "safetensors, sharded": Format(40, imported, "*.index.json", mutations.TEXT, "*.index.json", options=NETWORK),
    "Hugging Face": Format(40, imported, "bert", mutations.TEXT, "bert/*"),
    "Keras": Format(60, imported, "*.keras", mutations.ZIP),
    "HDF5": Format(60, imported, "*.h5", mutations.BYTES),
    "SavedModel": Format(60, imported, "saved", mutations.PROTOBUF, "saved/**/*.*"),
    "frozen graph": Format(50, imported, "*.pb", mutations.PROTOBUF),
    "TFLite": Format(60, imported, "*.tflite", mutations.BYTES),
    "npz": Format(250, sampled, "*.npz", mutations.ZIP, options=IMAGES),
    "npy": Format(150, sampled, "data", mutations.BYTES, "data/*", options=IMAGES),
    "images": Format(250, sampled, "data", mutations.BYTES, "data/*/*", options={**IMAGES, "inputs": {"x": {"layout": "NHWC"}}}),
    "wav": Format(150, sampled, "*.wav", mutations.BYTES, options={"shape": (1, 512), "inputs": {"x": {"rate": 16_000, "window": 512}}}),
    "parquet": Format(200, sampled, "*.parquet", mutations.BYTES, options={"shape": (None, 3)}),
    "csv": Format(150, sampled, "*.csv", mutations.TEXT, options={"shape": (None, 3)}),
    "optimize.toml": Format(200, configured, "*.toml", mutations.TEXT),
    "plan.json": Format(200, planned, "*.json", mutations.TEXT),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a file: `accepted`, `refused` or `violation`, in words, and the seconds that it took."""

    kind: str
    said: str
    seconds: float


def made(seeds: Path, case: Path, name: str, number: int, seed: int) -> Path:
    """The folder of a case, one file of it damaged; the path that optimize is given."""
    draw, how = Random(f"{seed}/{name}/{number}"), FORMATS[name]
    shutil.copytree(seeds / name, case / "user")
    (case / "scratch").mkdir()
    given = draw.choice(sorted((case / "user").glob(how.given)))
    damaged = draw.choice(sorted(file for file in (case / "user").glob(how.damaged) if file.is_file())) if how.damaged else given
    if number != WHOLE:
        damaged.write_bytes(draw.choice(how.mutations)(draw, damaged.read_bytes()))
    return given


def read(case: Path, given: Path, name: str) -> Outcome:
    """Read a case here and now."""
    from optimizer.errors import OptimizeError

    before, start = _files(case), time.monotonic()
    try:
        FORMATS[name].read(case, given, FORMATS[name].options)
        kind, said = "accepted", ""
    except OptimizeError as error:
        plain = all(0 < len(words) < 2_000 and "Traceback" not in words for words in (error.reason, error.remedy))
        kind, said = "refused" if plain else "violation", f"{error.reason} {error.remedy}"
    except BaseException:
        kind, said = "violation", "\n".join(traceback.format_exc().splitlines()[-12:])
    seconds = time.monotonic() - start
    if changed := sorted(before ^ _files(case)):
        return Outcome("violation", f"files were made or changed: {changed[:5]}", seconds)
    return Outcome(kind, said, seconds)


def _files(case: Path) -> set[tuple[str, int, int]]:
    """The files of a case and beside it, but for its scratch folder's; a library may write a file anew as it was."""
    files = [file for file in case.parent.rglob("*") if not file.is_relative_to(case / "scratch") and file.is_file()]
    return {(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files}


def seeded(folder: Path, names: list[str]) -> None:
    """Write the whole files, in a process of its own: TensorFlow is loud and large."""
    hush()
    fuzz_seeds.write(folder, names)


def hush() -> None:
    """Let nothing that libraries print, from C++ either, stand between the lines of the table."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)


def parent(line: connection.Connection) -> None:
    """A process that reads one case after the other."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    hush()
    while True:
        line.send(read(*line.recv()))


class Parent:
    """A parent at work, started anew where it died or had to be ended."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = get_context("spawn")
        self.line, theirs = context.Pipe()
        self._process = context.Process(target=parent, args=(theirs,))
        self._process.start()
        theirs.close()
        self.name, self.number, self._since = "", 0, 0.0

    def give(self, case: Path, given: Path, name: str, number: int) -> None:
        self.name, self.number, self._since = name, number, time.monotonic()
        self.case = case
        self.line.send((case, given, name))

    def outcome(self) -> Outcome | None:
        """What became of its case, None while it is at work."""
        seconds = time.monotonic() - self._since
        name, number = self.name, self.number
        try:
            if self.line.poll():
                return self.line.recv()
            if seconds < LIMIT:
                return None
            said = f"took more than {LIMIT:.0f} s"
            self._process.kill()
            self._process.join()
        except (EOFError, ConnectionResetError):
            self._process.join()
            said = f"the parent died with {self._process.exitcode}"
        self._start()
        self.name, self.number = name, number
        return Outcome("violation", said, seconds)

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def outcomes(seeds: Path, root: Path, cases: Iterator[tuple[str, int]], seed: int) -> Iterator[tuple[str, int, Outcome]]:
    """What became of each case, as they end."""
    parents = [Parent() for _ in range(PARENTS)]
    busy: list[Parent] = []
    try:
        while True:
            while len(busy) < PARENTS and (case := next(cases, None)) is not None:
                free = next(one for one in parents if one not in busy)
                folder = root / str(parents.index(free)) / "case"
                free.give(folder, made(seeds, folder, *case, seed), *case)
                busy.append(free)
            if not busy:
                return
            connection.wait([one.line for one in busy], timeout=1)
            for one in list(busy):
                if (outcome := one.outcome()) is not None:
                    if one.number == WHOLE and outcome.kind == "refused":
                        outcome = replace(outcome, kind="violation")
                    shutil.rmtree(one.case.parent)
                    busy.remove(one)
                    yield one.name, one.number, outcome
    finally:
        for one in parents:
            one.end()


def table(found: Mapping[str, list[Outcome]]) -> Iterator[str]:
    """Counts by format, in markdown."""
    yield "| format | files | read | refused | of these, the worker crashed | violations | seconds a file, mean (most) |"
    yield "|---|---|---|---|---|---|---|"
    for name, all_ in [*found.items(), ("all", [one for several in found.values() for one in several])]:
        kinds = Counter(one.kind for one in all_)
        crashed = sum(one.kind == "refused" and " crashed with " in one.said for one in all_)
        seconds = [one.seconds for one in all_]
        counts = f"{kinds['accepted']} | {kinds['refused']} | {crashed} | {kinds['violation']}"
        yield f"| {name} | {len(all_)} | {counts} | {sum(seconds) / max(len(all_), 1):.2f} ({max(seconds, default=0):.1f}) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FORMATS, default=list(FORMATS), metavar="FORMAT")
    parser.add_argument("--times", type=float, default=1.0)
    parser.add_argument("--number", type=int)
    parser.add_argument("--seed", type=int, default=4)
    words = parser.parse_args()
    found: dict[str, list[Outcome]] = {name: [] for name in words.only}
    with tempfile.TemporaryDirectory() as folder:
        root, seeds = Path(folder), Path(folder) / "seeds"
        seeds.mkdir()
        writer = get_context("spawn").Process(target=seeded, args=(seeds, words.only))
        writer.start()
        writer.join()
        numbers = {name: range(round(FORMATS[name].count * words.times)) if words.number is None else [words.number] for name in words.only}
        cases = ((name, number) for name in words.only for number in numbers[name])
        for name, number, outcome in outcomes(seeds, root, cases, words.seed):
            found[name].append(outcome)
            if outcome.kind == "violation" or words.number is not None:
                print(f"{name} {number}: {outcome.kind}: {outcome.said}", file=sys.stderr, flush=True)
    print("\n".join(table(found)))
    sys.exit(any(one.kind == "violation" for several in found.values() for one in several))


if __name__ == "__main__":
    main()
