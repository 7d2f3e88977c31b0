"""How much faster the second build of a model is than the first one: the same command twice, into the same folder.

    python -P benchmarks/second_build.py FOLDER ... [-- further words of optimize build]

Each FOLDER holds a model.onnx and an optimize.toml, as `benchmarks/engines_prepare.py` leaves one for every model.  Prints, in markdown,
the seconds of both builds as a user waits for them, from the command to its end, their ratio, and whether both told the same: verdict,
what shipped, drop, ladder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kernels.target import this_cpu

BAR = 5.0
"""The second build has to be at least so many times as fast as the first."""


def main() -> None:
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    folders, words = [Path(name) for name in sys.argv[1:split]], sys.argv[split + 1 :]
    if not folders:
        sys.exit(__doc__)
    print(f"CPU: {this_cpu().device}, {this_cpu().cores} cores\n")
    print("| model | first build, s | second build, s | times as fast | told the same |\n|---|---|---|---|---|")
    short = [folder.name for folder in folders if not fast_enough(folder.resolve(), words)]
    if short:
        sys.exit(f"below {BAR:g} times as fast: {', '.join(short)}")


def fast_enough(folder: Path, words: list[str]) -> bool:
    """Builds twice and prints the line of a model."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        (first, one), (second, other) = (built(folder, out, words) for _ in range(2))
    same = "yes" if told(one) == told(other) else "no"
    print(f"| {folder.name} | {first:.1f} | {second:.1f} | {first / second:.1f} | {same} |", flush=True)
    return first / second >= BAR


def built(folder: Path, out: Path, words: list[str]) -> tuple[float, dict[str, Any]]:
    """Seconds that a build took, and its report."""
    command = [sys.executable, "-P", "-c", "from optimizer.cli.main import main; main()"]
    asked = ["build", "model.onnx", "--config", "optimize.toml", "-o", str(out), *words]
    start = time.monotonic()
    done = subprocess.run([*command, *asked], cwd=folder, capture_output=True, text=True)
    seconds = time.monotonic() - start
    if not (out / "report.json").is_file():
        sys.exit(f"{folder.name}: {done.stderr.strip().splitlines()[-1]}")
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return seconds, report


def told(report: dict[str, Any]) -> list[Any]:
    """What a user decides by."""
    outcomes = [[one["name"], one["outcome"]] for one in report["candidates"]]
    return [report["verdict"], report["headline"], report["gate"], report["ladder"], outcomes]


if __name__ == "__main__":
    main()
