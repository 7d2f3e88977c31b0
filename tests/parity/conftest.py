"""Small worlds for the gate: samples in memory, models from text, runs that answer as they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from optimizer.parity.budget import budget_from_words
from optimizer.parity.gate import Question, ask, judge
from optimizer.parity.metrics import METRICS, Metric

Array = NDArray[Any]


@dataclass(frozen=True)
class Numbered:
    """Samples whose one input is the sample's own number: a run can answer from a table."""

    count: int
    labels: Array | None = None
    batch: int = 1

    def __len__(self) -> int:
        return self.count // self.batch

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for start in range(0, self.count, self.batch):
            yield {"x": np.arange(start, start + self.batch, dtype=np.float32)[:, None]}


def answering(**outputs: Array) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """A run that looks each sample's outputs up by its number."""

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        rows = feeds["x"].astype(int).reshape(-1)
        return {name: table[rows] for name, table in outputs.items()}

    return run


@pytest.fixture
def numbered() -> type[Numbered]:
    return Numbered


@pytest.fixture
def answers() -> Callable[..., Callable[[Mapping[str, Array]], dict[str, Array]]]:
    return answering


@pytest.fixture
def asked() -> Callable[..., Question]:
    def question(parent: Array, labels: Array | None, metric: str | Metric, budget: str = "1%", **more: Any) -> Question:
        known = METRICS[metric] if isinstance(metric, str) else metric
        return ask(answering(y=parent), Numbered(len(parent), labels), known, budget_from_words(budget), **more)

    return question


@pytest.fixture
def judged(asked: Callable[..., Question]) -> Callable[..., Any]:
    """Parent's and engine's outputs (n, ...) and labels -> Parity."""

    def parity(parent: Array, engine: Array, labels: Array | None, metric: str | Metric, budget: str = "1%", **more: Any) -> Any:
        question = asked(parent, labels, metric, budget, **more)
        return judge(question, answering(y=engine), Numbered(len(parent), labels), gated_on="this CPU")

    return parity


@pytest.fixture
def model() -> ir.Model:
    """y = relu(x W1) W2 with seeded weights: 64 inputs, 128 hidden, 10 outputs."""
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    net (float[1,64] x) => (float[1,10] y) {
        h = MatMul (x, w1)
        r = Relu (h)
        y = MatMul (r, w2)
    }
    """
    made = ir.from_onnx_text(text.replace("(float[1,64] x)", "(float[1,64] x, float[64,128] w1, float[128,10] w2)"))
    draw = np.random.default_rng(0)
    for name in ("w1", "w2"):
        value = next(value for value in made.graph.inputs if value.name == name)
        made.graph.inputs.remove(value)
        shape = [int(size) for size in value.shape]
        value.const_value = ir.tensor(draw.standard_normal(shape).astype(np.float32), name=name)
        made.graph.register_initializer(value)
    for index, node in enumerate(made.graph):
        node.name = f"layer{index}"
    return made


@pytest.fixture
def feeds() -> list[dict[str, Array]]:
    draw = np.random.default_rng(1)
    return [{"x": draw.standard_normal((1, 64)).astype(np.float32)} for _ in range(4)]
