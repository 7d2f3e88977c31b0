"""What an engine is built for: a GPU of the table in `gpus.py`, or the CPU that this runs on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""The extensions of x86-64 that decide which kernels a runtime picks and which precision pays."""

_ROOT = Path("/")


@dataclass(frozen=True)
class Target:
    """Hardware that an engine is built for.

    `name` is the word that users give (`cpu`, `l4`), `device` the maker's name of it, `compute` its architecture (`sm_89`,
    `x86-64`). `memory` is in bytes, `bandwidth` in bytes/s and `peaks` in operations/s by precision; 0 or left out where not
    known. `cores` counts the CPU cores that this process may use, or the GPU's multiprocessors.
    """

    name: str
    kind: Literal["cpu", "gpu"]
    compute: str
    device: str
    features: tuple[str, ...] = ()
    memory: int = 0
    bandwidth: float = 0.0
    peaks: Mapping[str, float] = field(default_factory=dict)
    cores: int = 0


def this_cpu(root: Path = _ROOT) -> Target:
    """The CPU that this process runs on, with the cores and the memory that it may use: affinity and cgroup limits count.

    `root` is the folder that /proc and /sys are looked up in.
    """
    facts = _cpuinfo(root)
    flags = set(facts.get("flags", "").split())
    return Target(
        name="cpu",
        kind="cpu",
        compute={"x86_64": "x86-64", "amd64": "x86-64"}.get(platform.machine().lower(), platform.machine().lower()),
        device=_device(facts),
        features=tuple(feature for feature in FEATURES if feature in flags),
        memory=_memory(root),
        cores=_cores(root),
    )


def _device(facts: Mapping[str, str]) -> str:
    """The model name, with family and model number: a virtual machine's `AMD EPYC` may be any of five generations."""
    name = facts.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{word} {facts[key]}" for word, key in (("family", "cpu family"), ("model", "model")) if key in facts]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def _cpuinfo(root: Path) -> dict[str, str]:
    """The facts of the first processor in /proc/cpuinfo."""
    text = _text(root / "proc/cpuinfo") or ""
    lines = (line.partition(":") for line in text.split("\n\n", maxsplit=1)[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _cores(root: Path) -> int:
    """Whole cores of this process: affinity, cut by the CPU quota of its cgroups. A part of a core is not counted, because
    a thread more than the quota pays for is throttled and holds up the others."""
    cores = float(len(os.sched_getaffinity(0)))
    for folder in _cgroups(root, "cpu"):
        quota, _, period = (_text(folder / "cpu.max") or "max").partition(" ")
        if quota != "max":
            cores = min(cores, int(quota) / int(period))
        old_quota, old_period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if old_quota and old_period and int(old_quota) > 0:
            cores = min(cores, int(old_quota) / int(old_period))
    return max(1, int(cores))


def _memory(root: Path) -> int:
    """Bytes that this process may use: the machine's memory, cut by the limits of its cgroups; 0 where nothing tells."""
    total = next((line.split()[1] for line in (_text(root / "proc/meminfo") or "").splitlines() if line.startswith("MemTotal:")), None)
    limits = [] if total is None else [int(total) * 1024]
    for folder in _cgroups(root, "memory"):
        limits += [int(text) for name in ("memory.max", "memory.limit_in_bytes") if (text := _text(folder / name)) and text != "max"]
    return min(limits, default=0)


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders whose limits hold for this process, of cgroup v2 and v1: its own and all above it, those that are there."""
    mount = root / "sys/fs/cgroup"
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", maxsplit=2)
        if controllers and controller not in controllers.split(","):
            continue
        top = mount / controller if controllers else mount
        own = top / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top) and folder.is_dir())


def _text(path: Path) -> str | None:
    """A small file's text without the white space around it, or None where there is none for us to read."""
    try:
        return path.read_text().strip()
    except OSError:
        return None
