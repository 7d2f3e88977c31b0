"""`qualify` times and gates an engine on the machine that it is for, and leaves an attestation; shown on real CPU engines."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from kernels.gpus import GPUS
from kernels.target import this_cpu
from optimizer import importers
from optimizer.backends import backend
from optimizer.backends.tensorrt.driver import Gpu
from optimizer.engine import Candidate, Parity
from optimizer.errors import InputError, UnavailableError, VerificationError
from optimizer.model import Model
from optimizer.package.passport import Passport, seal, verify
from optimizer.plan import Plan
from optimizer.provenance import sha256_of_file, to_json
from optimizer.report.report import Provenance, report_from
from optimizer.verbs import qualify as verb
from optimizer.verbs.qualify import qualify

Make = Callable[..., Path]
CLASSES = 4
SAMPLES = 400


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A classifier whose answer is the largest of four inputs, as ONNX."""
    file = tmp_path / "net.onnx"
    ir.save(graph(np.eye(CLASSES, dtype=np.float32)), file)
    return file


@pytest.fixture
def evaluation(tmp_path: Path) -> str:
    """Samples whose labels the parent has right."""
    x = np.random.default_rng(5).standard_normal((SAMPLES, CLASSES)).astype(np.float32)
    np.savez(tmp_path / "evaluation.npz", x=x, y=x.argmax(axis=1))
    return str(tmp_path / "evaluation.npz")


@pytest.fixture
def engine_folder(parent: Path, tmp_path: Path) -> Make:
    """A function that builds and seals an engine with the given weights: of `parent`, but planned as lossy or not."""

    def make(weights: np.ndarray, *, lossless: bool = False, budget: float | None = 0.05, target: str = "cpu") -> Path:
        folder = tmp_path / "engine"
        folder.mkdir()
        model = importers.load(importers.ImportRequest(parent, tmp_path, tmp_path))
        gpu = GPUS.get(target)
        plan = Plan("onnxruntime" if gpu is None else "tensorrt", target, "fp32", {} if lossless else {"fc": "int8"}, knobs={"threads": 1})
        if gpu is None:
            backend("onnxruntime").build(graph(weights), this_cpu(), plan.knobs, folder)
        else:
            (folder / "engine.plan").write_bytes(b"an engine for a GPU that is not here")
        write(folder, model, plan, budget)
        return folder

    return make


