"""Models from text, and the proof that fusing one kept its function: float64 against onnx.reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnxscript.rewriter import MatchingTracer, MatchStatus

from optimizer.fusion import Rule, fuse
from optimizer.fusion.folding import constants_right
from optimizer.fusion.rewrites import offers, rewritten
from optimizer.graph import clone, infer_shapes, sha256
from optimizer.model import SAME_NUMBERS, Model, Source


class Erf(OpRun):
    """onnx.reference computes erf in float32; this is the operator in the input's own type."""

    op_domain = ""

    def _run(self, x: NDArray[Any]) -> tuple[NDArray[Any]]:
        return (np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x)).astype(x.dtype),)


class Gelu(OpRun):
    """onnx.reference expands Gelu into its own float32 erf; this is the formula in float64."""

    op_domain = ""

    def _run(self, x: NDArray[Any], approximate: str = "none") -> tuple[NDArray[Any]]:
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return ((0.5 * x * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2)))).astype(x.dtype),)


class HardSwish(OpRun):
    """onnx.reference expands HardSwish with a float32 slope; this is the formula with 1/6."""

    op_domain = ""

    def _run(self, x: NDArray[Any]) -> tuple[NDArray[Any]]:
        return (x * np.clip(x / 6 + 0.5, 0, 1),)


@pytest.fixture(scope="session")
def build() -> Callable[..., Model]:
    """build("double[1,4] x", "double[1,4] y", "[relu] y = Relu(x)", w=array): a model of opset 20; constants by name."""

    def build(inputs: str, outputs: str, body: str, *, opset: int = 20, **constants: Any) -> Model:
        arrays = {name: np.asarray(value) for name, value in constants.items()}
        text = f'<ir_version: 10, opset_import: ["" : {opset}]> tested ({inputs}) => ({outputs}) {{ {body} }}'
        proto = onnx.parser.parse_model(text)
        proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
        graph = ir.from_proto(proto)
        for value in graph.graph.outputs:
            value.shape = value.shape or None  # "double z" declares no shape, not a scalar
        taken: dict[str, int] = {}
        for node in graph.graph:
            name = node.name or node.op_type.lower()
            taken[name] = taken.get(name, 0) + 1
            node.name = name if taken[name] == 1 else f"{name}#{taken[name]}"
        return Model(graph, Source("onnx", "tested.onnx", "0" * 64))

    return build


def run(graph: ir.Model, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    evaluator = ReferenceEvaluator(ir.to_proto(graph), new_ops=[Erf, Gelu, HardSwish])
    return [np.asarray(output) for output in evaluator.run(None, dict(feeds))]


def random_feeds(graph: ir.Model, free: int = 2) -> dict[str, NDArray[Any]]:
    """Random numbers for every input, free sizes set to `free`."""
    generator = np.random.default_rng(7)
    feeds = {}
    for value in graph.graph.inputs:
        assert value.shape is not None
        assert value.dtype is not None
        shape = [size if isinstance(size, int) else free for size in value.shape]
        kind = value.dtype.numpy()
        feeds[value.name or ""] = (
            generator.normal(size=shape).astype(kind) if kind.kind == "f" else generator.integers(0, 2, shape).astype(kind)
        )
    return feeds


@pytest.fixture(scope="session")
def fused() -> Callable[..., Model]:
    """Fuse a model and hold everything that must hold: function, names, validity, idempotence, the original untouched."""

    def fused(model: Model, tolerance: float = 1e-12) -> Model:
        before = (sha256(model.graph), [node.name for node in model.graph.graph])
        feeds = random_feeds(model.graph)
        expected = run(model.graph, feeds)
        after = fuse(model)
        proto = ir.to_proto(after.graph)
        onnx.checker.check_model(proto, full_check=True)
        assert (sha256(model.graph), [node.name for node in model.graph.graph]) == before
        assert [value.name for value in after.graph.graph.inputs] == [value.name for value in model.graph.graph.inputs]
        assert [value.name for value in after.graph.graph.outputs] == [value.name for value in model.graph.graph.outputs]
        names = [node.name for node in after.graph.graph]
        assert all(names)
        assert len(set(names)) == len(names)
        for got, want in zip(run(after.graph, feeds), expected, strict=True):
            assert got.shape == want.shape
            assert got.dtype == want.dtype
            if want.dtype == np.float64:
                np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
            else:
                np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=2e-2, atol=2e-2)
        again = fuse(after)
        assert again.fusions == after.fusions
        return after

    return fused


