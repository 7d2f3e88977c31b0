"""Whether NVIDIA's driver and a GPU are on this machine, asked of the driver itself."""

from __future__ import annotations

import ctypes
from functools import cache

_LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the CUDA driver API."""


@cache
def architectures() -> tuple[str, ...] | str:
    """The architectures of this machine's GPUs (`sm_89`) in the driver's order, or in words why there are none."""
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError:
        return "no NVIDIA driver is installed on this machine"
    if code := cuda.cuInit(0):
        return f"NVIDIA's driver finds no GPU it can use (CUDA error {code})"
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    found = []
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        found.append(f"sm_{major.value}{minor.value}")
    return tuple(found) or "NVIDIA's driver finds no GPU"


def absent() -> str | None:
    """Why no engine can run here, None where a GPU is at hand."""
    found = architectures()
    return found if isinstance(found, str) else None


def present(compute: str) -> bool:
    """Whether the GPU that engines run on, the driver's first, is of this architecture."""
    found = architectures()
    return not isinstance(found, str) and found[0] == compute
