"""`doctor`: which targets and backends work here, and what is missing for the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kernels.cpus import CPUS, named
from kernels.gpus import GPUS
from kernels.target import Target, this_cpu
from optimizer.backends import NAMES, backend, missing
from optimizer.errors import OptimizeError
from optimizer.process import check_house
from optimizer.provenance import versions

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "openvino": ("openvino",),
    "tensorrt-rtx": ("tensorrt-rtx", "polygraphy"),
    "torch": ("torch", "safetensors"),
    "huggingface": ("torch", "transformers", "tokenizers"),
    "tensorflow": ("tensorflow-cpu", "tf-keras", "tf2onnx"),
    "images": ("pillow",),
    "tables": ("pyarrow",),
}
"""The extras that users may want, with what each brings, as pyproject.toml has them."""

PACKAGES = tuple(
    dict.fromkeys(
        ("optimize", "numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", *(name for extra in EXTRAS.values() for name in extra))
    )
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
    """This machine, the versions of what is installed, every target with each backend, and what stands in the way of all.

    `extras` are those that are not whole, with the packages that are missing.
    """

    cpu: Target
    versions: Mapping[str, str]
    served: tuple[Served, ...]
    problems: tuple[str, ...]
    extras: Mapping[str, tuple[str, ...]]


def doctor() -> Diagnosis:
    """Look at this machine; nothing is built."""
    cpu, installed = this_cpu(), versions(*PACKAGES)
    return Diagnosis(
        cpu=cpu,
        versions=installed,
        served=tuple(_served(target, name) for target in (cpu, *map(named, CPUS.values()), *GPUS.values()) for name in NAMES),
        problems=_problems(),
        extras={extra: absent for extra, packages in EXTRAS.items() if (absent := _absent(packages, installed))},
    )


def _served(target: Target, name: str) -> Served:
    why_not = missing(name, target)
    return Served(target.name, target.device, name, why_not, why_not is None and backend(name).capability(target).runs_here)


def _absent(packages: Sequence[str], installed: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(name for name in packages if name not in installed)


def _problems() -> tuple[str, ...]:
    try:
        check_house()
    except OptimizeError as error:
        return (f"{error.reason} {error.remedy}",)
    return ()
