"""The handover must be what trtexec takes: a valid graph, and a script that calls it rightly for TensorRT 10 and 11."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from kernels.gpus import GPUS
from optimizer.errors import InputError, UnavailableError
from optimizer.package.handover import write_handover
from optimizer.plan import Shape

TRTEXEC = """#!/usr/bin/env bash
if [ "${1:-}" = --help ]; then echo "$HELP"; exit 0; fi
printf '%s\\n' "$@"
"""


def linear(batch: str = "1", name: str = "x") -> ir.Model:
    model = ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["": 23]>
        net (float[{batch},4] x) => (float[{batch},2] y) <float[4,2] w = {{1,2,3,4,5,6,7,8}}> {{ [fc] y = MatMul(x, w) }}"""
    )
    model.graph.inputs[0].name = name
    return model


def called(folder: Path, tools: Path, *arguments: str, usage: str = "") -> list[str]:
    """The arguments that a build.sh gave to a trtexec of ours."""
    tools.mkdir(exist_ok=True)
    program = tools / "trtexec"
    program.write_text(TRTEXEC)
    program.chmod(0o755)
    script = folder / "handover" / "build.sh"
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "HELP": usage}
    done = subprocess.run([script, *arguments], env=environment, cwd=tools, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("target", ["l4", "h100", "jetson-orin", "sm_90", "b200"])
def test_every_gpu_gets_a_graph_that_onnx_accepts_and_a_script_that_bash_accepts(target: str, tmp_path: Path) -> None:
    (note,) = write_handover(linear(), GPUS[target], tmp_path, name="resnet20.th")
    assert "never run" in note
    onnx.checker.check_model(tmp_path / "handover" / "model.onnx", full_check=True)
    script = tmp_path / "handover" / "build.sh"
    subprocess.run(["bash", "-n", script], check=True)
    assert "resnet20.th" in script.read_text()
    assert sorted(path.name for path in script.parent.iterdir()) == ["build.sh", "model.onnx"]


def test_tensorrt_10_is_told_that_the_graph_is_typed_and_tensorrt_11_is_not(tmp_path: Path) -> None:
    write_handover(linear(), GPUS["h100"], tmp_path)
    ten, eleven = (called(tmp_path, tmp_path.parent / "bin", release) for release in ("10", "11"))
    assert ten == ["--stronglyTyped", *eleven]
    assert eleven[:2] == [f"--onnx={tmp_path}/handover/model.onnx", "--saveEngine=model.plan"]
    assert "--noTF32" in eleven
    assert not {"--fp16", "--int8"} & set(ten)


@pytest.mark.parametrize(
    ("usage", "typed"), [("  --stronglyTyped   Create a strongly typed network", True), ("  --saveEngine=<file>", False)]
)
def test_without_a_word_the_script_asks_trtexec_which_release_it_is(usage: str, typed: bool, tmp_path: Path) -> None:
    write_handover(linear(), GPUS["h100"], tmp_path)
    assert ("--stronglyTyped" in called(tmp_path, tmp_path.parent / "bin", usage=usage)) == typed


def test_free_dimensions_become_a_profile_and_odd_names_are_quoted(tmp_path: Path) -> None:
    shapes = {"in:0": Shape((1, 4), (8, 4), (32, 4))}
    write_handover(linear("n", "in:0"), GPUS["l4"], tmp_path, shapes=shapes)
    arguments = called(tmp_path, tmp_path.parent / "bin", "11")
    assert {"--minShapes='in:0':1x4", "--optShapes='in:0':8x4", "--maxShapes='in:0':32x4"} <= set(arguments)


def test_free_dimensions_without_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'x' has free dimensions"):
        write_handover(linear("n"), GPUS["l4"], tmp_path)


def test_without_trtexec_the_script_says_where_it_comes_from(tmp_path: Path) -> None:
    write_handover(linear(), GPUS["l4"], tmp_path)
    done = subprocess.run(
        [tmp_path / "handover" / "build.sh"],
        env={"PATH": "/usr/bin:/bin"},
        cwd=tmp_path.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5
    assert "TRTEXEC=" in done.stderr


def test_the_sealed_engine_folder_is_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    write_handover(linear(), GPUS["l4"], folder)
    for place in (folder, folder / "handover"):
        done = subprocess.run([folder / "handover" / "build.sh"], cwd=place, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "sealed" in done.stderr


def test_a_name_out_of_a_model_runs_no_command(tmp_path: Path) -> None:
    write_handover(linear(name="x; touch HERE"), GPUS["l4"], tmp_path, name="net\ntouch HERE\r$(touch HERE)")
    called(tmp_path, tmp_path.parent / "bin", "10")
    assert not list(tmp_path.rglob("HERE"))


def test_q_dq_that_tensorrt_would_read_otherwise_is_not_handed_over(tmp_path: Path) -> None:
    model = ir.from_onnx_text(
        """<ir_version: 11, opset_import: ["": 23]>
        net (float[1,4] x) => (float[1,4] y) <float s = {0.1}, uint8 z = {0}> {
          [q] a = QuantizeLinear(x, s, z)
          [dq] y = DequantizeLinear(a, s, z)
        }"""
    )
    with pytest.raises(UnavailableError, match="uint8"):
        write_handover(model, GPUS["h100"], tmp_path)


def test_the_graph_is_handed_over_as_it_is(tmp_path: Path) -> None:
    write_handover(linear(), GPUS["h100"], tmp_path)
    loaded = ir.load(tmp_path / "handover" / "model.onnx")
    assert [node.name for node in loaded.graph] == ["fc"]
    weight = loaded.graph.initializers["w"].const_value
    assert weight is not None
    np.testing.assert_array_equal(weight.numpy(), np.arange(1, 9, dtype=np.float32).reshape(4, 2))
