"""What an OpenVINO engine takes of memory, read off the plugin's own graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from optimizer.backends.openvino.convert import Seen
from optimizer.backends.openvino.kernels import Kernel
from optimizer.backends.openvino.session import FILE

_REPACKED = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul", "RNNSeq", "RNNCell"})
"""Kernels that hold their weights in the precision that they run in."""

_NUMBERS = frozenset({"f32", "f16", "bf16", "i8", "u8"})

_BESIDE = frozenset({"Input", "Output"})


def memory(seen: Seen, folder: Path) -> Mapping[str, int]:
    """Bytes by kind: `file`, `weights`, and `activations` at their peak, where a run told the sizes."""
    files = sum((folder / FILE).with_suffix(suffix).stat().st_size for suffix in (".xml", ".bin"))
    activations = _peak(seen.kernels)
    return {"file": files, "weights": _weights(seen.kernels)} | ({} if activations is None else {"activations": activations})


def weights_of(kernel: Kernel, kernels: Sequence[Kernel]) -> int:
    """Bytes of the weights that a kernel reads, as it holds them."""
    return sum(_constants(kernel, kernels).values())


def _weights(kernels: Sequence[Kernel]) -> int:
    """Bytes of all weights, each once."""
    held: dict[int, int] = {}
    for kernel in kernels:
        if kernel.constant:
            continue
        for number, size in _constants(kernel, kernels).items():
            held[number] = max(held.get(number, 0), size)
    return sum(held.values())


def _constants(kernel: Kernel, kernels: Sequence[Kernel]) -> dict[int, int]:
    """Bytes by number of the constants that a kernel reads, but for sizes and axes: half of float32 where it runs in BF16."""
    share = 2 if kernel.precision == "bf16" and kernel.kind in _REPACKED else 1
    read = [(number, kernels[number]) for number in kernel.reads]
    return {number: _stored(one, share) for number, one in read if one.constant and one.precision in _NUMBERS}


def _stored(constant: Kernel, share: int) -> int:
    """Bytes of a constant as the kernel that reads it holds it: one that a Reorder made for it is so already."""
    return (constant.bytes or 0) // (share if constant.kind == "Const" else 1)


def _peak(kernels: Sequence[Kernel]) -> int | None:
    """Bytes of all outputs that are alive at once, at most, over one run; None where the engine could not be run and a size is free.

    Inputs are the caller's.  A Reshape gives what it took under another form, so that what it read lives on in it.
    """
    if any(kernel.bytes is None for kernel in kernels):
        return None
    stands = list(range(len(kernels)))
    for number, kernel in enumerate(kernels):
        if kernel.kind == "Reshape" and kernel.reads:
            stands[number] = stands[kernel.reads[0]]
    last = {stands[source]: number for number, kernel in enumerate(kernels) for source in kernel.reads}
    alive: dict[int, int] = {}
    highest = 0
    for number, kernel in enumerate(kernels):
        if kernel.kind not in _BESIDE and not kernel.constant and stands[number] == number:
            alive[number] = kernel.bytes or 0
        highest = max(highest, sum(alive.values()))
        for source in [source for source in alive if last.get(source, -1) <= number]:
            del alive[source]
    return highest
