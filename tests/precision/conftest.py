"""Small real shapes, the two styles of Q/DQ as capabilities, and a plan whose ranges come from a run in float."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from calibration.ranges import Range
from optimizer.graph import infer_shapes
from optimizer.model import Model, Source
from optimizer.plan import Capability, Plan
from optimizer.precision import quantized_tensors
from optimizer.reference import Reference

HEAD = '<ir_version: 10, opset_import: ["": 20]>'

RESIDUAL = """
residual (float[N, 3, 16, 16] x) => (float[N, 10] logits)
{
  c1 = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, stem_weight, stem_bias)
  r1 = Relu(c1)
  p1 = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r1)
  c2 = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(p1, conv1_weight, conv1_bias)
  r2 = Relu(c2)
  c3 = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r2, conv2_weight, conv2_bias)
  a = Add(c3, p1)
  r3 = Relu(a)
  g = GlobalAveragePool(r3)
  f = Flatten<axis = 1>(g)
  logits = Gemm<transB = 1>(f, linear_weight, linear_bias)
}"""

RESIDUAL_WEIGHTS = {
    "stem_weight": (16, 3, 3, 3),
    "stem_bias": (16,),
    "conv1_weight": (16, 16, 3, 3),
    "conv1_bias": (16,),
    "conv2_weight": (16, 16, 3, 3),
    "conv2_bias": (16,),
    "linear_weight": (10, 16),
    "linear_bias": (10,),
}

TRANSFORMER = """
block (float[1, 8, 32] x) => (float[1, 8, 32] y)
<int64[4] split = {1, 8, 2, 16}, int64[3] merge = {1, 8, 32}, float scale = {0.25}>
{
  n = LayerNormalization<axis = -1>(x, norm_weight, norm_shift)
  q0 = MatMul(n, query_weight)
  q1 = Reshape(q0, split)
  q = Transpose<perm = [0, 2, 1, 3]>(q1)
  k0 = MatMul(n, key_weight)
  k1 = Reshape(k0, split)
  k = Transpose<perm = [0, 2, 3, 1]>(k1)
  v0 = MatMul(n, value_weight)
  v1 = Reshape(v0, split)
  v = Transpose<perm = [0, 2, 1, 3]>(v1)
  s0 = MatMul(q, k)
  s1 = Mul(s0, scale)
  s = Softmax<axis = -1>(s1)
  m0 = MatMul(s, v)
  m1 = Transpose<perm = [0, 2, 1, 3]>(m0)
  m = Reshape(m1, merge)
  o = MatMul(m, out_weight)
  a = Add(o, x)
  n2 = LayerNormalization<axis = -1>(a, norm_weight, norm_shift)
  h0 = MatMul(n2, up_weight)
  h1 = Add(h0, up_bias)
  h = Gelu(h1)
  d0 = MatMul(h, down_weight)
  y = Add(d0, a)
}"""

TRANSFORMER_WEIGHTS = {
    "norm_weight": (32,),
    "norm_shift": (32,),
    "query_weight": (32, 32),
    "key_weight": (32, 32),
    "value_weight": (32, 32),
    "out_weight": (32, 32),
    "up_weight": (32, 64),
    "up_bias": (64,),
    "down_weight": (64, 32),
}

TABLE = """
recommend (float[N, 17] x) => (float[N, 8] y)
<int64[1] zero = {0}, int64[1] split = {16}, int64[1] last = {17}, int64[1] one = {1}>
{
  dense = Slice(x, zero, split, one)
  codes = Slice(x, split, last, one)
  flat = Squeeze(codes, one)
  rounded = Floor(flat)
  ids = Cast<to = 7>(rounded)
  rows = Gather(table_weight, ids)
  h = Gemm(dense, bottom_weight, bottom_bias)
  r = Relu(h)
  both = Concat<axis = 1>(r, rows)
  t = Gemm(both, top_weight, top_bias)
  y = Sigmoid(t)
}"""

TABLE_WEIGHTS = {"table_weight": (5000, 8), "bottom_weight": (16, 8), "bottom_bias": (8,), "top_weight": (16, 8), "top_bias": (8,)}

RECURRENT = """
recurrent (float[T, 1, 24] x) => (float[T, 1, 40] y)
<int64[2] axes = {0, 0}, int64[1] first = {1}>
{
  s, last, cell = LSTM<hidden_size = 40>(x, lstm_weight, lstm_recurrence, lstm_bias)
  y = Squeeze(s, first)
}"""

RECURRENT_WEIGHTS = {"lstm_weight": (1, 160, 24), "lstm_recurrence": (1, 160, 40), "lstm_bias": (1, 320)}


def _model(text: str, shapes: Mapping[str, tuple[int, ...]] | None = None, seed: int = 0) -> Model:
    """A model from text; weights of the given shapes are drawn with a spread that differs from channel to channel."""
    rng = np.random.default_rng(seed)
    proto = onnx.parser.parse_model(HEAD + text)
    for name, shape in (shapes or {}).items():
        spread = np.exp(rng.normal(0, 0.5, (shape[0], *[1] * (len(shape) - 1))))
        fan = max(int(np.prod(shape[1:])), 1)
        array = (rng.standard_normal(shape) * spread / np.sqrt(fan)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    graph = ir.from_proto(proto)
    infer_shapes(graph)
    for node in graph.graph:
        node.name = {"Conv": "conv.", "MatMul": "linear.", "Gemm": "linear."}.get(node.op_type, "") + (node.outputs[0].name or "")
    return Model(graph, Source("onnx", "model.onnx", "0" * 64))


@pytest.fixture
def model() -> Callable[..., Model]:
    return _model


@pytest.fixture
def residual() -> Model:
    return _model(RESIDUAL, RESIDUAL_WEIGHTS)


@pytest.fixture
def transformer() -> Model:
    return _model(TRANSFORMER, TRANSFORMER_WEIGHTS)


@pytest.fixture
def recommender() -> Model:
    return _model(TABLE, TABLE_WEIGHTS)


@pytest.fixture
def recurrent() -> Model:
    return _model(RECURRENT, RECURRENT_WEIGHTS)


@pytest.fixture
def cpu() -> Capability:
    """What ONNX Runtime's kernels want: uint8 activations, integers written too, bias in int32."""
    operators = {"Conv", "Gemm", "MatMul", "Add", "Mul", "MaxPool", "Concat", "GlobalAveragePool", "Flatten", "Reshape", "Transpose"}
    return Capability(
        precisions=frozenset({"fp32", "fp16", "int8", "int8_dynamic"}),
        activation="uint8",
        int8_operators=frozenset(operators | {"Slice", "Gather", "Squeeze"}),
        dynamic_operators=frozenset({"MatMul", "Gemm", "LSTM"}),
        base="fp32",
        opset=23,
        runs_here=True,
        quantize_outputs=True,
    )


