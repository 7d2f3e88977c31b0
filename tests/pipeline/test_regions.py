"""Two recurrent layers, each by the engine that suits it: built by a plan with regions, and used as one engine from then on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import optimizer
from kernels.cpus import multiplies_bf16
from kernels.target import this_cpu
from optimizer.errors import InputError, UnavailableError, VerificationError
from optimizer.package import load as room
from optimizer.package.passport import FILE, read, seal
from optimizer.plan import Plan, Region
from optimizer.planner import finals, state
from optimizer.provenance import from_json, to_json
from optimizer.reference import Reference
from optimizer.verbs.bench import bench
from optimizer.verbs.inspect import InspectedEngine, inspect
from optimizer.verbs.qualify import qualify
from optimizer.verbs.verify import verify

STEPS, HIDDEN = 64, 256
HALF = "bf16" if multiplies_bf16(this_cpu().features) else "fp32"
FIRST, SECOND = ("lstm1", "squeeze1"), ("lstm2", "squeeze2", "head")


def network() -> onnx.ModelProto:
    draw = np.random.default_rng(3)

    def weight(*size: int) -> Any:
        return (draw.standard_normal(size) / np.sqrt(size[-1])).astype(np.float32)

    weights, nodes, value = {"axes": np.array([1])}, list[onnx.NodeProto](), "x"
    for number, width in ((1, 40), (2, HIDDEN)):
        weights |= {f"w{number}": weight(1, 4 * HIDDEN, width), f"r{number}": weight(1, 4 * HIDDEN, HIDDEN)}
        nodes += [
            helper.make_node("LSTM", [value, f"w{number}", f"r{number}"], [f"y{number}"], f"lstm{number}", hidden_size=HIDDEN),
            helper.make_node("Squeeze", [f"y{number}", "axes"], [f"s{number}"], f"squeeze{number}"),
        ]
        value = f"s{number}"
    weights["head.weight"] = weight(HIDDEN, 16)
    nodes.append(helper.make_node("MatMul", [value, "head.weight"], ["y"], "head"))
    graph = helper.make_graph(
        nodes,
        "recurrent",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, 1, 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [STEPS, 1, 16])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def planned(**words: Any) -> Plan:
    plan = Plan(
        "openvino",
        "cpu",
        "fp32",
        precisions={"lstm1": HALF, "lstm2": "int8_dynamic", "head": "int8_dynamic"},
        regions=(Region("openvino", FIRST), Region("onnxruntime", SECOND)),
        knobs={"threads": 1, "spinning": False},
    )
    return replace(plan, **words)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the model, and in `out` the engine that its plan gives."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("regions")
    onnx.save(network(), folder / "model.onnx")
    (folder / "plan.json").write_bytes(to_json(planned()))
    with pytest.MonkeyPatch.context() as patch:
        for module, seconds in ((finals, "RACE_SECONDS"), (finals, "HEAT_SECONDS"), (state, "QUICK_SECONDS"), (state, "PAIR_SECONDS")):
            patch.setattr(module, seconds, 0.1)
        outcome = optimizer.build(folder / "model.onnx", folder / "out", plan=folder / "plan.json", threads=1)
        assert outcome.exit_code == 4  # it is lossy, and there is no evaluation data
        yield folder


@pytest.fixture
def copied(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "out", tmp_path / "out"))


def test_the_engine_gives_the_parents_numbers_within_what_its_precisions_lose(home: Path) -> None:
    parent = Reference(ir.load(home / "model.onnx"))
    with optimizer.load(home / "out") as engine:
        assert ([spec.name for spec in engine.inputs], [spec.name for spec in engine.outputs]) == (["x"], ["y"])
        for seed in range(3):
            feed = {"x": np.random.default_rng(seed).standard_normal((STEPS, 1, 40)).astype(np.float32)}
            wanted, found = parent.run(feed)["y"], engine.run(feed)["y"]
            assert np.linalg.norm(found - wanted) < 0.03 * np.linalg.norm(wanted)
            assert not np.array_equal(found, wanted)


def test_report_passport_and_plan_tell_of_both_backends(home: Path) -> None:
    report, passport = json.loads((home / "out" / "report.json").read_text()), read(home / "out")
    assert (passport.backend, passport.engine) == ("openvino+onnxruntime", "engine.json")
    assert {"engine/1/engine.xml", "engine/2/engine.onnx"} < set(passport.files)
    realised = {layer["name"]: layer["realised"] for layer in report["precision"]["layers"]}
    assert list(realised) == [*FIRST, *SECOND]
    assert (realised["lstm1"], realised["lstm2"]) == (HALF, "int8_dynamic")
    assert all(layer["ms"] for layer in report["precision"]["layers"] if layer["op"] == "LSTM")
    assert {"weights", "loaded", "run"} < set(report["memory"])
    given = next(one for one in report["candidates"] if one["outcome"] == "shipped")
    assert given["backend"] == "openvino+onnxruntime"
    assert any("openvino and onnxruntime" in said for said in report["why"])
    assert {rung["rung"] for rung in report["ladder"]} >= {"typed int8", "engine"}
    assert not any(rung["breaks"] for rung in report["ladder"])
    assert from_json((home / "out" / "plan.json").read_bytes(), Plan, "plan.json").regions == planned().regions


def test_the_verbs_take_it_for_what_it_is(home: Path, copied: Path) -> None:
    assert verify(copied, try_to_load=True).passport.backend == "openvino+onnxruntime"
    assert isinstance(inspect(copied), InspectedEngine)
    assert set(bench([copied, home / "model.onnx"], seconds=0.2, threads=1).timings) == {"out", "model.onnx"}
    assert qualify(copied, seconds=0.2).timing.milliseconds > 0


def test_a_backend_that_is_not_installed_is_told(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = room.backend

    def found(name: str) -> Any:
        if name == "openvino":
            raise UnavailableError("The backend 'openvino' needs a package which is not installed.", "Install it.")
        return there(name)

    monkeypatch.setattr(room, "backend", found)
    with pytest.raises(UnavailableError, match="'openvino' needs"):
        optimizer.load(copied)


def test_a_changed_region_is_not_loaded_and_a_library_in_one_not_without_trust(copied: Path) -> None:
    passport = read(copied)
    (copied / "engine" / "2" / "engine.so").write_bytes(b"code")
    (copied / FILE).unlink()
    seal(copied, passport)
    with pytest.raises(InputError, match="native code"):
        optimizer.load(copied)
    file = copied / "engine" / "1" / "engine.bin"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(VerificationError, match=r"engine/1/engine\.bin"):
        optimizer.load(copied)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda plan: {**plan, "regions": plan["regions"][::-1], "backend": "onnxruntime"}, "reads what 'squeeze1' makes"),
        (lambda plan: {**plan, "regions": [{"backend": "../openvino", "layers": [*FIRST, *SECOND]}]}, "its first region for ../openvino"),
        (lambda plan: {**plan, "regions": [*plan["regions"], {"backend": "openvino", "layers": []}]}, "makes nothing that is read"),
        (lambda plan: {**plan, "regions": [{"backend": "openvino"}]}, "can't be read"),
    ],
)
def test_a_plan_file_whose_regions_do_not_fit_is_refused_in_words(
    change: Callable[[dict[str, Any]], dict[str, Any]], told: str, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(change(json.loads((home / "plan.json").read_text()))))
    with pytest.raises(InputError, match=told) as refused:
        optimizer.build(home / "model.onnx", tmp_path / "out", plan=tmp_path / "plan.json", threads=1)
    assert refused.value.remedy
    assert not (tmp_path / "out").exists()
