"""TensorRT-RTX builds real engines here, without a GPU; what its layer list tells must reach the user layer by layer."""

from __future__ import annotations

import inspect
import json
import signal
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from calibration.ranges import Range
from kernels.gpus import GPUS
from kernels.target import this_cpu
from optimizer.backends import tensorrt
from optimizer.backends.tensorrt import driver, runtime
from optimizer.engine import Built, Realised
from optimizer.errors import InputError, UnavailableError
from optimizer.graph import infer_shapes
from optimizer.model import FOR_LAYER, SHAPES, Model, Source, is_layer
from optimizer.plan import Plan
from optimizer.precision import eligible, quantized_tensors, typed
from optimizer.process import run_worker

real = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed (NVIDIA's licence): no engine is built")

NUMBERS = np.random.default_rng(7)


def graph(text: str, **weights: np.ndarray) -> ir.Model:
    """A model from text; `__` in a node's name stands for the dot that the text form does not know."""
    model = ir.from_onnx_text(text, initializers=[ir.tensor(array, name=name) for name, array in weights.items()])
    for value in model.graph.initializers.values():  # the text form leaves the types of given weights open
        assert value.const_value is not None
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(value.const_value.shape)
    for node in model.graph:
        node.name = (node.name or "").replace("__", ".")
    return model


def small(*shape: int, dtype: str = "float16") -> np.ndarray:
    return (NUMBERS.standard_normal(shape) * 0.1).astype(dtype)


def integers(*shape: int) -> np.ndarray:
    return NUMBERS.integers(-127, 128, shape).astype(np.int8)


def fp16_convolutions() -> ir.Model:
    return graph(
        """<ir_version: 11, opset_import: ["": 23]>
        net (float[1,3,32,32] x) => (float[1,10] y) {
          [x__half] h = Cast<to=10>(x)
          [stem__conv] c = Conv<pads=[1,1,1,1]>(h, w1, b1)
          [stem__relu] r = Relu(c)
          [block__conv] d = Conv<pads=[1,1,1,1]>(r, w2, b2)
          [block__add] a = Add(d, r)
          [block__relu] e = Relu(a)
          [pool] p = GlobalAveragePool(e)
          [flatten] f = Flatten(p)
          [head] o = Gemm(f, w3, b3)
          [y__wide] y = Cast<to=1>(o)
        }""",
        w1=small(16, 3, 3, 3),
        b1=small(16),
        w2=small(16, 16, 3, 3),
        b2=small(16),
        w3=small(16, 10),
        b3=small(10),
    )


def fp32_convolutions() -> ir.Model:
    model = graph(
        """<ir_version: 10, opset_import: ["": 20]>
        net (float[1,3,32,32] x) => (float[1,10] y) {
          [stem__conv] c = Conv<pads=[1,1,1,1]>(x, w1, b1)
          [stem__relu] r = Relu(c)
          [block__conv] d = Conv<pads=[1,1,1,1]>(r, w2, b2)
          [block__add] a = Add(d, r)
          [pool] p = GlobalAveragePool(a)
          [flatten] f = Flatten(p)
          [head] y = Gemm(f, w3, b3)
        }""",
        w1=small(16, 3, 3, 3, dtype="float32"),
        b1=small(16, dtype="float32"),
        w2=small(16, 16, 3, 3, dtype="float32"),
        b2=small(16, dtype="float32"),
        w3=small(16, 10, dtype="float32"),
        b3=small(10, dtype="float32"),
    )
    infer_shapes(model)
    return model


def int8_convolutions() -> ir.Model:
    return graph(
        """<ir_version: 11, opset_import: ["": 23]>
        net (float[1,3,32,32] x) => (float[1,16,32,32] y)
        <float s = {0.05}, float t = {0.001}, int8 z = {0}> {
          [x__half] h = Cast<to=10>(x)
          [q1] h8 = QuantizeLinear(h, s, z)
          [dq1] hd = DequantizeLinear<output_dtype=10>(h8, s, z)
          [wq1] w1 = DequantizeLinear<output_dtype=10>(w1i, t, z)
          [stem__conv] c = Conv<pads=[1,1,1,1]>(hd, w1, b1)
          [stem__relu] r = Relu(c)
          [q2] r8 = QuantizeLinear(r, s, z)
          [dq2] rd = DequantizeLinear<output_dtype=10>(r8, s, z)
          [wq2] w2 = DequantizeLinear<output_dtype=10>(w2i, t, z)
          [block__conv] d = Conv<pads=[1,1,1,1]>(rd, w2, b2)
          [block__add] a = Add(d, r)
          [y__wide] y = Cast<to=1>(a)
        }""",
        w1i=integers(16, 3, 3, 3),
        b1=small(16),
        w2i=integers(16, 16, 3, 3),
        b2=small(16),
    )


def int8_linears() -> ir.Model:
    """Two linear layers with a GELU and a LayerNormalization, quantized as the rules for this backend say: the channels' ratio
    of a weight stands as a Mul that serves its layer."""
    model = graph(
        """<ir_version: 11, opset_import: ["": 23]>
        ffn (float[1,64,128] x) => (float[1,64,128] y)
        <float s = {0.05}, float t = {0.001}, int8 z = {0}> {
          [x__half] h = Cast<to=10>(x)
          [q1] h8 = QuantizeLinear(h, s, z)
          [dq1] hd = DequantizeLinear<output_dtype=10>(h8, s, z)
          [wq1] w1 = DequantizeLinear<output_dtype=10>(w1i, t, z)
          [ffn__up] m1 = MatMul(hd, w1)
          [ratio1] n1 = Mul(m1, r1)
          [ffn__up_bias] a1 = Add(n1, b1)
          [ffn__gelu] g = Gelu(a1)
          [q2] g8 = QuantizeLinear(g, s, z)
          [dq2] gd = DequantizeLinear<output_dtype=10>(g8, s, z)
          [wq2] w2 = DequantizeLinear<output_dtype=10>(w2i, t, z)
          [ffn__down] m2 = MatMul(gd, w2)
          [ratio2] n2 = Mul(m2, r2)
          [residual] a2 = Add(n2, h)
          [norm] l = LayerNormalization<axis=-1>(a2, gamma, beta)
          [y__wide] y = Cast<to=1>(l)
        }""",
        w1i=integers(128, 256),
        r1=np.abs(small(256)),
        b1=small(256),
        w2i=integers(256, 128),
        r2=np.abs(small(128)),
        gamma=np.ones(128, np.float16),
        beta=np.zeros(128, np.float16),
    )
    for node in model.graph:
        if (node.name or "").startswith("ratio"):
            node.metadata_props[FOR_LAYER] = "ffn.up" if node.name == "ratio1" else "ffn.down"
    return model


def fp16_linears() -> ir.Model:
    """The same layers as `int8_linears`, not quantized."""
    return graph(
        """<ir_version: 11, opset_import: ["": 23]>
        ffn (float[1,64,128] x) => (float[1,64,128] y) {
          [x__half] h = Cast<to=10>(x)
          [ffn__up] m1 = MatMul(h, w1)
          [ffn__up_bias] a1 = Add(m1, b1)
          [ffn__gelu] g = Gelu(a1)
          [ffn__down] m2 = MatMul(g, w2)
          [residual] a2 = Add(m2, h)
          [norm] l = LayerNormalization<axis=-1>(a2, gamma, beta)
          [y__wide] y = Cast<to=1>(l)
        }""",
        w1=small(128, 256),
        b1=small(256),
        w2=small(256, 128),
        gamma=np.ones(128, np.float16),
        beta=np.zeros(128, np.float16),
    )


def fp16_attention() -> ir.Model:
    return graph(
        """<ir_version: 11, opset_import: ["": 23]>
        attention (float[1,64,128] x) => (float[1,64,128] y)
        <int64[4] heads = {1, 64, 4, 32}, int64[3] joined = {1, 64, 128}> {
          [x__half] h = Cast<to=10>(x)
          [q] q0 = MatMul(h, wq)
          [q__reshape] q1 = Reshape(q0, heads)
          [q__transpose] q2 = Transpose<perm=[0,2,1,3]>(q1)
          [k] k0 = MatMul(h, wk)
          [k__reshape] k1 = Reshape(k0, heads)
          [k__transpose] k2 = Transpose<perm=[0,2,3,1]>(k1)
          [v] v0 = MatMul(h, wv)
          [v__reshape] v1 = Reshape(v0, heads)
          [v__transpose] v2 = Transpose<perm=[0,2,1,3]>(v1)
          [scores] s = MatMul(q2, k2)
          [scaled] t = Mul(s, scale)
          [softmax] p = Softmax<axis=-1>(t)
          [context] c = MatMul(p, v2)
          [context__transpose] d = Transpose<perm=[0,2,1,3]>(c)
          [context__reshape] e = Reshape(d, joined)
          [out] o = MatMul(e, wo)
          [y__wide] y = Cast<to=1>(o)
        }""",
        scale=np.array(32**-0.5, np.float16),
        **{name: small(128, 128) for name in ("wq", "wk", "wv", "wo")},
    )


def fp32_linear() -> ir.Model:
    return graph(
        """<ir_version: 11, opset_import: ["": 23]>
        net (float[4,32] x) => (float[4,8] y) { [encoder__fc] y = MatMul(x, w) }""",
        w=small(32, 8, dtype="float32"),
    )


def built(model: ir.Model, target: str, folder: Path) -> Built:
    return tensorrt.build(model, GPUS[target], {}, folder)


def by_layer(found: Built) -> dict[str, Realised]:
    return {layer.layer: layer for layer in found.realised}


@real
@pytest.mark.parametrize("target", ["t4", "a10g", "rtx-5090"])
@pytest.mark.parametrize("make", [fp16_convolutions, fp16_attention])
def test_an_fp16_graph_becomes_an_engine_whose_layers_all_run_in_fp16(make: object, target: str, tmp_path: Path) -> None:
    model = make()  # type: ignore[operator]
    found = built(model, target, tmp_path)
    assert (tmp_path / "engine.plan").stat().st_size == found.memory["engine"] > 100_000
    assert [layer.layer for layer in found.realised] == [node.name for node in model.graph if is_layer(node)]
    assert {layer.realised for layer in found.realised} <= {"fp16", "folded"}
    assert found.memory["weights"] > 0
    assert found.memory["activations"] >= found.memory["scratch"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine.plan"]


@real
def test_int8_convolutions_run_in_int8_where_the_gpu_has_them(tmp_path: Path) -> None:
    layers = by_layer(built(int8_convolutions(), "l4", tmp_path))
    assert [(layers[name].planned, layers[name].realised) for name in ("stem.conv", "block.conv")] == [("int8", "int8")] * 2
    assert layers["block.add"].kernel == layers["block.conv"].kernel, "the residual is added in the convolution's kernel"


@real
def test_on_sm_75_a_quantized_convolution_is_seen_to_run_in_fp16_and_the_report_says_why(tmp_path: Path) -> None:
    found = built(int8_convolutions(), "t4", tmp_path)
    layer = by_layer(found)["block.conv"]
    assert (layer.planned, layer.realised) == ("int8", "fp16")
    assert "no INT8 convolution for compute capability 7.5" in layer.reason
    assert any(note.startswith("2 planned in int8 run in fp16: stem.conv, block.conv") for note in found.notes)


@real
@pytest.mark.parametrize("target", ["t4", "rtx-3090", "rtx-5090"])
def test_int8_linears_run_in_int8_also_on_sm_75_and_their_helpers_count_for_them(target: str, tmp_path: Path) -> None:
    found = built(int8_linears(), target, tmp_path)
    layers = by_layer(found)
    assert {name: layer.realised for name, layer in layers.items()} == {
        "ffn.up": "int8",
        "ffn.up_bias": "fp16",
        "ffn.gelu": "fp16",
        "ffn.down": "int8",
        "residual": "fp16",
        "norm": "fp16",
    }
    product = next(launch for launch in found.launches if launch.kind == "gemm" and "ffn.up" in launch.layers)
    assert product.precision == "int8"
    # 64x128 int8 read, 128x256 int8 weights, 64x256 FP16 written, two scalars of 4 bytes
    assert product.bytes == 64 * 128 + 128 * 256 + 64 * 256 * 2 + 8


@real
def test_the_int8_plan_is_seen_to_move_fewer_bytes_than_the_fp16_plan(tmp_path: Path) -> None:
    """What the planner weighs: the launches of two builds and the bytes that they move."""
    quantized = built(int8_linears(), "l4", tmp_path)
    plain = built(fp16_linears(), "l4", tmp_path)
    assert sum(launch.bytes for launch in quantized.launches) < sum(launch.bytes for launch in plain.launches)


@real
def test_fused_attention_is_one_launch_that_names_its_layers(tmp_path: Path) -> None:
    found = built(fp16_attention(), "l4", tmp_path)
    fused = next(launch for launch in found.launches if "softmax" in launch.layers)
    assert {"scores", "scaled", "softmax", "context"} <= set(fused.layers)
    assert by_layer(found)["context.reshape"].realised == "folded"


@real
def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    model = int8_linears()
    engines = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        built(model, "l4", folder)
        engines.append((folder / "engine.plan").read_bytes())
    assert engines[0] == engines[1]


@real
def test_names_that_would_confuse_the_layer_list_come_back_as_the_user_wrote_them(tmp_path: Path) -> None:
    model = fp16_convolutions()
    names = ["blocks[0].conv", "a ],[ONNX Layer: b", "[bold]relu[/bold]", "x" * 300, "blocks(0).conv"]
    for node, name in zip((node for node in model.graph if is_layer(node)), names, strict=False):
        node.name = name
    found = built(model, "l4", tmp_path)
    assert [layer.layer for layer in found.realised][: len(names)] == names
    assert all(layer.realised == "fp16" for layer in found.realised[: len(names)])


@real
@pytest.mark.parametrize("name", ["a\nb\r]", "x" * 10_000])
def test_tensors_may_be_called_anything_inside_and_are_refused_in_words_as_inputs(name: str, tmp_path: Path) -> None:
    model = fp16_convolutions()
    for node in model.graph:
        for value in node.outputs:
            value.name = value.name if value.is_graph_output() else f"{name}{value.name}"
    built = tensorrt.build(model, GPUS["l4"], {}, tmp_path)
    assert {layer.realised for layer in built.realised if layer.operator == "Conv"} == {"fp16"}
    model.graph.inputs[0].name = name
    with pytest.raises(UnavailableError, match="takes no input or output called"):
        tensorrt.build(model, GPUS["l4"], {}, tmp_path)


@real
def test_progress_is_told_while_the_build_goes_on(tmp_path: Path) -> None:
    steps: list[str] = []
    tensorrt.build(fp16_convolutions(), GPUS["l4"], {}, tmp_path, lambda step, done, total: steps.append(step))  # noqa: ARG005
    assert steps
    assert all(step.startswith("TensorRT-RTX for l4: ") for step in steps)


@real
def test_a_build_that_is_stopped_ends_its_child_at_once_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def watched(*words: Any, **more: Any) -> Any:
        started.append(run_worker(*words, **more))
        return started[0]

    def stop(step: str, done: int, total: int) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorrt, "run_worker", watched)
    with pytest.raises(KeyboardInterrupt):
        tensorrt.build(fp16_convolutions(), GPUS["l4"], {}, tmp_path, stop)
    assert inspect.getgeneratorstate(started[0]) == inspect.GEN_CLOSED, "which ends the child, see tests/process"
    assert not list(tmp_path.iterdir())


@real
def test_a_folder_may_be_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    built(fp32_linear(), "l4", Path("out"))
    assert Path("out/engine.plan").is_file()


@real
@pytest.mark.parametrize(("target", "expected"), [("l4", {"int8"}), ("t4", {"fp16"})])
def test_a_plan_shaped_by_the_capability_is_realised_as_planned(target: str, expected: set[str], tmp_path: Path) -> None:
    """From FP32 layers through `precision.typed`: INT8 where the target has it, FP16 for the others, and nothing falls back."""
    model = Model(fp32_convolutions(), Source("onnx", "net.onnx", "0" * 64))
    capability = tensorrt.capability(GPUS[target])
    able = [layer for layer, reason in eligible(model, capability, "int8").items() if reason is None]
    plan = Plan("tensorrt", target, "fp16").with_precision(able, "int8", "it can")
    ranges = {name: Range("minmax", -4.0, 4.0) for name in quantized_tensors(model, plan, capability)}
    found = built(typed(model, replace(plan, ranges=ranges), capability), target, tmp_path)
    assert {layer.realised for layer in found.realised if layer.operator == "Conv"} == expected
    assert all(layer.realised in {layer.planned, "folded"} for layer in found.realised)


@real
def test_free_dimensions_are_built_for_the_sizes_in_the_metadata_and_refused_without(tmp_path: Path) -> None:
    model = graph(
        """<ir_version: 11, opset_import: ["": 23]>
        net (float[batch,32] x) => (float[batch,8] y) { [fc] y = MatMul(x, w) }""",
        w=small(32, 8, dtype="float32"),
    )
    with pytest.raises(InputError, match=r"'x' has free dimensions \(batch\).*--shapes x="):
        built(model, "l4", tmp_path)
    assert not list(tmp_path.iterdir())
    model.metadata_props[SHAPES] = json.dumps({"x": [[1, 32], [4, 32], [8, 32]]})
    assert by_layer(built(model, "l4", tmp_path))["fc"].realised == "fp32"


@real
def test_tf32_is_off_so_the_engine_differs_from_no_default_in_silence(tmp_path: Path) -> None:
    assert any("TF32 is off" in note for note in built(fp32_linear(), "l4", tmp_path).notes)


@real
def test_an_architecture_that_nvidia_does_not_list_says_so(tmp_path: Path) -> None:
    unlisted = "TensorRT-RTX builds for sm_80, but NVIDIA's support matrix does not list it"
    assert unlisted in built(fp16_convolutions(), "a100", tmp_path).notes


@real
def test_what_tensorrt_cannot_build_is_refused_in_its_own_words_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"SM75: Cannot compile operation 'encoder.fc' for Turing .*FP32 GEMM is not supported"):
        built(fp32_linear(), "t4", tmp_path)
    assert not list(tmp_path.iterdir())


