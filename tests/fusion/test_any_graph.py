"""Whatever is put together from the operators that rules look for, the fused graph is valid and computes the same."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Shape = tuple[int, ...]


class Drawn:
    """A graph in the making: values with their shapes, text of the nodes, constants."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.generator = np.random.default_rng(draw(st.integers(0, 99)))
        self.values: list[tuple[str, Shape]] = [("x", (2, 4, 5, 5))]
        self.body: list[str] = []
        self.constants: dict[str, Any] = {}

    def constant(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def put(self, call: str, shape: Shape) -> None:
        name = f"v{len(self.values)}"
        self.body.append(f"{name} = {call}")
        self.values.append((name, shape))

    def add_node(self) -> None:
        value, shape = self.values[-1] if self.draw(st.integers(0, 4)) else self.draw(st.sampled_from(self.values))
        kinds = ["unary", "arithmetic", "arithmetic", "transpose", "reshape", "same", "both", "slice"]
        if len(shape) == 4 and min(shape[2:]) >= 3:
            kinds = ["conv", "depthwise", "normalize", "arithmetic"] * 3 + ["pad", "pad", "pool", "mean", *kinds]
        if len(shape) == 2:
            kinds += ["gemm", "matmul"] * 3
        getattr(self, self.draw(st.sampled_from(kinds)))(value, shape)

    def unary(self, x: str, shape: Shape) -> None:
        self.put(f"{self.draw(st.sampled_from(['Relu', 'Neg', 'Sigmoid', 'Tanh', 'Identity', 'Dropout']))}({x})", shape)

    def arithmetic(self, x: str, shape: Shape) -> None:
        channels = [shape[1] if axis == 1 else 1 for axis in range(len(shape))]
        any_sizes = [size if self.draw(st.booleans()) else 1 for size in shape][self.draw(st.integers(0, len(shape))) :]
        sizes = channels if self.draw(st.booleans()) else any_sizes
        c = self.constant(self.generator.uniform(0.5, 2, sizes))
        operands = self.draw(st.sampled_from([f"{x}, {c}", f"{c}, {x}"]))
        self.put(f"{self.draw(st.sampled_from(['Mul', 'Add', 'Sub', 'Div']))}({operands})", shape)

    def transpose(self, x: str, shape: Shape) -> None:
        order = self.draw(st.permutations(range(len(shape))))
        self.put(f"Transpose<perm={list(order)}>({x})", tuple(shape[axis] for axis in order))

    def reshape(self, x: str, shape: Shape) -> None:
        target = self.draw(st.sampled_from([shape, (shape[0], math.prod(shape[1:])), (*shape[:-1], 1, shape[-1])]))[:5]
        if math.prod(target) == math.prod(shape):
            self.put(f"Reshape({x}, {self.constant(np.array(target))})", target)

    def same(self, x: str, shape: Shape) -> None:
        twin = self.draw(st.sampled_from([name for name, other in self.values if other == shape]))
        self.put(f"{self.draw(st.sampled_from(['Add', 'Mul', 'Sub']))}({x}, {twin})", shape)

    def both(self, x: str, shape: Shape) -> None:
        self.put(f"Neg({x})", shape)
        self.put(f"Neg({x})", shape)

    def slice(self, x: str, shape: Shape) -> None:
        bounds = [self.constant(np.array([each])) for each in (0, self.draw(st.sampled_from([shape[0], 99, 1])))]
        size = min(shape[0], int(self.constants[bounds[1]][0]))
        self.put(f"Slice({x}, {', '.join(bounds)}, {self.constant(np.array([0]))})", (size, *shape[1:]))

    def conv(self, x: str, shape: Shape) -> None:
        pad = self.draw(st.integers(0, 1))
        w = self.constant(self.generator.normal(size=(3, shape[1], 3, 3)) / 5)
        self.put(f"Conv<pads={[pad] * 4}>({x}, {w})", (shape[0], 3, shape[2] - 2 + 2 * pad, shape[3] - 2 + 2 * pad))

    def depthwise(self, x: str, shape: Shape) -> None:
        w, b = self.constant(self.generator.normal(size=(shape[1], 1, 1, 1))), self.constant(self.generator.normal(size=shape[1]))
        self.put(f"Conv<group={shape[1]}>({x}, {w}, {b})", shape)

    def normalize(self, x: str, shape: Shape) -> None:
        names = [self.constant(self.generator.uniform(0.5, 2, shape[1])) for _ in range(4)]
        self.put(f"BatchNormalization({x}, {', '.join(names)})", shape)

    def pad(self, x: str, shape: Shape) -> None:
        pads = self.constant(np.array([0, 0, 1, 0, 0, 0, 0, 1]))
        self.put(f"Pad({x}, {pads})", (*shape[:2], shape[2] + 1, shape[3] + 1))

    def pool(self, x: str, shape: Shape) -> None:
        operator = self.draw(st.sampled_from(["AveragePool", "MaxPool"]))
        self.put(f"{operator}<kernel_shape=[2,2]>({x})", (*shape[:2], shape[2] - 1, shape[3] - 1))

    def mean(self, x: str, shape: Shape) -> None:
        self.put(f"ReduceMean<keepdims=0>({x}, {self.constant(np.array([2, 3]))})", shape[:2])

    def gemm(self, x: str, shape: Shape) -> None:
        w, b = self.constant(self.generator.normal(size=(4, shape[1])) / 5), self.constant(self.generator.normal(size=(1, 4)))
        self.put(f"Gemm<transB=1, alpha=0.5, beta=2.0>({x}, {w}, {b})", (shape[0], 4))

    def matmul(self, x: str, shape: Shape) -> None:
        self.put(f"MatMul({x}, {self.constant(self.generator.normal(size=(shape[1], 4)) / 5)})", (shape[0], 4))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_graph_keeps_its_function_names_and_validity(build: Any, fused: Any, data: Any) -> None:
    """The tolerance is that of a deep chain, whose rounding grows layer by layer; a wrong rewrite is off by far more."""
    drawn = Drawn(data.draw)
    for _ in range(data.draw(st.integers(3, 10))):
        drawn.add_node()
    last = drawn.values[-1][0]
    also = last if data.draw(st.booleans()) else data.draw(st.sampled_from([name for name, _ in drawn.values]))
    outputs = ", ".join(f"double {name}" for name in dict.fromkeys([last, also]) if name != "x") or "double z"
    ending = [] if outputs != "double z" else ["z = Identity(x)"]
    fused(build("double[2,4,5,5] x", outputs, " ".join([*drawn.body, *ending]), **drawn.constants), tolerance=1e-8)
