"""benchmarks/engines.py on one tiny model: every neighbour that is installed can be built and run, and the tables say what they must."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def engines() -> Iterator[ModuleType]:
    """The benchmark as a module; it finds the files beside it by itself."""
    before = list(sys.path)
    spec = spec_from_file_location("engines", ROOT / "benchmarks" / "engines.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


def tiny(file: Path) -> None:
    """Two convolutions, a mean over the pixels and a linear layer, seeded."""
    draw = np.random.default_rng(0)
    weights = {"a": (16, 3, 3, 3), "b": (16, 16, 3, 3), "c": (16, 8)}
    nodes = [
        helper.make_node("Conv", ["image", "a"], ["1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["1"], ["2"]),
        helper.make_node("Conv", ["2", "b"], ["3"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["3"], ["4"]),
        helper.make_node("GlobalAveragePool", ["4"], ["5"]),
        helper.make_node("Flatten", ["5"], ["6"]),
        helper.make_node("MatMul", ["6", "c"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array((draw.normal(size=size) * 0.2).astype(np.float32), name) for name, size in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8), file)


@pytest.mark.slow
def test_every_neighbour_that_is_installed_gives_an_engine_that_keeps_what_the_parent_says(
    engines: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import engines_models, engines_neighbours, engines_prepare

    counts = engines_models._parts(20, 20, 10)
    images = engines_models._noise_images
    subject = engines_models.Subject("tiny", tiny, lambda part, count: images(16, part, count), engines_models.COSINE, counts)
    monkeypatch.setattr(engines_neighbours, "SUBJECTS", {"tiny": subject})
    engines_prepare.prepare(subject, tmp_path / "tiny")
    assert onnx.load(tmp_path / "tiny" / "static.onnx").opset_import[0].version == 17
    parent, found = np.load(tmp_path / "tiny" / "parent.npy"), {}
    for name, engine in engines.ENGINES.items():
        if engine.ours or engine.made == "torch" or engine.missing() or not engine.suits(subject):
            continue
        job = engines.Job("tiny", tmp_path / "tiny", tmp_path / engine.made, 1)
        if not job.folder.exists():
            job.folder.mkdir()
            engine.build(job)
        loaded = engine.load(job)
        answers = engines_prepare.answered(subject, loaded.run, job.data, "test")
        found[name] = float(subject.measure.score(parent, answers).mean())
        loaded.burst(next(engines_prepare.stored(job.data, "test")), 4)
    assert {"ONNX Runtime FP32", "ONNX Runtime INT8, static", "OpenVINO FP32"} <= found.keys()
    assert all(share > 0.99 for share in found.values()), found
    assert found["ONNX Runtime INT8, static"] < found["ONNX Runtime FP32"] == pytest.approx(1.0, abs=1e-9)


def test_what_an_engines_process_says_before_it_ends_is_the_reason(engines: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(engines.EngineError, match="FileNotFoundError"):
        engines.built("ONNX Runtime FP32", engines.Job("lstm", tmp_path / "nowhere", tmp_path / "engine", 1), 60.0)


def test_parts_of_the_prose_share_no_sentence(engines: ModuleType) -> None:  # noqa: ARG001 - it makes the import work
    from benchmarks.engines_data import PARTS, sentences

    found = [set(sentences(part, 200)) for part in PARTS]
    assert all(len(one) == 200 for one in found)
    assert len(found[0] | found[1] | found[2]) == 600


def test_a_text_is_the_same_however_its_characters_are_spaced(engines: ModuleType) -> None:  # noqa: ARG001
    from benchmarks.engines_kept import same_text

    parent = np.array([[0, 5, 5, 0, 5, 7]] * 3)
    engine = np.array([[5, 0, 5, 5, 7, 7], [5, 5, 5, 5, 7, 0], [0, 5, 0, 5, 0, 8]])
    np.testing.assert_array_equal(same_text(parent, engine), [1, 0, 0])


def test_a_box_that_moved_too_far_or_came_up_costs_what_it_should(engines: ModuleType) -> None:  # noqa: ARG001
    from benchmarks.engines_kept import same_boxes

    parent = np.zeros((3, 1, 40, 40), bool)
    parent[:, :, 2:12, 2:22] = parent[:, :, 20:30, 2:22] = True
    engine = parent.copy()
    engine[0, :, 2:12, 22] = True  # one column wider: still the same box
    engine[1, :, 2:12] = False
    engine[1, :, 2:12, 12:32] = True  # half of it elsewhere
    engine[2, :, 34:38, 30:38] = True  # one that the parent does not have
    np.testing.assert_allclose(same_boxes(parent, engine), [1.0, 0.5, 0.8])


def row(ours: bool, ms: float, share: float) -> dict[str, Any]:
    time = {"ms": ms, "low": ms, "high": ms, "ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0, "rounds": 7}
    kept = {"share": share, "samples": 100, "beside": {}}
    return {
        "ours": ours,
        "built": {"1": {"seconds": 1.0, "note": None}},
        "kept": {"1": kept},
        "megabytes": {"1": 10.0},
        "times": {"1": time},
    }


def result(trained: bool, **rows: dict[str, Any]) -> dict[str, Any]:
    return {"title": "a model", "trained": trained, "measure": "classes", "cpu": "a CPU", "rows": rows}


def test_ours_is_held_against_the_fastest_that_keeps_99_percent_and_not_against_faster_ones(engines: ModuleType) -> None:
    rows = {"exact": row(False, 10.0, 1.0), "honest": row(False, 4.0, 0.99), "fast": row(False, 1.0, 0.9), "ours": row(True, 2.0, 0.995)}
    told = engines.tables([result(True, **rows)])
    assert "| a model | 2 | honest | 4 | 2.00 |" in told
    assert "Geometric mean at least 1.8: **yes**." in told
    told = engines.tables([result(True, **{**rows, "ours": row(True, 2.0, 0.98)})])
    assert "| a model | none keeps 99 % | honest | 4 |  |" in told
    assert "**yes**" not in told


def test_the_best_single_neighbour_is_the_one_that_ours_leads_least_over_all_models(engines: ModuleType) -> None:
    first = {"ort": row(False, 10.0, 1.0), "one": row(False, 2.0, 1.0), "other": row(False, 3.0, 1.0), "ours": row(True, 2.0, 1.0)}
    second = {"ort": row(False, 10.0, 1.0), "one": row(False, 8.0, 1.0), "other": row(False, 3.0, 1.0), "ours": row(True, 2.0, 1.0)}
    told = engines.tables([result(False, **first), result(False, **second)])
    assert "Over the best single neighbour, other: 1.50; at least 1.15: **yes**." in told
    assert "Never behind the best beyond 3 %: **yes**." in told
