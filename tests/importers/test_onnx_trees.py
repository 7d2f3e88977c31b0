"""Tree ensembles and the pipelines around them come in as scikit-learn, XGBoost and LightGBM are converted, and answer as those do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import onnx
import onnxmltools
import pytest
import xgboost
from onnxmltools.convert.common.data_types import FloatTensorType
from skl2onnx import to_onnx
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier, RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from kernels.gpus import GPUS
from optimizer import importers
from optimizer.backends.tensorrt.losses import losses_of
from optimizer.errors import InputError, UnavailableError
from optimizer.importers import ImportRequest
from optimizer.model import Model
from optimizer.reference import Reference

Load = Callable[..., Model]

GENERATOR = np.random.default_rng(7)
X = GENERATOR.standard_normal((200, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5)


def found(model: Model, x: np.ndarray) -> dict[str, np.ndarray]:
    with closing(Reference(model.graph)) as reference:
        return reference.run({model.inputs[0].name: x})


def forest(labels: Any = Y) -> RandomForestClassifier:
    return RandomForestClassifier(4, max_depth=4, random_state=0).fit(X, labels)


def test_a_map_of_probabilities_becomes_the_tensor_that_it_is_made_of(load: Load, folder: Path, tmp_path: Path) -> None:
    trained = forest()
    onnx.save(to_onnx(trained, X[:1]), folder / "model.onnx")
    model = load("model.onnx")
    answers = found(model, X[:50])
    np.testing.assert_array_equal(answers["output_label"], trained.predict(X[:50]))
    np.testing.assert_allclose(answers["output_probability"], trained.predict_proba(X[:50]), atol=1e-6)
    assert model.outputs[1].dtype == "float32"
    assert any("map from class to probability" in note and "0, 1, 2" in note for note in model.source.notes)
    assert any("nothing to quantize" in note for note in model.source.notes)
    with closing(importers.running(ImportRequest(folder / "model.onnx", tmp_path, folder), model)) as parent:
        wanted = parent.run({"X": X[:50]})
        assert wanted.keys() == answers.keys()
        np.testing.assert_array_equal(wanted["output_probability"], answers["output_probability"])


def test_classes_that_are_text_are_named_in_the_order_of_their_columns(load: Load, folder: Path) -> None:
    trained = forest(np.array(["ant", "bee", "cat"])[Y])
    onnx.save(to_onnx(trained, X[:1]), folder / "model.onnx")
    model = load("model.onnx")
    assert [spec.name for spec in model.outputs] == ["output_probability"]
    np.testing.assert_allclose(found(model, X[:50])["output_probability"], trained.predict_proba(X[:50]), atol=1e-6)
    assert any("ant, bee, cat" in note for note in model.source.notes)
    assert any("'output_label' is text" in note for note in model.source.notes)


def test_a_model_that_gives_text_alone_is_refused(load: Load, folder: Path) -> None:
    proto = to_onnx(forest(np.array(["ant", "bee", "cat"])[Y]), X[:1])
    del proto.graph.output[1:]
    onnx.save(proto, folder / "model.onnx")
    with pytest.raises(InputError, match="'output_label', is text"):
        load("model.onnx")


def test_a_pipeline_with_imputer_and_scaler_takes_missing_numbers(load: Load, folder: Path) -> None:
    holes = np.where(GENERATOR.random(X.shape) < 0.1, np.nan, X).astype(np.float32)
    trained = make_pipeline(SimpleImputer(), StandardScaler(), GradientBoostingClassifier(n_estimators=3)).fit(holes, Y)
    onnx.save(to_onnx(trained, X[:1]), folder / "model.onnx")
    answers = found(load("model.onnx"), holes[:50])
    np.testing.assert_allclose(answers["output_probability"], trained.predict_proba(holes[:50]), atol=1e-5)


def test_a_one_hot_encoder_of_numbers_comes_in(load: Load, folder: Path) -> None:
    kinds = GENERATOR.integers(0, 4, (200, 3))
    trained = make_pipeline(OneHotEncoder(), RandomForestRegressor(3, random_state=0)).fit(kinds, X[:, 0])
    onnx.save(to_onnx(trained, kinds[:1]), folder / "model.onnx")
    model = load("model.onnx")
    assert model.inputs[0].dtype == "int64"
    np.testing.assert_allclose(found(model, kinds[:50])["variable"][:, 0], trained.predict(kinds[:50]), atol=1e-5)


@pytest.mark.parametrize("maker", ["xgboost", "lightgbm"])
@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_boosted_trees_answer_as_before(load: Load, folder: Path, maker: str, kind: str) -> None:
    options: dict[str, Any] = {"n_estimators": 3, "max_depth": 3}
    if maker == "xgboost":
        made = xgboost.XGBClassifier(**options) if kind == "classifier" else xgboost.XGBRegressor(**options)
        convert = onnxmltools.convert_xgboost
    else:
        made = (lightgbm.LGBMClassifier if kind == "classifier" else lightgbm.LGBMRegressor)(verbose=-1, **options)
        convert = onnxmltools.convert_lightgbm
    trained = made.fit(X, Y)
    onnx.save(convert(trained, initial_types=[("x", FloatTensorType([None, 6]))]), folder / "model.onnx")
    model = load("model.onnx")
    answers = found(model, X[:50])
    wanted = trained.predict_proba(X[:50]) if kind == "classifier" else trained.predict(X[:50])[:, None]
    np.testing.assert_allclose(answers["probabilities" if kind == "classifier" else "variable"], wanted, rtol=1e-4, atol=1e-5)


def test_tensorrt_is_said_to_have_no_trees(load: Load, folder: Path) -> None:
    onnx.save(to_onnx(forest(), X[:1], options={"zipmap": False}), folder / "model.onnx")
    with pytest.raises(UnavailableError, match=r"TreeEnsembleClassifier of ai\.onnx\.ml") as caught:
        losses_of(load("model.onnx").graph, GPUS["l4"])
    assert "--target cpu" in caught.value.remedy
