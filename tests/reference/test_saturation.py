"""What pairs of uint8 x int8 products lose on a CPU without VNNI, held against a loop in numpy and against such kernels themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from optimizer.model import SATURATES
from optimizer.reference import Reference, simulated

STEP = 2.0**-7
ZERO = 3
QDQ = f"""<float s = {{{STEP}}}, uint8 z = {{{ZERO}}}, float ws = {{{STEP}}}, int8 wz = {{0}}> {{
  q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  w = DequantizeLinear(integers, ws, wz)  """
CONVOLUTION = (
    "net (float[1, {channels}, 7, 9] x) => (float[1, 16, n, m] y) "
    + QDQ
    + "y = Conv<kernel_shape = [3, 3], pads = [1, 0, 1, 1], strides = [2, 1], group = {group}>(d, w) }}"
)
PRODUCT = "net (float[5, 32] x) => (float[5, n] y) " + QDQ.replace("{", "{{").replace("}", "}}") + "y = {product} }}"
DYNAMIC = """net (float[5, 33] x) => (float[5, n] y) <int8 wz = {0}> {
  q, s, z = DynamicQuantizeLinear(x)  y = com.microsoft.MatMulIntegerToFloat(q, integers, s, ws, z, wz) }"""


def network(text: str, saturates: str = "terms", **constants: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    model = ir.from_proto(proto)
    if saturates:
        model.metadata_props[SATURATES] = saturates
    return model


def convolution(channels: int, group: int) -> str:
    braces = CONVOLUTION.replace("{channels}", str(channels)).replace("{group}", str(group))
    return braces.replace("}}", "}").replace("{{", "{")


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    """int8 weights, those of the first half of the output channels large and of one sign."""
    integers = np.random.default_rng(seed).integers(-127, 128, shape)
    integers[: shape[0] // 2] = np.abs(integers[: shape[0] // 2]) // 2 + 64
    return integers.astype(np.int8)


def paired(terms: np.ndarray) -> np.ndarray:
    """The sum over the last axis as `pmaddubsw` makes it."""
    even = terms.shape[-1] // 2 * 2
    pairs = np.clip(terms[..., 0:even:2] + terms[..., 1:even:2], -(2**15), 2**15 - 1)
    return pairs.sum(-1) + terms[..., even:].sum(-1)


def raw(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x / STEP) + ZERO, 0, 255)


@pytest.mark.parametrize(("channels", "group"), [(8, 1), (16, 2), (6, 1), (16, 16), (3, 1)])
@pytest.mark.parametrize("by_place", [False, True])
def test_a_convolution_adds_pairs_of_channels_at_one_place_of_its_kernel(channels: int, group: int, by_place: bool) -> None:
    weight = drawn(16, channels // group, 3, 3)
    x = np.random.default_rng(1).uniform(-0.1, 2, (1, channels, 7, 9)).astype(np.float32)
    padded = np.pad(raw(x), [(0, 0), (0, 0), (1, 1), (0, 1)], constant_values=ZERO)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[0, :, ::2]  # channel, row, column, kernel
    expected = np.empty((1, 16, *windows.shape[1:3]))
    for column in range(16):
        first = column // (16 // group) * (channels // group)
        own = windows[first : first + channels // group]
        terms = np.moveaxis(own * weight[column, :, None, None].astype(float), 0, -1)
        alone = by_place and channels // group > 1
        sums = paired(terms).sum((-2, -1)) if alone else paired(terms.reshape(*windows.shape[1:3], -1))
        expected[0, column] = (sums - ZERO * weight[column].sum(dtype=np.int64)) * STEP * STEP
    feeds = {"x": x}
    exact = Reference(simulated(network(convolution(channels, group), saturates="", integers=weight))).run(feeds)["y"]
    typed = network(convolution(channels, group), "places" if by_place else "terms", integers=weight)
    found = Reference(simulated(typed)).run(feeds)["y"]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(found - exact).max() > 1


@pytest.mark.parametrize(("product", "turned"), [("MatMul(d, w)", False), ("Gemm(d, w)", False), ("Gemm<transB = 1>(d, w)", True)])
def test_a_matrix_product_adds_pairs_of_neighbours(product: str, turned: bool) -> None:
    weight = drawn(24, 32)
    x = np.random.default_rng(1).uniform(-0.1, 2, (5, 32)).astype(np.float32)
    text = PRODUCT.replace("{product}", product).replace("{{", "{").replace("}}", "}")
    found = Reference(simulated(network(text, integers=weight if turned else weight.T.copy()))).run({"x": x})["y"]
    sums = paired(raw(x)[:, None, :] * weight.astype(float)) - ZERO * weight.sum(1, dtype=np.int64)
    np.testing.assert_allclose(found, sums * STEP * STEP, atol=1e-3)


def test_a_product_whose_range_is_found_at_every_run_saturates_too_and_an_odd_last_term_can_not() -> None:
    weight = drawn(24, 33)
    steps = np.linspace(0.001, 0.01, 24).astype(np.float32)
    x = np.random.default_rng(1).uniform(0, 2, (5, 33)).astype(np.float32)
    found = Reference(simulated(network(DYNAMIC, integers=weight.T.copy(), ws=steps))).run({"x": x})["y"]
    step = np.float32(x.max() / 255)
    sums = paired(np.rint(x / step)[:, None, :] * weight.astype(float))
    np.testing.assert_allclose(found, sums * steps * step, rtol=1e-5)


@pytest.mark.parametrize("limit", [63, 64])
def test_weights_of_seven_bits_lose_nothing_and_cost_no_node(limit: int) -> None:
    weight = np.where(drawn(16, 8, 3, 3) > 0, limit, -limit).astype(np.int8)
    model = network(convolution(8, 1), integers=weight)
    assert len(simulated(model).graph) == len(model.graph)
    assert len(simulated(network(convolution(8, 1), integers=np.where(weight > 0, 65, -65).astype(np.int8))).graph) > len(model.graph)


def test_what_the_caller_named_keeps_its_name() -> None:
    model = network(convolution(8, 1), integers=drawn(16, 8, 3, 3))
    made = simulated(model)
    assert [value.name for value in made.graph.outputs] == ["y"]
    assert "y" not in [value.name for node in made.graph if node.op_type == "Conv" for value in node.outputs]


KERNELS = """
import sys
import numpy as np, openvino as ov
feeds = np.load(sys.argv[1])
found, hint = {}, {"INFERENCE_PRECISION_HINT": "f32"}
for name in feeds.files:
    found[name] = ov.Core().compile_model(f"{sys.argv[2]}/{name}.onnx", "CPU", hint)([feeds[name]])[0]
np.savez(sys.argv[1], **found)
"""


def test_kernels_without_vnni_lose_what_the_simulation_says(tmp_path: Path) -> None:
    """oneDNN, held to AVX2 in a process of its own, computes INT8 on this CPU as on one without VNNI."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    rng = np.random.default_rng(1)
    cases = {
        "dense": (convolution(8, 1), drawn(16, 8, 3, 3), rng.uniform(0, 2, (1, 8, 7, 9))),
        "odd": (convolution(3, 1), drawn(16, 3, 3, 3), rng.uniform(0, 2, (1, 3, 7, 9))),
        "grouped": (convolution(16, 2), drawn(16, 8, 3, 3), rng.uniform(0, 2, (1, 16, 7, 9))),
        "product": (
            PRODUCT.replace("{product}", "MatMul(d, w)").replace("{{", "{").replace("}}", "}"),
            drawn(24, 32).T.copy(),
            rng.uniform(0, 2, (5, 32)),
        ),
    }
    feeds = {name: x.astype(np.float32) for name, (_, _, x) in cases.items()}
    models = {name: network(text, "places", integers=weight) for name, (text, weight, _) in cases.items()}
    for name, model in models.items():
        ir.save(model, tmp_path / f"{name}.onnx")
    np.savez(tmp_path / "feeds.npz", **feeds)
    limited = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    subprocess.run([sys.executable, "-c", KERNELS, str(tmp_path / "feeds.npz"), str(tmp_path)], check=True, env=limited, timeout=120)
    kernels = np.load(tmp_path / "feeds.npz")
    for name, model in models.items():
        found = Reference(simulated(model)).run({"x": feeds[name]})["y"]
        np.testing.assert_allclose(found, kernels[name], atol=1e-3, err_msg=name)
        model.metadata_props.clear()
        assert np.abs(Reference(model).run({"x": feeds[name]})["y"] - kernels[name]).max() > 1, name
