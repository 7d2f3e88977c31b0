from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from kernels.target import this_cpu
from kernels.targets import target_from_name
from optimizer import reference
from optimizer.backends import backend
from optimizer.engine import Engine
from optimizer.errors import InputError, UnavailableError
from optimizer.model import TensorSpec

Make = Callable[..., ir.Model]
ORT = backend("onnxruntime")

TWO_INPUTS = """
<ir_version: 9, opset_import: ["": 20]>
g (float[N,4] x, int64[N,3] ids, bool flag) => (float[N,3,4] y, float[N,4] z) {
  rows = Gather(table, ids)
  y = Where(flag, rows, rows)
  z = Exp(x)
}"""


@pytest.fixture
def engine(graph: Make, tmp_path: Path) -> Iterator[Engine]:
    ORT.build(graph(TWO_INPUTS, {"table": (5, 4)}), this_cpu(), {"threads": 1}, tmp_path)
    loaded = ORT.load(tmp_path, {"threads": 1})
    yield loaded
    loaded.close()


def feeds(**changed: Any) -> dict[str, Any]:
    usual = {"x": np.zeros((2, 4), np.float32), "ids": np.zeros((2, 3), np.int64), "flag": np.array(True)}
    return {name: array for name, array in {**usual, **changed}.items() if array is not None}


def test_an_engine_tells_its_inputs_and_outputs_as_the_model_does(engine: Engine) -> None:
    assert engine.inputs == (TensorSpec("x", "float32", ("N", 4)), TensorSpec("ids", "int64", ("N", 3)), TensorSpec("flag", "bool", ()))
    assert [(spec.name, spec.dtype) for spec in engine.outputs] == [("y", "float32"), ("z", "float32")]


def test_a_run_returns_every_output_by_name(engine: Engine) -> None:
    results = engine.run(feeds())
    assert {name: array.shape for name, array in results.items()} == {"y": (2, 3, 4), "z": (2, 4)}
    np.testing.assert_array_equal(results["z"], np.ones((2, 4), np.float32))


def test_an_array_that_is_not_contiguous_is_taken(engine: Engine) -> None:
    x = np.arange(8, dtype=np.float32).reshape(4, 2).T
    np.testing.assert_allclose(engine.run(feeds(x=x))["z"], np.exp(x), rtol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (feeds(ids=None), "There is no array for input 'ids'."),
        (feeds(mask=np.zeros(1)), "There is no input called 'mask'."),
        (feeds(x=np.zeros((2, 4))), "Input 'x' has dtype float64, not float32."),
        (feeds(x=np.zeros((2, 5), np.float32)), "Input 'x' has shape 2x5, not Nx4."),
        (feeds(x=np.zeros(4, np.float32)), "Input 'x' has shape 4, not Nx4."),
        (feeds(flag=np.array([True])), "Input 'flag' has shape 1, not scalar."),
        (feeds(ids=np.zeros((3, 3), np.int64)), "'N' is 3 in input 'ids' and 2 in input 'x'."),
        (feeds(x=[[0.0] * 4] * 2), "Input 'x' is a list, not a numpy array."),
    ],
)
def test_an_input_that_does_not_fit_is_refused_in_the_words_of_the_model(engine: Engine, wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError) as caught:
        engine.run(wrong)
    assert caught.value.reason == reason
    assert "x (float32 Nx4), ids (int64 Nx3), flag (bool scalar)" in caught.value.remedy


def test_values_that_a_layer_cannot_take_are_the_inputs_fault(engine: Engine) -> None:
    with pytest.raises(InputError, match="can't run on this input"):
        engine.run(feeds(ids=np.full((2, 3), 99)))


def test_a_closed_engine_does_not_run(engine: Engine) -> None:
    engine.close()
    with pytest.raises(ValueError, match="closed"):
        engine.run(feeds())


@pytest.mark.parametrize("name", ["residual", "transformer", "recurrent"])
def test_an_engine_computes_what_the_graph_says(graph: Make, tmp_path: Path, name: str) -> None:
    model = graph(name)
    shape = [size if isinstance(size, int) else 2 for size in model.graph.inputs[0].shape or ()]
    x = {"x": np.random.default_rng(2).standard_normal(shape).astype(np.float32)}
    truth = reference.float64(model, x)["y"]
    ORT.build(model, this_cpu(), {"threads": 1}, tmp_path)
    np.testing.assert_allclose(ORT.load(tmp_path, {"threads": 1}).run(x)["y"], truth, rtol=1e-4, atol=1e-5)


