"""Whether NVIDIA's driver and a GPU are on this machine, asked of the driver itself."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

_LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the CUDA driver API."""


_LONGEST_NAME = 256


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine: the maker's name, and its architecture (`sm_89`)."""

    name: str
    compute: str


@cache
def gpus() -> tuple[Gpu, ...] | str:
    """This machine's GPUs in the driver's order, or in words why there are none."""
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError:
        return "no NVIDIA driver is installed on this machine"
    if code := cuda.cuInit(0):
        return f"NVIDIA's driver finds no GPU it can use (CUDA error {code})"
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    return tuple(_gpu(cuda, index) for index in range(count.value)) or "NVIDIA's driver finds no GPU"


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(_LONGEST_NAME)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, _LONGEST_NAME, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    return Gpu(name.value.decode(errors="replace"), f"sm_{major.value}{minor.value}")


def absent() -> str | None:
    """Why no engine can run here, None where a GPU is at hand."""
    found = gpus()
    return found if isinstance(found, str) else None


def present(compute: str) -> bool:
    """Whether the GPU that engines run on, the driver's first, is of this architecture."""
    found = gpus()
    return not isinstance(found, str) and found[0].compute == compute
