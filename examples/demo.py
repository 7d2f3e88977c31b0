"""The main job on a real trained checkpoint: examples/digits.pt becomes an engine for this CPU and one for an L4 that is not here.

    python examples/demo.py [OUT]

Writes the calibration and evaluation data beside OUT, prints the command before it runs it, and what to look at afterwards.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from digits_data import split, write

HERE = Path(__file__).resolve().parent


def main() -> int:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out/demo")
    data = out.parent / "digits"
    data.mkdir(parents=True, exist_ok=True)
    _, calibration, evaluation = split()
    write(calibration, data / "calibration.npz")
    write(evaluation, data / "evaluation.npz")
    examples = Path(os.path.relpath(HERE))
    command = [
        *("optimize", "build", f"{examples}/digits.pt", "--factory", f"{examples}/digits_model.py:make"),
        *("--shapes", "image=1x1x8x8", "--config", f"{examples}/digits.toml"),
        *("--calibration", f"{data}/calibration.npz", "--evaluation", f"{data}/evaluation.npz"),
        *("--target", "cpu", "--target", "l4", "--threads", "1", "-o", str(out)),
    ]
    print("$ " + shlex.join(command), flush=True)
    code = subprocess.run([str(Path(sys.executable).with_name("optimize")), *command[1:]], check=False).returncode
    if code == 0:
        tell(out)
    return code


def tell(out: Path) -> None:
    """The one thing that nobody else tells: the plan that was as tempting, and what it would have lost."""
    report = json.loads((out / "cpu" / "report.json").read_text())
    refused = [one for one in report["candidates"] if one["verdict"] == "fail" and one["drop"] is not None and (one["speedup"] or 0) > 1]
    for one in refused:
        print(f"\nTempting, and refused: {one['name']}, {one['speedup']:.2f}x as fast, would have lost {100 * one['drop']:.1f} points.")
    print(f"\nReports: {out}/cpu/report.html  {out}/l4/report.html")


if __name__ == "__main__":
    sys.exit(main())