@real
def test_an_operator_that_tensorrt_lacks_is_refused_with_the_layers_name(tmp_path: Path) -> None:
    model = graph(
        """<ir_version: 11, opset_import: ["": 23]>
        net (float[4] x) => (int64[1,n] y) { [decoder__find] y = NonZero(x) }"""
    )
    with pytest.raises(UnavailableError, match=r"layer 'decoder.find' \(NonZero\): unsupported node"):
        built(model, "l4", tmp_path)


@real
def test_a_graph_that_onnx_refuses_never_reaches_tensorrt(tmp_path: Path) -> None:
    model = fp32_linear()
    next(iter(model.graph)).attributes["unheard"] = ir.AttrInt64("unheard", 1)
    with pytest.raises(InputError, match="checker refuses"):
        built(model, "l4", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_crash_of_the_builder_is_contained_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})"
    monkeypatch.setattr(tensorrt, "_WORKER", (sys.executable, "-c", crash))
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: name)
    with pytest.raises(UnavailableError, match="TensorRT-RTX, building for l4, crashed with SIGSEGV"):
        built(fp16_convolutions(), "l4", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["h100", "jetson-orin", "b200"])
def test_gpus_without_tensorrt_rtx_get_the_handover_alone(target: str, tmp_path: Path) -> None:
    assert "TensorRT-RTX has no target for it: the handover alone" in (tensorrt.missing(GPUS[target]) or "")
    with pytest.raises(UnavailableError, match=f"No engine can be built for {target}"):
        built(fp16_convolutions(), target, tmp_path)


