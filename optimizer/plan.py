"""What is to be built: every decision about one engine, and what a backend can be asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from calibration.ranges import Range

Precision = Literal["fp32", "fp16", "bf16", "int8", "int8_dynamic"]
"""Of a layer: the type its inputs, weights and outputs have; `int8_dynamic` finds the activations' range at every run."""

AND = "+"
"""Between the names of backends that build one engine together."""

Knobs = Mapping[str, int | float | str | bool]
"""Settings of a backend, of one engine."""


@dataclass(frozen=True)
class Capability:
    """What a backend can do for a target: data that planner and precision read instead of asking for a name.

    `activation` is "uint8" (asymmetric) or "int8" (zero point 0); `quantize_outputs` says that a layer runs in INT8 only if
    its output is quantized too; `scalar_weight_scale` wants one scale a weight and the ratio of each channel as a Mul;
    `float_bias` wants the bias in float instead of int32; `half_by_name` reads FP16 and BF16 off the layers' PLANNED, from a graph
    that stays in float32; `base` is the precision of what is not INT8;
    `attention_head_sizes` and `attention_length` bound what runs as one fused INT8 attention (empty and None: no bound);
    `integer_operators` says that QLinear operators can be read; where not, they are written as Q/DQ around the float ones.
    `saturates` says which pairs of uint8 x int8 products kernels add in 16 bits, if they do: neighbouring "terms" of a whole sum, or of
    the channels at each of the "places" of a convolution's kernel; `weight_limit` is the largest magnitude of an INT8 weight: 63 keeps
    pairs from saturating.
    `refusals` maps a precision, or `precision:operator`, to the reason why it can't be had, in the user's words; a depthwise
    convolution is also known as the operator `DepthwiseConv`.
    """

    precisions: frozenset[Precision]
    activation: Literal["uint8", "int8"]
    int8_operators: frozenset[str]
    base: Precision
    opset: int
    runs_here: bool
    dynamic_operators: frozenset[str] = frozenset()
    fused_operators: frozenset[str] = frozenset()
    quantize_outputs: bool = False
    scalar_weight_scale: bool = False
    float_bias: bool = False
    half_by_name: bool = False
    dynamic_shapes: bool = True
    attention_head_sizes: frozenset[int] = frozenset()
    attention_length: int | None = None
    integer_operators: bool = True
    saturates: Literal["", "terms", "places"] = ""
    weight_limit: int = 127
    refusals: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Shape:
    """The sizes of one input: smallest, usual and largest; all three the same where it is fixed."""

    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]

    @property
    def fixed(self) -> bool:
        return self.smallest == self.usual == self.largest


@dataclass(frozen=True)
class Rewrite:
    """An exact rewrite of `fusion.rewrites`, by its rule's name, at one layer of the graph that it finds, or at all (`*`)."""

    rule: str
    layer: str


@dataclass(frozen=True)
class Region:
    """Layers that one backend builds, by name; what they read is made by them or in regions before."""

    backend: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """One engine to be: exact rewrites, precision by layer, range by tensor, knobs, and the reason for all of it.

    `rewrites` are applied in their order before anything else, and layers and tensors are called as they are after them;
    `precisions` names only layers that differ from `base`.  `regions`, where there are any, hold every layer once, in the order of a
    run; `backend` is then that of the first.
    """

    backend: str
    target: str
    base: Precision
    precisions: Mapping[str, Precision] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    rewrites: tuple[Rewrite, ...] = ()
    recovery: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    knobs: Knobs = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    reason: str = ""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why a layer has the precision it has, by layer, where there is something to tell."""

    @property
    def backends(self) -> tuple[str, ...]:
        """All that build a part of it, each once, in the order of a run."""
        return tuple(dict.fromkeys(region.backend for region in self.regions)) or (self.backend,)

    @property
    def built_by(self) -> str:
        """The names of `backends` as one."""
        return AND.join(self.backends)

    def precision(self, layer: str) -> Precision:
        return self.precisions.get(layer, self.base)

    def with_precision(self, layers: Iterable[str], precision: Precision, reason: str) -> Plan:
        """This plan with `layers` in another precision, and the reason noted beside each."""
        names = tuple(layers)
        return replace(
            self,
            precisions={**self.precisions, **dict.fromkeys(names, precision)},
            reasons={**self.reasons, **dict.fromkeys(names, reason)},
            reason=reason,
        )

    @property
    def lossless(self) -> bool:
        """Whether no layer runs in less than FP32: such an engine is gated numerically."""
        return self.base == "fp32" and all(precision == "fp32" for precision in self.precisions.values())
