"""TensorFlow models of every format become graphs with TensorFlow's own answers and the user's own names, or an error in words."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from optimizer import importers
from optimizer.errors import InputError, UnavailableError
from optimizer.fusion import fuse
from optimizer.importers import ImportRequest
from optimizer.importers import tensorflow as importer
from optimizer.model import Model

pytest.importorskip("tensorflow")
pytest.importorskip("tf2onnx")
pytestmark = pytest.mark.slow

Load = Callable[..., Model]
RNG = np.random.default_rng(5)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models of every format."""
    made = tmp_path_factory.mktemp("tensorflow")
    script = Path(__file__).with_name("make_tensorflow_models.py")
    ran = subprocess.run([sys.executable, script, made], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return made


def answers(graph: ir.Model, feeds: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def ops(model: Model) -> dict[str, str]:
    return {layer.name: layer.op for layer in model.layers}


def test_resnet8_of_keras_2_keeps_its_names_and_its_accuracy_and_has_one_transpose(load: Load, assets: Path) -> None:
    model = fuse(load(assets / "resnet8_cifar10.h5"))
    assert [spec.name for spec in (*model.inputs, *model.outputs)] == ["input_1", "dense"]
    assert {"conv2d+batch_normalization", "activation_2", "conv2d_5", "add_2", "average_pooling2d", "dense"} <= set(ops(model))
    assert sum(op == "Conv" for op in ops(model).values()) == 9
    assert sum(op == "Transpose" for op in ops(model).values()) == 1  # NHWC comes in
    assert model.source.versions["tensorflow"]
    with np.load(assets / "cifar10_evaluation.npz") as data:
        x, y = data["x"][:400].astype(np.float32), data["y"][:400]
    assert 0.72 < np.mean(answers(model.graph, {"input_1": x})[0].argmax(1) == y) < 0.82


def test_the_keyword_model_comes_out_of_its_saved_model_without_a_transpose(load: Load, assets: Path) -> None:
    model = load(assets / "kws_saved_model")
    fused = fuse(model)
    assert "Transpose" not in ops(fused).values()
    assert {"depthwise_conv2d+batch_normalization_1", "conv2d_4+batch_normalization_8", "dense"} <= set(ops(fused))
    assert (model.source.signature, model.source.tags) == ("serving_default", ("serve",))
    assert "differ from TensorFlow's by at most" in model.source.notes[-1]


def test_the_parent_answers_in_its_own_tensorflow_and_shows_its_layers(models: Path, tmp_path: Path) -> None:
    how = ImportRequest(models / "cnn3.keras", tmp_path, tmp_path)
    model = importers.load(how)
    assert {"stem+stem_bn": "Conv", "dw+dw_bn": "Conv", "act": "Gelu"}.items() <= ops(fuse(model)).items()
    x = RNG.standard_normal((3, 16, 16, 3)).astype(np.float32)
    parent = importers.running(how, model)
    try:
        np.testing.assert_allclose(parent.run({"image": x})["probs"], answers(model.graph, {"image": x})[0], atol=1e-6)
        shown = parent.layers({"image": x}, ["stem_relu", "dw", "gap", "no such layer"])
        assert {name: array.shape for name, array in shown.items()} == {
            "stem_relu": (3, 8, 8, 8),
            "dw": (3, 8, 8, 8),
            "gap": (3, 8),
        }
        with pytest.raises(InputError, match="does not run in its own TensorFlow"):
            parent.run({"image": x[..., :2]})
    finally:
        parent.close()


@pytest.mark.parametrize("name", ["recurrent2", "recurrent3.h5"])
def test_recurrent_layers_come_as_such_and_take_any_length(load: Load, models: Path, name: str) -> None:
    model = load(models / name)
    assert {"both": "LSTM", "cell": "LSTM", "last": "GRU", "scores": "MatMul"}.items() <= ops(model).items()
    for batch, length in ((1, 3), (4, 17)):
        assert answers(model.graph, {"steps": RNG.standard_normal((batch, length, 6)).astype(np.float32)})[0].shape == (batch, 3)


def test_several_inputs_and_outputs_go_by_the_names_that_the_model_gives_them(load: Load, models: Path) -> None:
    model = load(models / "ends.keras")
    assert {(spec.name, spec.dtype) for spec in model.inputs} == {("ids", "int32"), ("features", "float32")}
    assert [spec.name for spec in model.outputs] == ["score", "wide"]


def test_a_signature_is_chosen_by_name_and_shapes_fix_its_dimensions(load: Load, models: Path) -> None:
    model = load(models / "module", {"x": "2x4"}, signature="headed")
    assert [(spec.name, spec.shape) for spec in (*model.inputs, *model.outputs)] == [("x", (2, 4)), ("z", (2, 3))]
    assert "head" in ops(model)
    assert model.source.signature == "headed"


def test_tags_choose_in_a_saved_model_of_graph_mode(load: Load, models: Path) -> None:
    model = load(models / "graph_mode", tags=("gpu", "serve"))
    assert [spec.name for spec in (*model.inputs, *model.outputs)] == ["image", "features"]
    assert {"conv": "Conv", "pooled": "ReduceMean"}.items() <= ops(model).items()
    assert set(model.source.tags) == {"gpu", "serve"}


def test_a_frozen_graph_has_its_placeholders_for_inputs(load: Load, models: Path) -> None:
    model = load(models / "frozen.pb")
    assert [spec.name for spec in (*model.inputs, *model.outputs)] == ["x", "pooled"]


def test_engines_of_tf_trt_become_what_they_were_made_of(load: Load, models: Path) -> None:
    model = load(models / "tftrt")
    x = RNG.standard_normal((5, 4)).astype(np.float32)
    wanted = np.maximum(x @ np.arange(12, dtype=np.float32).reshape(4, 3), 0) + 1
    np.testing.assert_allclose(answers(model.graph, {"x": x})[0], wanted, rtol=1e-6)
    assert any("TF-TRT had put 1" in note for note in model.source.notes)


@pytest.mark.parametrize("name", ["float.tflite", "int8.tflite"])
def test_tensorflow_lite_comes_in_also_quantized_and_stays_so(load: Load, models: Path, name: str) -> None:
    model = load(models / name)
    assert {"stem": "Conv", "dw": "Conv"}.items() <= ops(model).items()
    assert model.inputs[0].dtype == ("int8" if name.startswith("int8") else "float32")
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.graph) == name.startswith("int8")


def test_a_lambda_runs_only_where_it_is_trusted(load: Load, models: Path) -> None:
    with pytest.raises(InputError, match=r"Python code .*'twice'.*--trust"):
        load(models / "lambda2.h5")
    model = load(models / "lambda2.h5", trust=True)
    assert model.source.trusted
    assert any("--trust" in note for note in model.source.notes)
    assert "twice" in ops(model)


def test_trust_that_a_file_did_not_need_is_not_told_as_used(load: Load, models: Path) -> None:
    model = load(models / "float.tflite", trust=True)
    assert not model.source.trusted
    assert not any("--trust" in note for note in model.source.notes)


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        ("module", {}, "several signatures .*counting, fixed, headed, plain"),
        ("module", {"signature": "counting"}, "raised|changes its variable"),
        ("graph_mode", {}, r"none of them tagged serve.*train, gpu\+serve"),
        ("lookup", {}, r"LookupTableFindV2 in .*lookup.*Cut the model there.*int64.*is its input"),
        ("own.keras", {}, "theirs>Own.*--source-python"),
    ],
)
def test_what_can_not_come_in_is_refused_with_the_way_out(load: Load, models: Path, name: str, how: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load(models / name, **how)


def test_what_is_asked_of_a_file_that_has_no_such_thing_is_refused_before_anything_starts(
    load: Load, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="neither signatures nor tags"):
        load(models / "frozen.pb", signature="x")
    with pytest.raises(InputError, match="--factory"):
        load(models / "cnn2.h5", factory="a.py:b")
    monkeypatch.setattr(importer, "find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match=r"optimize\[tensorflow\]"):
        load(models / "cnn2.h5")
