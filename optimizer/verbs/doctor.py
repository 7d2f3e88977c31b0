"""`doctor`: which targets and backends work here, and what is missing for the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kernels.cpus import CPUS, named
from kernels.gpus import GPUS
from kernels.target import Target, this_cpu
from optimizer.backends import NAMES, backend, missing
from optimizer.errors import OptimizeError
from optimizer.process import check_house
from optimizer.provenance import versions

PACKAGES = (
    *("optimize", "numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "openvino"),
    *("torch", "safetensors", "tensorrt-rtx", "polygraphy"),
)


@dataclass(frozen=True)
class Served:
    """A backend and a target: `missing` is why it can't build for it, with the way out; `runs_here` whether it can be timed here."""

    target: str
    device: str
    backend: str
    missing: str | None
    runs_here: bool


@dataclass(frozen=True)
class Diagnosis:
    """This machine, the versions of what is installed, every target with each backend, and what stands in the way of all."""

    cpu: Target
    versions: Mapping[str, str]
    served: tuple[Served, ...]
    problems: tuple[str, ...]


def doctor() -> Diagnosis:
    """Look at this machine; nothing is built."""
    cpu = this_cpu()
    return Diagnosis(
        cpu=cpu,
        versions=versions(*PACKAGES),
        served=tuple(_served(target, name) for target in (cpu, *map(named, CPUS.values()), *GPUS.values()) for name in NAMES),
        problems=_problems(),
    )


def _served(target: Target, name: str) -> Served:
    why_not = missing(name, target)
    return Served(target.name, target.device, name, why_not, why_not is None and backend(name).capability(target).runs_here)


def _problems() -> tuple[str, ...]:
    try:
        check_house()
    except OptimizeError as error:
        return (f"{error.reason} {error.remedy}",)
    return ()
