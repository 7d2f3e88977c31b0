"""The main job on a checkpoint as people have it: ResNet-20 for CIFAR-10, for this CPU and for GPUs that are not here.

    python -P benchmarks/resnet20.py ASSETS [TARGET ...]

ASSETS is the folder with resnet20_cifar10.th, cifar10_calibration.npz and cifar10_evaluation.npz. Prints, in markdown, what was
tried for each target (default: cpu l4 t4) and each layer's planned and realised precision.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import optimizer

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def main() -> None:
    assets = Path(sys.argv[1])
    targets = sys.argv[2:] or ["cpu", "l4", "t4"]
    with tempfile.TemporaryDirectory() as folder:
        for target in targets:
            outcome = optimizer.build(
                assets / "resnet20_cifar10.th",
                Path(folder) / target,
                targets=(target,),
                factory=f"{EXAMPLES}/resnet20.py:make",
                shapes={"input": "1x3x32x32"},
                config=EXAMPLES / "cifar10.toml",
                calibration=str(assets / "cifar10_calibration.npz"),
                evaluation=str(assets / "cifar10_evaluation.npz"),
            )
            tell(target, outcome.report)
    print(f"CPU: {cpu()}")


def tell(target: str, report: Any) -> None:
    """One target's tables."""
    print(f"## {target}\n\n{report.verdict.upper()}: {report.headline}\n")
    print("| plan | ms | speedup | drop, points (95 % bounds) | launches | MB moved | what became of it |\n|---|---|---|---|---|---|---|")
    for one in report.candidates:
        ms = "not timed" if one.latency_ms is None else f"{one.latency_ms:.3f}"
        speedup = "" if one.speedup is None else f"{one.speedup:.2f}x"
        bounded = one.drop is not None and one.metric != "max_abs"
        drop = f"{100 * one.drop:+.2f} [{100 * one.low:+.2f}, {100 * one.high:+.2f}]" if bounded else ""
        moved = "" if one.moved_bytes is None else f"{one.moved_bytes / 1e6:.2f}"
        print(f"| {one.name} | {ms} | {speedup} | {drop} | {one.launches or ''} | {moved} | {one.outcome}: {one.reason} |")
    print("\n| layer | operator | planned | realised | kernel | why |\n|---|---|---|---|---|---|")
    for layer in report.precision.layers:
        print(f"| {layer.name} | {layer.op} | {layer.planned} | {layer.realised} | {layer.kernel} | {layer.reason} |")
    print()


def cpu() -> str:
    """The processor's name and the features that matter here."""
    text = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    name = next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("Model name"))
    return f"{name}, {' '.join(feature for feature in ('avx512_vnni', 'avx512_bf16', 'amx_int8') if feature in text)}"


if __name__ == "__main__":
    main()