@pytest.fixture(scope="session")
def same() -> Callable[[Model, Model], None]:
    """Holds two models to one function, in float64."""

    def same(one: Model, other: Model) -> None:
        feeds = random_feeds(one.graph)
        onnx.checker.check_model(ir.to_proto(other.graph), full_check=True)
        for got, want in zip(run(other.graph, feeds), run(one.graph, feeds), strict=True):
            assert got.shape == want.shape
            np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)

    return same


@pytest.fixture(scope="session")
def operators() -> Callable[[Model], list[str]]:
    return lambda model: [node.op_type for node in model.graph.graph]


@pytest.fixture(scope="session")
def reasons() -> Callable[[Model, Rule], set[str]]:
    """Why a rule applies nowhere in a model, for each place where its pattern fits; fails where it does apply."""

    def reasons(model: Model, rule: Rule) -> set[str]:
        graph = clone(model.graph)
        infer_shapes(graph)
        found = set()
        constants_right(graph, set())
        for node in graph.graph:
            tracer = MatchingTracer()
            assert rule.compiled.try_rewrite(graph, graph.graph, node, tracer=tracer) is None
            for matches in tracer.best_matches_map.values():
                found.update(match.match_result.reason for match in matches if match.status is MatchStatus.CONDITION_FAILED)
        return found

    return reasons


@pytest.fixture(scope="session")
def rewrite(same: Callable[[Model, Model], None]) -> Callable[[Model, str], Model]:
    """Applies a rule by its name at the first layer where it is offered, and proves what came out; the model itself where it is not.

    Held in float64: the outputs, and that a value marked `SAME_NUMBERS` holds no number but the named tensor's, and zeros.
    """

    def rewrite(model: Model, rule: str) -> Model:
        before = fuse(model, ())
        found = [offer for offer in offers(before) if offer.rule == rule]
        if not found:
            return before
        after = rewritten(before, found[:1])
        names = [node.name for node in after.graph.graph]
        assert all(names)
        assert len(set(names)) == len(names)
        assert after.fusions[0].rule == rule
        same(before, after)
        _same_numbers(before, after)
        return after

    return rewrite


def _same_numbers(before: Model, after: Model) -> None:
    marked = [value for node in after.graph.graph for value in node.outputs if SAME_NUMBERS in value.metadata_props]
    feeds = random_feeds(before.graph)
    originals = _values(before, [value.metadata_props[SAME_NUMBERS] for value in marked], feeds)
    for value, original in zip(_values(after, [value.name or "" for value in marked], feeds), originals, strict=True):
        allowed = np.sort(np.append(original.reshape(-1), 0.0))
        place = np.clip(np.searchsorted(allowed, value.reshape(-1)), 1, len(allowed) - 1)
        nearest = np.minimum(abs(allowed[place] - value.reshape(-1)), abs(allowed[place - 1] - value.reshape(-1)))
        assert (nearest < 1e-9).all()


def _values(model: Model, names: list[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Tensors of a model by name, inputs too."""
    graph = clone(model.graph)
    values = [value for node in graph.graph for value in node.outputs]
    inner = {value.metadata_props.get(SAME_NUMBERS): value for value in values} | {value.name: value for value in values}
    wanted = [name for name in dict.fromkeys(names) if name not in feeds]
    graph.graph.outputs[:] = [inner[name] for name in wanted]
    found = dict(zip(wanted, run(graph, feeds), strict=True)) | dict(feeds)
    return [np.asarray(found[name]) for name in names]
