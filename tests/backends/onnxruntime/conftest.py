"""Small models with random weights, each a shape of network that ONNX Runtime merges in its own way, and their Q/DQ forms."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from optimizer.graph import infer_shapes
from optimizer.model import PLANNED, is_layer

RESIDUAL = """
<ir_version: 9, opset_import: ["": 20]>
g (float[N,3,16,16] x) => (float[N,10] y) {
  c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
  r1 = Relu(c1)
  c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)
  r2 = Relu(c2)
  c3 = Conv<pads=[1,1,1,1]>(r2, w3, b3)
  a = Add(c3, r1)
  r3 = Relu(a)
  p = GlobalAveragePool(r3)
  f = Flatten(p)
  y = Gemm<transB=1>(f, wf, bf)
}"""
RESIDUAL_WEIGHTS = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (16, 16, 3, 3), "b2": (16,), "w3": (16, 16, 3, 3), "b3": (16,)}

TRANSFORMER = """
<ir_version: 9, opset_import: ["": 20]>
g (float[1,32,64] x) => (float[1,32,64] y) {
  heads = Constant<value_ints=[1, 32, 4, 16]>()
  joined = Constant<value_ints=[1, 32, 64]>()
  root = Constant<value=float {4.0}>()
  q0 = MatMul(x, wq)
  q1 = Add(q0, bq)
  q2 = Reshape(q1, heads)
  q = Transpose<perm=[0,2,1,3]>(q2)
  k0 = MatMul(x, wk)
  k1 = Add(k0, bk)
  k2 = Reshape(k1, heads)
  k = Transpose<perm=[0,2,3,1]>(k2)
  v0 = MatMul(x, wv)
  v1 = Add(v0, bv)
  v2 = Reshape(v1, heads)
  v = Transpose<perm=[0,2,1,3]>(v2)
  qk = MatMul(q, k)
  scores = Div(qk, root)
  attention = Softmax<axis=-1>(scores)
  mixed = MatMul(attention, v)
  back = Transpose<perm=[0,2,1,3]>(mixed)
  flat = Reshape(back, joined)
  o0 = MatMul(flat, wo)
  o1 = Add(o0, bo)
  sum1 = Add(o1, x)
  norm1 = LayerNormalization<axis=-1>(sum1, g1, h1)
  u0 = MatMul(norm1, wu)
  u1 = Add(u0, bu)
  gelu = Gelu(u1)
  d0 = MatMul(gelu, wd)
  d1 = Add(d0, bd)
  sum2 = Add(d1, norm1)
  y = LayerNormalization<axis=-1>(sum2, g2, h2)
}"""
TRANSFORMER_WEIGHTS = {
    **{f"w{part}": (64, 64) for part in "qkvo"},
    **{f"b{part}": (64,) for part in "qkvo"},
    **{"wu": (64, 256), "bu": (256,), "wd": (256, 64), "bd": (64,), "g1": (64,), "h1": (64,), "g2": (64,), "h2": (64,)},
}

RECURRENT = """
<ir_version: 9, opset_import: ["": 20]>
g (float[12,1,32] x) => (float[1,1,10] y) {
  one = Constant<value_ints=[1]>()
  h1, last1, cell1 = LSTM<hidden_size=64>(x, w1, r1, b1)
  s = Squeeze(h1, one)
  h2, last2, cell2 = LSTM<hidden_size=64>(s, w2, r2, b2)
  y = MatMul(last2, wo)
}"""
RECURRENT_WEIGHTS = {"w1": (1, 256, 32), "w2": (1, 256, 64), "r1": (1, 256, 64), "r2": (1, 256, 64), "b1": (1, 512), "b2": (1, 512)}

MODELS = {
    "residual": (RESIDUAL, {**RESIDUAL_WEIGHTS, "wf": (10, 16), "bf": (10,)}),
    "transformer": (TRANSFORMER, TRANSFORMER_WEIGHTS),
    "recurrent": (RECURRENT, {**RECURRENT_WEIGHTS, "wo": (64, 10)}),
}


def graph_from_text(text: str, weights: dict[str, tuple[int, ...]] | None = None, planned: str = "fp32") -> ir.Model:
    """A typed graph: every layer `layer.<output>`, planned in one precision, weights random in -0.2 to 0.2 or so."""
    rng = np.random.default_rng(0)
    model = ir.from_onnx_text(text)
    for name, shape in (weights or {}).items():
        value = next(value for node in model.graph for value in node.inputs if value is not None and value.name == name)
        value.const_value = ir.tensor((0.2 * rng.standard_normal(shape)).astype(np.float32), name=name)
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        model.graph.register_initializer(value)
    for node in model.graph:
        node.name = f"layer.{node.outputs[0].name}"
    infer_shapes(model)
    return plan_all(model, planned)


def plan_all(model: ir.Model, planned: str) -> ir.Model:
    for node in model.graph:
        if is_layer(node):
            node.metadata_props[PLANNED] = planned
    return model


class _Noise(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, model: ir.Model) -> None:
        rng = np.random.default_rng(1)
        shapes = {value.name: [size if isinstance(size, int) else 2 for size in value.shape] for value in model.graph.inputs}
        self._left = [{name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(4)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._left.pop() if self._left else None


@pytest.fixture
def graph() -> Callable[..., ir.Model]:
    """`graph("residual")`: one of MODELS; `graph(text, weights)`: another one."""

    def made(text: str, weights: dict[str, tuple[int, ...]] | None = None, planned: str = "fp32") -> ir.Model:
        known = MODELS.get(text)
        return graph_from_text(*known, planned=planned) if known else graph_from_text(text, weights, planned)

    return made


@pytest.fixture
def quantized(tmp_path: Path) -> Callable[..., ir.Model]:
    """A graph in static INT8 as ONNX Runtime's own tool writes it: Q/DQ around everything that the tool knows."""
    logging.disable(logging.WARNING)

    def made(model: ir.Model, **settings: object) -> ir.Model:
        ir.save(model, tmp_path / "float.onnx")
        quantize_static(
            tmp_path / "float.onnx",
            tmp_path / "int8.onnx",
            _Noise(model),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            **settings,
        )
        return plan_all(ir.load(tmp_path / "int8.onnx"), "int8")

    return made


@pytest.fixture
def dynamic(tmp_path: Path) -> Callable[[ir.Model], ir.Model]:
    """A graph in dynamic INT8 as ONNX Runtime's own tool writes it, its integer products planned so."""
    logging.disable(logging.WARNING)

    def made(model: ir.Model) -> ir.Model:
        ir.save(model, tmp_path / "float.onnx")
        quantize_dynamic(tmp_path / "float.onnx", tmp_path / "dynamic.onnx", weight_type=QuantType.QInt8, per_channel=True)
        found = plan_all(ir.load(tmp_path / "dynamic.onnx"), "fp32")
        for node in found.graph:
            if node.op_type in {"MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM"}:
                node.metadata_props[PLANNED] = "int8_dynamic"
        return found

    return made