def test_a_cpu_is_sent_to_another_backend() -> None:
    assert "--backend onnxruntime" in (tensorrt.missing(this_cpu()) or "")


def test_without_the_package_the_way_to_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: None)  # noqa: ARG005
    assert "pip install 'optimize[tensorrt-rtx]'" in (tensorrt.missing(GPUS["l4"]) or "")


def test_capability_is_data_by_architecture() -> None:
    turing, ada = tensorrt.capability(GPUS["t4"]), tensorrt.capability(GPUS["l4"])
    assert "bf16" in ada.precisions - turing.precisions
    assert ada.int8_operators - turing.int8_operators == {"Conv"}
    assert "FP32" in turing.refusals["fp32:MatMul"]
    assert "fp32:MatMul" not in ada.refusals
    assert (ada.activation, ada.scalar_weight_scale, ada.float_bias, ada.quantize_outputs) == ("int8", True, True, False)


def test_loading_needs_the_gpu_and_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "absent", lambda: "no NVIDIA driver is installed on this machine")
    with pytest.raises(UnavailableError, match="no NVIDIA driver") as refusal:
        tensorrt.load(tmp_path, {})
    assert refusal.value.exit_code == 5


def test_what_the_driver_says_of_a_gpu_decides_whether_engines_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "gpus", lambda: (driver.Gpu("NVIDIA L4", "sm_89"),))
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: name)
    assert tensorrt.capability(GPUS["l4"]).runs_here
    assert tensorrt.capability(GPUS["rtx-4090"]).runs_here, "engines are built for an architecture"
    assert not tensorrt.capability(GPUS["t4"]).runs_here
