"""Q/DQ that TensorRT-RTX takes without a word and computes otherwise must be refused or told, by checks of ours."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from kernels.gpus import GPUS
from optimizer.backends import tensorrt
from optimizer.backends.tensorrt.losses import losses_of
from optimizer.errors import UnavailableError

real = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed (NVIDIA's licence): no engine is built")

L4 = GPUS["l4"]
WEIGHTS = np.random.default_rng(3).integers(-127, 128, (16, 16, 3, 3)).astype(np.int8)


def convolution(activation: str, **weights: np.ndarray) -> ir.Model:
    """An activation's Q/DQ, as text from `x` to `d`, before a convolution with int8 weights."""
    return graph(
        f"""{activation}
          [wdq] wd = DequantizeLinear(w, t, z)
          [conv] y = Conv(d, wd)""",
        w=WEIGHTS,
        **weights,
    )


def graph(nodes: str, shape: str = "1,16,8,8", **weights: np.ndarray) -> ir.Model:
    model = ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["": 23]>
        net (float[{shape}] x) => (float[a,b,c,d] y)
        <float s = {{0.05}}, float s2 = {{0.1}}, float t = {{0.01}}, int8 z = {{0}}, uint8 u = {{0}}, uint8 u9 = {{9}}, int8 z9 = {{9}}> {{
          {nodes}
        }}""",
        initializers=[ir.tensor(array, name=name) for name, array in weights.items()],
    )
    for value in model.graph.initializers.values():  # the text form leaves the types of given weights open
        assert value.const_value is not None
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(value.const_value.shape)
    return model


def per_tensor(scale: str = "s", zero: str = "z") -> str:
    return f"[act] q = QuantizeLinear(x, {scale}, {zero})\n [dq] d = DequantizeLinear(q, {scale}, {zero})"


PER_CHANNEL = {"c": np.full(16, 0.05, np.float32), "cz": np.zeros(16, np.int8)}
CONCAT = """[relu] r = Relu(x)
  [act] q = QuantizeLinear(r, s, z)
  [dq] d0 = DequantizeLinear(q, s, z)
  [act2] q2 = QuantizeLinear(r, {other}, z)
  [dq2] d1 = DequantizeLinear(q2, {other}, z)
  [concat] d = Concat<axis=1>(d0, d1)
  [wdq] wd = DequantizeLinear(wide, t, z)
  [conv] y = Conv(d, wd)"""


def test_uint8_is_refused_because_tensorrt_rtx_compiles_it_as_int8() -> None:
    with pytest.raises(UnavailableError, match=r"'act' is quantized to uint8.*over 127 would be clipped.*int8 with zero point 0"):
        losses_of(convolution(per_tensor(zero="u")), L4)


def test_a_quantizer_that_names_no_type_means_uint8_and_is_refused() -> None:
    model = convolution("[act] q = QuantizeLinear(x, s)\n [dq] d = DequantizeLinear(q, s)")
    with pytest.raises(UnavailableError, match="uint8"):
        losses_of(model, L4)


@pytest.mark.parametrize("zero", ["z9", "u9"])
def test_another_zero_point_than_0_is_refused(zero: str) -> None:
    with pytest.raises(UnavailableError, match="'act' is quantized"):
        losses_of(convolution(per_tensor(zero=zero)), L4)


def test_a_bias_in_int32_is_refused() -> None:
    model = graph("[bias] b = DequantizeLinear(i, s)\n [add] y = Add(x, b)", i=np.arange(8, dtype=np.int32))
    with pytest.raises(UnavailableError, match="'bias' has its bias as int32"):
        losses_of(model, L4)


def test_integer_operators_are_refused_with_the_way_out() -> None:
    model = graph("[dynamic] q, f, g = DynamicQuantizeLinear(x)\n [cast] y = Cast<to=1>(q)")
    with pytest.raises(UnavailableError, match=r"'dynamic' is a DynamicQuantizeLinear.*Give the float model"):
        losses_of(model, L4)


def test_sound_q_dq_loses_nothing() -> None:
    found = losses_of(convolution(per_tensor()), L4)
    assert (found.notes, found.reasons) == ((), {})


def test_scales_in_fp16_are_told() -> None:
    model = convolution(
        "[h] xh = Cast<to=10>(x)\n [act] q = QuantizeLinear(xh, half, z)\n [dq] d = DequantizeLinear(q, s, z)", half=np.float16(0.05)
    )
    assert any("act: its quantization scale is FLOAT16" in note for note in losses_of(model, L4).notes)


@real
@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("per channel", "per channel"),
        ("concat", "unequal scales"),
        ("weights only", "its activation is not"),
        ("transposed", "quantized ConvTranspose in float"),
    ],
)
def test_a_loss_that_is_predicted_is_what_the_build_shows_and_the_report_names_it(case: str, reason: str, tmp_path: Path) -> None:
    model = {
        "per channel": lambda: convolution(
            "[act] q = QuantizeLinear<axis=1>(x, c, cz)\n [dq] d = DequantizeLinear<axis=1>(q, c, cz)", **PER_CHANNEL
        ),
        "concat": lambda: graph(CONCAT.format(other="s2"), wide=np.concatenate([WEIGHTS, WEIGHTS], 1)),
        "weights only": lambda: graph("[wdq] wd = DequantizeLinear(w, t, z)\n [conv] y = Conv(x, wd)", w=WEIGHTS),
        "transposed": lambda: graph(f"{per_tensor()}\n [wdq] wd = DequantizeLinear(w, t, z)\n [conv] y = ConvTranspose(d, wd)", w=WEIGHTS),
    }[case]()
    for node in model.graph:
        if node.name == "conv":
            node.metadata_props["optimize.planned"] = "int8"
    found = tensorrt.build(model, L4, {}, tmp_path)
    layer = next(layer for layer in found.realised if layer.layer == "conv")
    assert (layer.planned, layer.realised) == ("int8", "fp32")
    assert reason in layer.reason
    assert any("1 planned in int8 run in fp32: conv" in note for note in found.notes)


@real
def test_a_concat_of_equal_scales_keeps_int8(tmp_path: Path) -> None:
    found = tensorrt.build(graph(CONCAT.format(other="s"), wide=np.concatenate([WEIGHTS, WEIGHTS], 1)), L4, {}, tmp_path)
    assert {layer.layer: layer.realised for layer in found.realised}["conv"] == "int8"