def test_the_same_input_gives_the_same_bits(graph: Make, tmp_path: Path) -> None:
    ORT.build(graph("residual"), this_cpu(), {"threads": 1}, tmp_path)
    x = {"x": np.random.default_rng(2).standard_normal((2, 3, 16, 16)).astype(np.float32)}
    first, second = (ORT.load(tmp_path, {"threads": 1}).run(x)["y"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_threads_is_the_number_of_threads(graph: Make, tmp_path: Path) -> None:
    ORT.build(graph("residual"), this_cpu(), {"threads": 1}, tmp_path)
    before = len(list(Path("/proc/self/task").iterdir()))
    three = ORT.load(tmp_path, {"threads": 3})
    assert len(list(Path("/proc/self/task").iterdir())) == before + 2
    three.close()


def test_weights_too_large_for_a_protobuf_stand_in_a_file_beside_it(graph: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ORT, "LARGE", 1000)
    model = graph("residual")
    whole = ORT.build(model, this_cpu(), {"threads": 1}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine.onnx", "engine.weights"]
    assert whole.memory["file"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert {layer.realised for layer in whole.realised} == {"fp32"}
    assert ORT.load(tmp_path, {"threads": 1}).run({"x": np.zeros((1, 3, 16, 16), np.float32)})["y"].shape == (1, 10)


def test_building_leaves_the_graph_as_it_was(graph: Make, tmp_path: Path) -> None:
    model = graph("transformer")
    before = ir.to_proto(model).SerializeToString()
    ORT.build(model, this_cpu(), {"threads": 1}, tmp_path)
    assert ir.to_proto(model).SerializeToString() == before


def test_a_graph_that_onnx_runtime_refuses_is_not_available_and_says_why(tmp_path: Path) -> None:
    model = ir.from_onnx_text('<ir_version: 9, opset_import: ["": 20, "nowhere": 1]> g (float[4] x) => (float[4] y) { y = nowhere.Op(x) }')
    with pytest.raises(UnavailableError) as caught:
        ORT.build(model, this_cpu(), {"threads": 1}, tmp_path)
    assert "ONNX Runtime" in caught.value.reason
    assert "nowhere" in caught.value.reason


@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_a_broken_engine_is_refused_and_not_a_traceback(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "engine.onnx").write_bytes(content)
    with pytest.raises(UnavailableError, match="can't load this engine"):
        ORT.load(tmp_path, {"threads": 1})


def test_the_capability_is_integers_of_eight_bits_and_float_and_refuses_half_in_words() -> None:
    can = ORT.capability(this_cpu())
    assert can.precisions == {"fp32", "int8", "int8_dynamic"}
    assert (can.activation, can.quantize_outputs, can.base, can.runs_here) == ("uint8", True, "fp32", True)
    assert {"Conv", "MatMul", "Gemm", "Add"} <= can.int8_operators
    assert {"MatMul", "Gemm", "LSTM"} <= can.dynamic_operators
    assert "slower" in can.refusals["fp16"]
    assert "no BF16" in can.refusals["bf16"]


def test_every_operator_said_to_take_int8_is_run_on_eight_bits_by_onnx_runtime(tmp_path: Path) -> None:
    """A capability that is only claimed would make every plan built on it slower than said."""
    calls = {
        "Add": "Add(dx, dx)",
        "Mul": "Mul(dx, dx)",
        "AveragePool": "AveragePool<kernel_shape=[1,1]>(dx)",
        "GlobalAveragePool": "GlobalAveragePool(dx)",
        "LeakyRelu": "LeakyRelu(dx)",
        "Sigmoid": "Sigmoid(dx)",
        "Concat": "Concat<axis=1>(dx, dx)",
        "MaxPool": "MaxPool<kernel_shape=[2,2]>(dx)",
        "Transpose": "Transpose<perm=[0,1,3,2]>(dx)",
        "Flatten": "Flatten(dx)",
        "DepthToSpace": "DepthToSpace<blocksize=2>(dx)",
    }
    for operator, call in calls.items():
        assert operator in ORT.capability(this_cpu()).int8_operators
        text = f"""
        <ir_version: 9, opset_import: ["": 20]>
        g (float[1,8,4,4] x) => (float y) {{
          s = Constant<value=float {{0.02}}>()
          z = Constant<value=uint8 {{128}}>()
          qx = QuantizeLinear(x, s, z)
          dx = DequantizeLinear(qx, s, z)
          c = {call}
          qc = QuantizeLinear(c, s, z)
          y = DequantizeLinear(qc, s, z)
        }}"""
        model = ir.from_onnx_text(text)
        model.graph.outputs[0].shape = None
        for node in model.graph:
            node.name = node.outputs[0].name
        folder = tmp_path / operator
        folder.mkdir()
        built = ORT.build(model, this_cpu(), {"threads": 1}, folder)
        assert [layer.realised for layer in built.realised] == ["int8"], operator


def test_knobs_go_from_all_cores_down_to_one() -> None:
    assert ORT.knobs(replace(this_cpu(), cores=6))["threads"] == (6, 3, 1)
    assert ORT.knobs(replace(this_cpu(), cores=1))["threads"] == (1,)


def test_a_cpu_of_another_kind_is_no_target_here() -> None:
    other = replace(this_cpu(), compute="riscv64")
    assert ORT.capability(other).runs_here is False
    assert "riscv64" in (ORT.missing(other) or "")
    assert ORT.capability(target_from_name("l4")).runs_here is False
