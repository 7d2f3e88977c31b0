from __future__ import annotations

import numpy as np
import pytest

from optimizer.backends.openvino.kernels import kernels_from
from optimizer.backends.openvino.realised import realised
from optimizer.model import PLANNED
from optimizer.report.coverage import coverage

PIXELS = {"x": (0.0, 255.0), "t": (0.0, 255.0), "b": (0.0, 9.0), "d": (0.0, 9.0)}

CONVOLUTIONS = """g (float[1,16,16,3] x) => (float[1,4] y) {
  t = Transpose<perm=[0,3,1,2]>(x)  a = Conv<pads=[1,1,1,1]>(t, w1)  b = Relu(a)
  c = Conv<pads=[1,1,1,1], group=16>(b, w2)  d = Relu(c)  p = GlobalAveragePool(d)  f = Flatten(p)  y = Gemm(f, w3) }"""
CONVOLUTION_WEIGHTS = {"w1": (16, 3, 3, 3), "w2": (16, 1, 3, 3), "w3": (16, 4)}

ATTENTION = """g (float[1,16,32] x) => (float[1,16,32] y) {
  four = Constant<value_ints=[1, 16, 2, 16]>()  three = Constant<value_ints=[1, 16, 32]>()
  q0 = MatMul(x, wq)  q1 = Add(q0, bq)  q2 = Reshape(q1, four)  q = Transpose<perm=[0,2,1,3]>(q2)
  k0 = MatMul(x, wk)  k1 = Add(k0, bk)  k2 = Reshape(k1, four)  k = Transpose<perm=[0,2,3,1]>(k2)
  v0 = MatMul(x, wv)  v1 = Add(v0, bv)  v2 = Reshape(v1, four)  v = Transpose<perm=[0,2,1,3]>(v2)
  qk = MatMul(q, k)  s = Softmax<axis=-1>(qk)  m0 = MatMul(s, v)  m1 = Transpose<perm=[0,2,1,3]>(m0)  m = Reshape(m1, three)
  o0 = MatMul(m, wo)  o = Add(o0, bo)  r = Add(o, x)  y = LayerNormalization<axis=-1>(r, g) }"""
ATTENTION_WEIGHTS = {**{f"w{part}": (32, 32) for part in "qkvo"}, **{f"b{part}": (32,) for part in "qkvo"}, "g": (32,)}


def test_convolutions_behind_raw_pixels_are_read_back_in_int8(model, built) -> None:
    """Of a range of 255 steps the scale is 1, which OpenVINO leaves out and then does not know the rest for a Q/DQ."""
    made = built(model(CONVOLUTIONS, CONVOLUTION_WEIGHTS), precisions=dict.fromkeys(("a", "c"), "int8"), ranges=PIXELS)
    assert [made.layer(name).realised for name in ("a", "c", "y")] == ["int8", "int8", "fp32"]
    assert made.layer("a").weights == 16 * 3 * 3 * 3
    assert made.layer("a").multiplications == 16 * 3 * 3 * 3 * 16 * 16
    assert made.layer("c").multiplications == 16 * 3 * 3 * 16 * 16
    assert made.layer("y").multiplications == 64
    assert made.layer("b").multiplications is None
    found = coverage(made.built.realised)
    assert found is not None
    assert (found.asked, found.got) == (2, 2)
    assert [one.layer for one in found.missing] == ["y"]
    assert found.share == pytest.approx(1 - 64 / (432 * 256 + 144 * 256 + 64))


def test_a_product_that_openvino_merged_with_its_bias_has_the_kernel_and_what_it_takes(model, built) -> None:
    made = built(model(ATTENTION, ATTENTION_WEIGHTS))
    for product in ("q0", "k0", "v0", "o0"):
        layer = made.layer(product)
        assert (layer.realised, layer.multiplications) == ("fp32", 16 * 32 * 32)
        assert layer.weights is not None
        assert layer.weights >= 4 * 32 * 32
        assert made.layer(product.replace("0", "1") if product != "o0" else "o").kernel.endswith(f"of {product}")
    assert not [layer for layer in made.built.realised if layer.realised == "folded" and layer.multiplications]
    times = [layer.ms for layer in made.built.realised if layer.ms is not None]
    assert 0 < sum(times) < 100
    assert made.largest_difference({"x": np.ones((1, 16, 32), np.float32)}) < 1e-5


def test_quantizing_the_inputs_of_attention_s_products_does_not_pass_for_running_them_in_int8(model, built) -> None:
    ranges = dict.fromkeys(("x", "q", "k", "v", "s", "m"), (-3.0, 3.0))
    asked = dict.fromkeys(("q0", "k0", "v0", "o0", "qk", "m0"), "int8")
    made = built(model(ATTENTION, ATTENTION_WEIGHTS), precisions=asked, ranges=ranges)
    assert made.layer("q0").realised == "int8"
    for product in ("qk", "m0"):
        layer = made.layer(product)
        assert layer.kernel.startswith("brgemm")
        assert (layer.realised == "int8") == layer.kernel.endswith("I8")
        assert layer.realised == "int8" or layer.reason == "planned INT8, ran in FP32: the plugin did not merge MatMul with its Q/DQ"


