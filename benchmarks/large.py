"""A model over 2 GB through import, fusion, INT8 and build for this CPU: how much memory the process and its children hold at once.

    python benchmarks/large.py                  (2.5 GB; needs 10 GB of disk in the temporary folder, takes minutes)
    python benchmarks/large.py --megabytes 200  (does it work?)

The model is a chain of Gemm and Relu with seeded weights in a file of their own, written one at a time.  Memory is what the kernel
charges the whole process tree with (smaps_rollup, every 50 ms): `proportional` is PSS, each page once however many processes map
it, pages of mapped files too; `own` is what no file backs, so that the system can't drop it under pressure.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

WIDTH = 8192
SAMPLES = 8
_MEGABYTE = 1 << 20


def write_model(folder: Path, layers: int, width: int = WIDTH) -> Path:
    """`layers` Gemms of width x width float32 with a Relu behind each, their weights streamed into `model.data`."""
    draw = np.random.default_rng(0)
    nodes, weights = [], []
    with (folder / "model.data").open("wb") as data:
        for index in range(layers):
            weight = TensorProto(name=f"layer{index}.weight", data_type=TensorProto.FLOAT, dims=[width, width])
            weight.data_location = TensorProto.EXTERNAL
            for key, value in {"location": "model.data", "offset": data.tell(), "length": 4 * width * width}.items():
                weight.external_data.add(key=key, value=str(value))
            for _ in range(width):
                data.write(draw.standard_normal(width, np.float32) * np.float32((2 / width) ** 0.5))
            weights.append(weight)
            before = "x" if index == 0 else f"r{index - 1}"
            nodes.append(helper.make_node("Gemm", [before, weight.name], [f"g{index}"], f"layer{index}", transB=1))
            nodes.append(helper.make_node("Relu", [f"g{index}"], [f"r{index}"], f"relu{index}"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in ("x", f"r{layers - 1}")]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)
    file = folder / "model.onnx"
    file.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString())
    return file


@dataclass
class Memory:
    """Peaks in bytes over a process tree, and by the step that it was at."""

    proportional: int = 0
    own: int = 0
    by_step: dict[str, tuple[int, int]] = field(default_factory=dict)

    def see(self, step: str, proportional: int, own: int) -> None:
        before = self.by_step.get(step, (0, 0))
        self.by_step[step] = max(before[0], proportional), max(before[1], own)
        self.proportional, self.own = max(self.proportional, proportional), max(self.own, own)


def held(root: int) -> tuple[int, int]:
    """PSS, and PSS that no file backs, of a process and all its descendants, in bytes."""
    totals = [0, 0]
    for pid in tree(root):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        except OSError:  # it ended meanwhile
            continue
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        totals[0] += kilobytes["Pss"] << 10
        totals[1] += (kilobytes["Pss_Anon"] + kilobytes["Pss_Shmem"]) << 10
    return totals[0], totals[1]


def tree(root: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def build(model: Path, data: Path, output: Path) -> tuple[Memory, float, str]:
    """`optimize build` of the model for this CPU: memory, seconds, and its last line."""
    command = [str(Path(sys.executable).with_name("optimize")), "build", str(model), "-o", str(output)]
    start = time.perf_counter()
    with subprocess.Popen([*command, "--calibration", str(data)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        memory, said = Memory(), ["start"]
        assert process.stdout is not None
        reader = threading.Thread(target=lambda stream: said.extend(line.strip() for line in stream), args=(process.stdout,))
        reader.start()
        while process.poll() is None:
            memory.see(said[-1].split(":")[0], *held(process.pid))
            time.sleep(0.05)
        reader.join()
    return memory, time.perf_counter() - start, said[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2560)
    size = parser.parse_args().megabytes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(folder, layers=max(1, size * _MEGABYTE // (4 * WIDTH * WIDTH)))
        weights = (folder / "model.data").stat().st_size
        np.savez(folder / "data.npz", x=np.random.default_rng(1).standard_normal((SAMPLES, WIDTH), np.float32))
        memory, seconds, last = build(model, folder / "data.npz", folder / "out")
    print(f"{weights / 1e9:.2f} GB of weights, {seconds:.0f} s: {last}\n")
    print("| step | proportional, GB | own, GB |\n|---|---|---|")
    for step, (proportional, own) in {**memory.by_step, "peak": (memory.proportional, memory.own)}.items():
        print(f"| {step} | {proportional / 1e9:.2f} | {own / 1e9:.2f} |")
    print(f"\nPeak over size: {memory.proportional / weights:.2f} proportional, {memory.own / weights:.2f} own.")


if __name__ == "__main__":
    main()
