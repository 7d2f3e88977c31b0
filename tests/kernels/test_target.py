from __future__ import annotations

import os
from pathlib import Path

import pytest

from kernels.gpus import ALIASES, GPUS
from kernels.target import this_cpu
from kernels.targets import gpu_from_device, target_from_name
from optimizer.errors import UnavailableError

CPUINFO = """processor\t: 0
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni avx512_bf16

processor\t: 1
model name\t: another
flags\t\t: amx_int8
"""


def machine(root: Path, cgroup: str = "", **files: str) -> Path:
    """A folder that looks like the /proc and /sys of a machine with 8 GiB."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/cpuinfo").write_text(CPUINFO)
    (root / "proc/meminfo").write_text("MemTotal:        8388608 kB\nMemFree: 1 kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def test_the_cpu_is_named_with_what_tells_its_generation_and_its_features(tmp_path: Path) -> None:
    cpu = this_cpu(machine(tmp_path))
    assert cpu.device == "AMD EPYC (family 25, model 17)"
    assert cpu.features == ("avx2", "avx512f", "avx512_vnni", "avx512_bf16")
    assert (cpu.name, cpu.kind, cpu.cores, cpu.memory) == ("cpu", "cpu", 8, 8 << 30)


@pytest.mark.parametrize(
    ("cgroup", "files", "cores", "memory"),
    [
        ("0::/", {"cpu.max": "300000 100000", "memory.max": str(2 << 30)}, 3, 2 << 30),
        ("0::/", {"cpu.max": "max 100000", "memory.max": "max"}, 8, 8 << 30),
        ("0::/", {"cpu.max": "50000 100000"}, 1, 8 << 30),
        ("0::/", {"cpu.max": "250000 100000"}, 2, 8 << 30),
        ("0::/pod/app", {"pod/cpu.max": "400000 100000", "pod/app/cpu.max": "max 100000", "pod/app/memory.max": "1024"}, 4, 1024),
        ("0::/seen/from/outside", {"cpu.max": "200000 100000"}, 2, 8 << 30),
        ("4:memory:/job\n2:cpu,cpuacct:/job", {"cpu/job/cpu.cfs_quota_us": "200000", "cpu/job/cpu.cfs_period_us": "100000"}, 2, 8 << 30),
        ("2:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8, 8 << 30),
        ("4:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, 8, 8 << 30),
    ],
)
def test_only_cores_and_memory_that_the_process_may_use_count(
    tmp_path: Path, cgroup: str, files: dict[str, str], cores: int, memory: int
) -> None:
    cpu = this_cpu(machine(tmp_path, cgroup, **files))
    assert (cpu.cores, cpu.memory) == (cores, memory)


def test_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert this_cpu(machine(tmp_path, "0::/", **{"cpu.max": "400000 100000"})).cores == 1


def test_a_machine_that_tells_nothing_is_still_a_cpu(tmp_path: Path) -> None:
    cpu = this_cpu(tmp_path)
    assert (cpu.cores, cpu.memory, cpu.features) == (8, 0, ())
    assert cpu.device


@pytest.mark.parametrize("name", [*GPUS, *ALIASES])
def test_every_name_of_the_table_is_a_target_however_it_is_written(name: str) -> None:
    target = GPUS[ALIASES.get(name, name)]
    assert target_from_name(name) == target
    assert target_from_name(f" {name.upper().replace('-', '_')}") == target


def test_cpu_is_this_cpu() -> None:
    assert target_from_name("CPU") == this_cpu()


@pytest.mark.parametrize(("name", "nearest"), [("rtx4091", "rtx-4090"), ("a1000", "a100"), ("gpu", "cpu"), ("sm_88", "sm_8")])
def test_an_unknown_name_is_answered_with_the_nearest_ones(name: str, nearest: str) -> None:
    with pytest.raises(UnavailableError) as caught:
        target_from_name(name)
    assert repr(name) in caught.value.reason
    assert nearest in caught.value.remedy


def test_a_name_like_nothing_is_answered_with_all_of_them() -> None:
    with pytest.raises(UnavailableError) as caught:
        target_from_name("?")
    assert all(name in caught.value.remedy for name in ("cpu", "auto", "l4"))


@pytest.mark.parametrize(
    ("device", "capability", "name"),
    [
        ("Tesla T4", "7.5", "t4"),
        ("NVIDIA L4", "8.9", "l4"),
        ("NVIDIA A100-SXM4-40GB", "8.0", "a100"),
        ("NVIDIA GeForce RTX 4090", "8.9", "rtx-4090"),
        ("NVIDIA H100 80GB HBM3", "9.0", "h100"),
    ],
)
def test_a_gpu_is_found_by_the_name_that_its_driver_gives(device: str, capability: str, name: str) -> None:
    assert gpu_from_device(device, capability) == target_from_name(name)


def test_a_gpu_that_is_not_in_the_table_counts_by_its_compute_capability() -> None:
    assert gpu_from_device("NVIDIA RTX 4321 Nonesuch Generation", "8.9").compute == "sm_89"


def test_a_gpu_of_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(UnavailableError, match="compute capability 3\\.5"):
        gpu_from_device("NVIDIA Tesla K40", "3.5")


def smi(folder: Path, script: str) -> None:
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)


def test_auto_is_the_gpu_that_the_driver_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, "echo 'NVIDIA L4, 8.9'")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert target_from_name("auto") == target_from_name("l4")


@pytest.mark.parametrize("script", [None, "exit 9", "true"])
def test_auto_is_the_cpu_where_no_driver_lists_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None) -> None:
    if script is not None:
        smi(tmp_path, script)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert target_from_name("auto").kind == "cpu"