def test_a_product_lost_in_a_fused_attention_is_not_where_its_operand_was_quantized(model) -> None:
    net = model("g (float[4,4] x, float[4,4] z) => (float[4,4] y) { p = MatMul(x, z)  h = Mul(p, p)  y = Softmax(h) }").graph
    for node in net.graph:
        node.metadata_props[PLANNED] = "int8" if node.op_type == "MatMul" else "fp32"
    told = [
        {"kind": "Input", "precision": "f32"},
        {"kind": "Input", "precision": "f32"},
        {"kind": "Subgraph", "precision": "u8", "reads": [0], "quantizes": ["p"], "ms": 0.25},
        {"kind": "Subgraph", "precision": "f32", "reads": [2, 1], "layers": ["h", "y"], "ms": 0.5},
    ]
    blank = {"layers": [], "quantizes": [], "primitive": "jit", "ms": None, "bytes": 64, "reads": []}
    product, scaled, soft = realised(net, kernels_from([{**blank, **one} for one in told], net))
    assert (product.realised, product.ms) == ("fp32", 0.75)
    assert (scaled.kernel, soft.kernel, scaled.ms) == ("jit of p", "jit of p", None)


def test_layers_kept_exact_beside_bf16_are_told_where_the_plugin_does_not_obey(model, built) -> None:
    made = built(model(CONVOLUTIONS, CONVOLUTION_WEIGHTS), "bf16", {"a": "fp32"})
    assert (made.layer("a").realised, made.layer("c").realised) == ("fp32", "bf16")
    assert made.layer("b").reason == "planned BF16, ran in FP32: it is inside the kernel of a"
    weights = made.layer("a").weights, made.layer("c").weights
    assert weights == (4 * 16 * 3 * 3 * 3, 2 * 16 * 3 * 3)


@pytest.mark.parametrize("exact", [("c", "r", "d"), ("d",), ("d", "s"), ("d", "s", "y")], ids=" ".join)
@pytest.mark.parametrize("quantized", [False, True], ids=["bf16 behind", "int8 behind"])
def test_a_sum_behind_a_convolution_kept_exact_is_built_and_told_where_it_is_exact_too(model, built, exact, quantized: bool) -> None:
    weights = dict.fromkeys(("v", "w", "u"), (16, 16, 3, 3))
    conv = "Conv<pads=[1,1,1,1]>"
    net = model(
        f"""g (float[1,16,8,8] x) => (float[1,16,8,8] z) <float[16,16,3,3] v, float[16,16,3,3] w, float[16,16,3,3] u> {{
            a = Relu(x) c = {conv}(a, v) r = Relu(c) d = {conv}(r, w) s = Add(d, a) y = Relu(s) z = {conv}(y, u) }}""",
        weights,
    )
    precisions = dict.fromkeys(exact, "fp32") | ({"z": "int8"} if quantized else {})
    made = built(net, "bf16", precisions, {"y": (0.0, 4.0)} if quantized else None)
    assert made.layer("d").realised == "fp32"
    total = made.layer("s")
    assert total.realised == "fp32"
    assert ("it is inside the kernel of d" in total.reason) == ("s" not in exact)


@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_a_recurrent_layer_in_both_directions_is_one_layer_and_its_mark_is_not_obeyed(model, built, operator: str, gates: int) -> None:
    text = f"""g (float[10,2,16] x) => (float[10,2,2,8] y, float[20,2,8] z) {{
      y, last = {operator}<hidden_size=8, direction="bidirectional">(x, w, r)  s = Constant<value_ints=[20,2,8]>()
      e = Reshape(y, s)  z = Relu(e) }}"""
    made = built(model(text, {"w": (2, gates * 8, 16), "r": (2, gates * 8, 8)}), "bf16", {"y": "fp32"})
    layer = made.layer("y")
    assert layer.kernel.startswith("ref_any")
    assert layer.multiplications == 2 * gates * 8 * (16 + 8) * 10 * 2
    assert layer.realised == "bf16"
    assert layer.reason == "planned FP32, ran in BF16: the plugin ignores the mark on RNNSeq"


def test_the_memory_of_an_engine_is_that_of_its_kernels(model, built) -> None:
    made = built(model(CONVOLUTIONS, CONVOLUTION_WEIGHTS))
    memory = made.built.memory
    assert memory["file"] == sum(path.stat().st_size for path in made.folder.iterdir())
    assert memory["weights"] == 4 * (16 * 3 * 9 + 16 * 9 + 16 * 4)
    assert memory["activations"] == 2 * 4 * 16 * 16 * 16
