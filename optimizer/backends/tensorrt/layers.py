"""The fused layer list that TensorRT-RTX prints when it has built an engine: one line a kernel launch.

A line holds the kernel's name and kind, then inputs, constants and outputs, each with dimensions and type, and last the ONNX
nodes that went into it. It is the only thing that tells what was realised where the engine can't be loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from optimizer.errors import UnavailableError

PRECISION = {"Float": "fp32", "Half": "fp16", "BFloat16": "bf16", "Int8": "int8", "FP8": "fp8", "Int4": "int4", "FP4": "fp4"}
"""What TensorRT calls a type, to what users call it; other types keep their name in small letters."""

FLOATS = ("fp32", "bf16", "fp16")
"""Floating types, the widest first."""

_BITS = {"Float": 32, "Half": 16, "BFloat16": 16, "Int8": 8, "UInt8": 8, "FP8": 8, "E8M0": 8, "Bool": 8, "Int32": 32, "Int64": 64}
_BITS |= {"Int4": 4, "FP4": 4}

_LINE = re.compile(
    r"Name: (?P<name>.*), LayerType: (?P<kind>\w*), Inputs: \[(?P<inputs>.*)\], Constants: \[(?P<constants>.*)\], "
    r"Outputs: \[(?P<outputs>.*)\], TacticName: .*, StreamId: .*?Metadata: (?P<metadata>.*)"
)
_OPERAND = re.compile(r"Dimensions: \[(?P<sizes>[-\d,]*)\], .*?Datatype: (?P<type>\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_MEMORY = {
    "weights": re.compile(r"Total Weights Memory: (\d+) bytes"),
    "activations": re.compile(r"Total Activation Memory: (\d+) bytes"),
    "scratch": re.compile(r"Max Scratch Memory: (\d+) bytes"),
}
_PRODUCTS = frozenset({"correlation", "deconv", "gemm", "runtime_fusion"})
_KIND = re.compile(r", LayerType: (\w*), ")
_WAITING = frozenset({"signal", "wait", "shape_call", "ShapeHostToDevice", "cjmp"})
"""Entries that launch nothing: streams that wait for each other, sizes worked out on the host and handed over, jumps of a loop."""


@dataclass(frozen=True)
class Operand:
    """What a kernel reads or writes: sizes and TensorRT's word for the type."""

    sizes: tuple[int, ...]
    type: str

    @property
    def precision(self) -> str:
        return PRECISION.get(self.type, self.type.lower())

    @property
    def scalar(self) -> bool:
        return math.prod(self.sizes) == 1

    @property
    def bytes(self) -> int:
        """Bytes of the tensor; a free dimension counts as one."""
        return math.prod(max(size, 1) for size in self.sizes) * _BITS.get(self.type, 32) // 8


@dataclass(frozen=True)
class Kernel:
    """A line of the list. `nodes` are the ONNX nodes in it, by name."""

    name: str
    kind: str
    inputs: tuple[Operand, ...]
    constants: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    nodes: tuple[str, ...]

    @property
    def precision(self) -> str:
        """The type of the first operand that it reads: of the activation in a convolution or matrix product."""
        return next((operand.precision for operand in (*self.inputs, *self.constants, *self.outputs)), "")

    @property
    def types(self) -> frozenset[str]:
        """Precisions of what it reads and writes at every run, constants and single numbers apart."""
        return frozenset(operand.precision for operand in (*self.inputs, *self.outputs) if not operand.scalar)

    @property
    def bytes(self) -> int:
        """Bytes read and written, each operand once."""
        return sum(operand.bytes for operand in (*self.inputs, *self.constants, *self.outputs))

    @property
    def product(self) -> bool:
        """Whether it is a kernel for matrix products, rather than one that prepares their inputs or finishes their outputs."""
        return self.kind in _PRODUCTS or "mha" in self.name


def kernels_from_log(lines: Iterable[str]) -> tuple[Kernel, ...]:
    """The kernels of a `Layers:` listing in order; entries that launch nothing are left out.

    Raises:
        UnavailableError: a line is not as the release of TensorRT-RTX that this was written for prints it.
    """
    return tuple(_kernel(line) for line in lines if (kind := _KIND.search(line)) is None or kind[1] not in _WAITING)


def memory_from_log(lines: Iterable[str]) -> dict[str, int]:
    """Bytes of weights, of the activations of one run, and of the largest scratch space in them."""
    text = "\n".join(lines)
    return {kind: int(found.group(1)) for kind, pattern in _MEMORY.items() if (found := pattern.search(text))}


def _kernel(line: str) -> Kernel:
    found = _LINE.fullmatch(line)
    if found is None:
        raise UnavailableError(
            f"TensorRT-RTX lists a layer in a form that is not known here: {line[:200]!r}.",
            "Install the release of tensorrt-rtx that README names.",
        )
    return Kernel(
        name=found["name"],
        kind=found["kind"],
        inputs=_operands(found["inputs"]),
        constants=_operands(found["constants"]),
        outputs=_operands(found["outputs"]),
        nodes=tuple(_NODE.findall(found["metadata"])),
    )


def _operands(text: str) -> tuple[Operand, ...]:
    return tuple(
        Operand(tuple(int(size) for size in found["sizes"].split(",") if size), found["type"]) for found in _OPERAND.finditer(text)
    )