def graph(weights: np.ndarray) -> ir.Model:
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 20]>
        net (float[1,{CLASSES}] x) => (float[1,{CLASSES}] y)
        <float[{CLASSES},{CLASSES}] w = {{{",".join("0" * CLASSES * CLASSES)}}}> {{ [fc] y = MatMul(x, w) }}"""
    )
    model.graph.initializers["w"].const_value = ir.tensor(weights.astype(np.float32), name="w")
    return model


def write(folder: Path, model: Model, plan: Plan, budget: float | None) -> None:
    target = this_cpu() if plan.target == "cpu" else GPUS[plan.target]
    parity = Parity("pass", "top1", 1.0, 1.0, budget, 0.0, 0.0, 0.01, SAMPLES, None, "the build", "the upper bound is under the budget")
    report = report_from(
        model=model,
        target=target,
        requested="auto",
        subject=Candidate("int8", plan),
        candidates=(),
        parity=parity,
        provenance=Provenance(model.source, {}),
        exit_code=0,
    )
    (folder / "report.json").write_bytes(to_json(report))
    (folder / "plan.json").write_bytes(to_json(plan))
    passport = Passport(
        name="net",
        target=plan.target,
        compute=target.compute,
        backend=plan.backend,
        engine=next(folder.glob("engine.*")).name,
        inputs=model.inputs,
        outputs=model.outputs,
        source=model.source,
        verdict="pass",
        gated_on="the build",
        timed_on=None,
        precision="int8",
        knobs=plan.knobs,
        calibration="c" * 64,
    )
    seal(folder, passport)


SAME = np.eye(CLASSES)
SWAPPED = np.eye(CLASSES)[[1, 0, 2, 3]]


def test_a_good_engine_passes_and_is_attested_without_breaking_the_seal(engine_folder: Make, parent: Path, evaluation: str) -> None:
    folder = engine_folder(SAME)
    found = qualify(folder, model=parent, evaluation=evaluation, seconds=0.2)
    assert found.parity is not None
    assert (found.parity.verdict, found.parity.metric, found.parity.samples) == ("pass", "top1", SAMPLES)
    assert found.parity.gated_on == found.timing.timed_on == found.device == this_cpu().device
    assert found.timing.versus == "the model in ONNX Runtime"
    assert found.passport == sha256_of_file(folder / "passport.json")
    (file,) = (folder / "attestations").iterdir()
    written = json.loads(file.read_bytes())
    assert written["engine_sha256"] == sha256_of_file(folder / written["engine"])
    assert written["parity"]["verdict"] == "pass"
    assert str(parent.parent) not in file.read_text()
    verify(folder)


def test_an_engine_that_answers_otherwise_fails_whatever_its_build_said(engine_folder: Make, parent: Path, evaluation: str) -> None:
    found = qualify(engine_folder(SWAPPED), model=parent, evaluation=evaluation, seconds=0.2)
    assert found.parity is not None
    assert found.parity.verdict == "fail"
    assert found.parity.drop == pytest.approx(0.5, abs=0.1), "two of four classes are swapped"


def test_an_engine_without_lossy_steps_is_held_to_its_digits(engine_folder: Make, parent: Path) -> None:
    found = qualify(engine_folder(SAME * 1.001, lossless=True), model=parent, seconds=0.2)
    assert found.parity is not None
    assert found.parity.verdict == "fail"


def test_each_run_adds_a_file(engine_folder: Make) -> None:
    folder = engine_folder(SAME)
    for _ in range(2):
        qualify(folder, seconds=0.1)
    assert len(list((folder / "attestations").iterdir())) == 2


@pytest.mark.parametrize(
    ("given", "budget", "why"), [("nothing", 0.05, "--model"), ("model", 0.05, "--evaluation"), ("both", None, "neither metric nor budget")]
)
def test_what_cannot_be_gated_is_timed_and_says_so(
    given: str, budget: float | None, why: str, engine_folder: Make, parent: Path, evaluation: str
) -> None:
    found = qualify(
        engine_folder(SAME, budget=budget),
        model=None if given == "nothing" else parent,
        evaluation=evaluation if given == "both" else None,
        seconds=0.1,
    )
    assert found.parity is None
    assert found.timing.milliseconds > 0
    assert why in found.notes[0]


def test_an_engine_for_a_gpu_that_is_not_here_ends_with_exit_code_5_and_leaves_nothing(
    engine_folder: Make, parent: Path, evaluation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.backends.tensorrt.driver.gpus", lambda: "no NVIDIA driver is installed on this machine")
    folder = engine_folder(SAME, target="l4")
    with pytest.raises(UnavailableError) as refusal:
        qualify(folder, model=parent, evaluation=evaluation)
    assert refusal.value.exit_code == 5
    assert not (folder / "attestations").exists()


def test_a_plan_of_the_users_own_needs_the_gpu_too_and_says_what_is_missing(
    engine_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.backends.tensorrt.driver.gpus", lambda: "no NVIDIA driver is installed on this machine")
    (tmp_path / "model.plan").write_bytes(b"plan")
    with pytest.raises(UnavailableError, match=r"model\.plan can't be loaded here: no NVIDIA driver") as refusal:
        qualify(engine_folder(SAME, target="h100"), engine=tmp_path / "model.plan")
    assert refusal.value.exit_code == 5


class OwnEngine:
    """Stands for a trtexec plan that TensorRT loaded."""

    peak_bytes = None

    def __init__(self, model: Model, weights: np.ndarray) -> None:
        self.inputs, self.outputs, self.weights, self.closed = model.inputs, model.outputs, weights, False

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": feeds["x"] @ self.weights.astype(np.float32)}

    def close(self) -> None:
        self.closed = True


def test_a_plan_of_the_users_own_is_gated_in_place_of_the_folders(
    engine_folder: Make, parent: Path, evaluation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one test that plays a GPU: the steps around TensorRT, which is not here, are run."""
    folder = engine_folder(SAME, target="h100")
    (tmp_path / "model.plan").write_bytes(b"plan")
    own = OwnEngine(importers.load(importers.ImportRequest(parent, tmp_path, tmp_path)), SWAPPED)
    monkeypatch.setattr(verb, "opened", lambda file, flavour: own)  # noqa: ARG005
    monkeypatch.setattr(verb, "gpus", lambda: (Gpu("NVIDIA H100 80GB HBM3", "sm_90"),))
    found = qualify(folder, model=parent, evaluation=evaluation, engine=tmp_path / "model.plan", seconds=0.1)
    assert found.parity is not None
    assert (found.parity.verdict, found.engine, found.device) == ("fail", "model.plan", "NVIDIA H100 80GB HBM3")
    assert found.timing.versus == "engine", "a CPU's time is no baseline for a GPU"
    assert own.closed


def test_another_model_than_the_engines_is_refused(engine_folder: Make, tmp_path: Path) -> None:
    folder = engine_folder(SAME)
    other = tmp_path / "other.onnx"
    ir.save(graph(SWAPPED), other)
    with pytest.raises(InputError, match=r"other\.onnx is not the model that this engine was built from"):
        qualify(folder, model=other)
    assert not (folder / "attestations").exists()


def test_the_calibration_data_is_no_evidence(engine_folder: Make, parent: Path, evaluation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = verb.open_samples
    monkeypatch.setattr(verb, "open_samples", lambda *given, **more: replace(original(*given, **more), sha256="c" * 64))
    with pytest.raises(InputError, match="no evidence"):
        qualify(engine_folder(SAME), model=parent, evaluation=evaluation)


def test_a_changed_engine_is_not_qualified(engine_folder: Make) -> None:
    folder = engine_folder(SAME)
    (folder / "engine.onnx").write_bytes(b"another")
    with pytest.raises(VerificationError, match=r"engine\.onnx"):
        qualify(folder)


def test_a_plan_of_the_users_own_is_for_gpus(engine_folder: Make, parent: Path) -> None:
    with pytest.raises(InputError, match="no GPU"):
        qualify(engine_folder(SAME), engine=parent)