@pytest.fixture
def gpu() -> Capability:
    """What TensorRT wants: int8 with zero point 0 on inputs only, one scale a weight, bias in float, on an FP16 base."""
    return Capability(
        precisions=frozenset({"fp32", "fp16", "bf16", "int8"}),
        activation="int8",
        int8_operators=frozenset({"Conv", "Gemm", "MatMul"}),
        base="fp16",
        opset=23,
        runs_here=False,
        scalar_weight_scale=True,
        float_bias=True,
        attention_head_sizes=frozenset({16, 32, 64}),
        attention_length=512,
        refusals={"int8:DepthwiseConv": "a depthwise convolution gets slower", "fp32:Einsum": "no FP32 Einsum"},
    )


@pytest.fixture
def samples() -> Callable[[Model], dict[str, np.ndarray]]:
    def draw(model: Model, seed: int = 1) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        sizes = {spec.name: [size if isinstance(size, int) else 4 for size in spec.shape] for spec in model.inputs}
        return {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}

    return draw


@pytest.fixture
def ranged() -> Callable[..., Plan]:
    """The plan with the smallest and largest number of each tensor that it quantizes, seen in a float run of `feeds`."""

    def observe(model: Model, plan: Plan, capability: Capability, feeds: Mapping[str, np.ndarray]) -> Plan:
        wanted = quantized_tensors(model, plan, capability)
        seen = Reference(model.graph, watch=wanted).run(feeds)
        ranges = {name: Range("minmax", float(seen[name].min()), float(seen[name].max())) for name in wanted}
        return replace(plan, ranges=ranges)

    return observe


@pytest.fixture
def sqnr() -> Callable[[np.ndarray, np.ndarray], float]:
    """Signal to quantization noise in dB."""

    def ratio(exact: np.ndarray, found: np.ndarray) -> float:
        noise = float(((exact.astype(np.float64) - found) ** 2).sum())
        return float("inf") if noise == 0 else 10 * np.log10(float((exact.astype(np.float64) ** 2).sum()) / noise)

    return ratio


@pytest.fixture
def kernels(tmp_path) -> Callable[[ir.Model], list[str]]:
    """The operators of the graph as ONNX Runtime's CPU will run it, in its own words."""

    def run(graph: ir.Model) -> list[str]:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        ort.InferenceSession(ir.to_proto(graph).SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]

    return run
