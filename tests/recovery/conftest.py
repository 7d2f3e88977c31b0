"""Small models that are hard for INT8, what backends can do, and a form with a plan: everything in INT8, by minimum and maximum."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from calibration.grid import INT8, UINT8
from calibration.ranges import METHODS
from optimizer.calibrate import calibrate
from optimizer.graph import infer_shapes
from optimizer.model import Model, Source
from optimizer.plan import Capability, Plan
from optimizer.precision import eligible, quantized_tensors, typed
from optimizer.recovery import Form
from optimizer.reference import Reference, simulated

HEAD = '<ir_version: 10, opset_import: ["": 20]>'

DEPTHWISE = """
depthwise (float[1, 4, 8, 8] x) => (float[1, 10] y)
{
  c1 = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, stem_weight, stem_bias)
  r1 = Relu(c1)
  c2 = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 16>(r1, deep_weight, deep_bias)
  r2 = Relu(c2)
  c3 = Conv<kernel_shape = [1, 1]>(r2, wide_weight)
  r3 = Relu(c3)
  g = GlobalAveragePool(r3)
  f = Flatten<axis = 1>(g)
  y = Gemm<transB = 1>(f, last_weight, last_bias)
}"""

DEPTHWISE_WEIGHTS = {
    "stem_weight": (16, 4, 3, 3),
    "stem_bias": (16,),
    "deep_weight": (16, 1, 3, 3),
    "deep_bias": (16,),
    "wide_weight": (16, 16, 1, 1),
    "last_weight": (10, 16),
    "last_bias": (10,),
}

ENCODER = """
encoder (float[1, 8, 32] x) => (float[1, 8, 32] y)
{
  n = LayerNormalization<axis = -1>(x, norm_weight, norm_shift)
  q = MatMul(n, query_weight)
  k = MatMul(n, key_weight)
  kt = Transpose<perm = [0, 2, 1]>(k)
  s = MatMul(q, kt)
  p = Softmax<axis = -1>(s)
  v = MatMul(n, value_weight)
  m = MatMul(p, v)
  o = MatMul(m, out_weight)
  a = Add(o, x)
  n2 = LayerNormalization<axis = -1>(a, norm2_weight, norm2_shift)
  h0 = MatMul(n2, up_weight)
  h1 = Add(h0, up_bias)
  h = Gelu(h1)
  d0 = MatMul(h, down_weight)
  d = Add(d0, down_bias)
  y = Add(d, n2)
}"""

ENCODER_WEIGHTS = {
    "norm_weight": (32,),
    "norm_shift": (32,),
    "norm2_weight": (32,),
    "norm2_shift": (32,),
    "query_weight": (32, 32),
    "key_weight": (32, 32),
    "value_weight": (32, 32),
    "out_weight": (32, 32),
    "up_weight": (32, 64),
    "up_bias": (64,),
    "down_weight": (64, 32),
    "down_bias": (32,),
}


Weights = dict[str, np.ndarray]


def _model(text: str, shapes: Mapping[str, tuple[int, ...]], change: Callable[[Weights], object] = len) -> Model:
    """A model from text with weights of these shapes; `change` gets them by name before they are written in."""
    draw = np.random.default_rng(0)
    weights = {name: (draw.standard_normal(shape) / np.sqrt(max(int(np.prod(shape[1:])), 4))) for name, shape in shapes.items()}
    change(weights)
    proto = onnx.parser.parse_model(HEAD + text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items())
    graph = ir.from_proto(proto)
    infer_shapes(graph)
    for node in graph.graph:
        node.name = next(value.name for value in node.outputs if value.name)
    return Model(graph, Source("onnx", "model.onnx", "0" * 64))


def _unequal(weights: Weights) -> None:
    """Channels of ranges that differ by orders of magnitude, each given back by the layer behind."""
    draw = np.random.default_rng(1)
    for before, after in (("stem", "deep"), ("deep", "wide")):
        factor = np.exp(draw.normal(0, 2, 16))
        weights[f"{before}_weight"] *= factor.reshape(-1, 1, 1, 1)
        weights[f"{before}_bias"] *= factor
        weights[f"{after}_weight"] /= factor.reshape((-1, 1, 1, 1) if after == "deep" else (1, -1, 1, 1))


def _outlying(weights: Weights) -> None:
    """Two channels of both normalizations 60 times as large as the others; what reads the first gives it back."""
    for norm in ("norm", "norm2"):
        weights[f"{norm}_weight"] = np.ones(32)
        weights[f"{norm}_weight"][[3, 17]] = 60
        weights[f"{norm}_shift"][[3, 17]] *= 60
    for reader in ("query", "key", "value", "up"):
        weights[f"{reader}_weight"][[3, 17]] /= 60


@pytest.fixture
def model() -> Callable[..., Model]:
    return _model


@pytest.fixture
def depthwise() -> Model:
    return _model(DEPTHWISE, DEPTHWISE_WEIGHTS, _unequal)


@pytest.fixture
def even() -> Model:
    """The same network without the scaling."""
    return _model(DEPTHWISE, DEPTHWISE_WEIGHTS)


@pytest.fixture
def encoder() -> Model:
    return _model(ENCODER, ENCODER_WEIGHTS, _outlying)


_OPERATORS = frozenset({"Conv", "Gemm", "MatMul"})


@pytest.fixture
def inputs_only() -> Capability:
    """Q/DQ on what products read, and nowhere else."""
    return Capability(frozenset({"fp32", "int8"}), "uint8", _OPERATORS, "fp32", 20, True, float_bias=True)


@pytest.fixture
def outputs_too() -> Capability:
    """Kernels that write integers, bias in int32, and dynamic products."""
    operators = _OPERATORS | {"Add", "GlobalAveragePool", "Flatten"}
    precisions = frozenset({"fp32", "int8", "int8_dynamic"})
    return Capability(precisions, "uint8", operators, "fp32", 20, True, frozenset({"MatMul", "Gemm"}), quantize_outputs=True)


@pytest.fixture
def one_scale() -> Capability:
    """int8 with zero point 0, one scale a weight and a ratio a channel, on an FP16 base."""
    precisions = frozenset({"fp32", "fp16", "int8"})
    return Capability(precisions, "int8", _OPERATORS, "fp16", 23, False, scalar_weight_scale=True, float_bias=True)


@pytest.fixture(params=["inputs_only", "outputs_too", "one_scale"])
def capability(request: pytest.FixtureRequest) -> Capability:
    found: Capability = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def feeds() -> Callable[..., list[dict[str, np.ndarray]]]:
    def draw(model: Model, count: int = 24, seed: int = 0) -> list[dict[str, np.ndarray]]:
        rng = np.random.default_rng(seed)
        return [{spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in model.inputs} for _ in range(count)]

    return draw


@pytest.fixture
def planned() -> Callable[..., tuple[Form, Plan]]:
    def plan(model: Model, capability: Capability, samples: Sequence[Mapping[str, np.ndarray]], how: str = "int8") -> tuple[Form, Plan]:
        layers = [name for name, why in eligible(model, capability, how).items() if why is None]
        found = Plan("any", "any", "fp32", precisions=dict.fromkeys(layers, how))
        table = calibrate(model, samples, key={})
        grid = UINT8 if capability.activation == "uint8" else INT8
        tensors = quantized_tensors(model, found, capability)
        return Form(model, table), replace(found, ranges={name: METHODS["minmax"](table.statistics[name], grid) for name in tensors})

    return plan


@pytest.fixture
def off() -> Callable[..., float]:
    """How far the typed form's outputs are from a model's on some samples: root mean square, relative."""

    def error(parent: Model, form: Form, plan: Plan, capability: Capability, samples: Sequence[Mapping[str, np.ndarray]]) -> float:
        engine, exact = Reference(simulated(typed(form.model, plan, capability))), Reference(parent.graph)
        name = parent.outputs[0].name
        pairs = [(exact.run(feed)[name].astype(np.float64), engine.run(feed)[name]) for feed in samples]
        return float(np.sqrt(sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(a).sum() for a, _ in pairs)))

    return error
