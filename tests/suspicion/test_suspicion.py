"""Data that a model was not trained on is suspected by what the model has kept and by its answers, and data that it was is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer import importers
from optimizer.data import open_samples
from optimizer.importers import ImportRequest
from optimizer.model import Model
from optimizer.plan import Shape
from optimizer.preprocessing import InputPreprocessing, Preprocessing
from optimizer.suspicion import suspected

QDQ = "q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EXAMPLES = Path(__file__).parents[2] / "examples"


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def bytes_of_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="session")
def resnet20(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    shapes = {"input": Shape(*((1, 3, 32, 32),) * 3)}
    how = ImportRequest(
        assets / "resnet20_cifar10.th", tmp_path_factory.mktemp("scratch"), EXAMPLES, factory="resnet20.py:make", shapes=shapes
    )
    return importers.load(how)


def of_cifar(model: Model, assets: Path, **how: Any) -> tuple[str, ...]:
    name = model.inputs[0].name
    preprocessing = Preprocessing({name: InputPreprocessing(layout="NHWC", **how)})
    files = ("cifar10_calibration.npz", "cifar10_evaluation.npz")
    return suspected(model, [open_samples(file, model.inputs, preprocessing, assets) for file in files])


def test_resnet20_fed_as_trained_is_not_suspected(resnet20: Model, assets: Path) -> None:
    assert of_cifar(resnet20, assets, scale=1 / 255, mean=MEAN, std=STD) == ()


@pytest.mark.parametrize(
    ("how", "wider", "answers"),
    [
        ({}, "48.3 times as wide", "divided by 255 and normalized as for ImageNet the model is right on 27 of 32"),
        ({"scale": 1 / 255}, "0.189 times as wide", "normalized as for ImageNet the model is right on 27 of 32"),
        ({"scale": 1 / 255**2}, "0.000742 times as wide", "the model"),
    ],
)
def test_resnet20_fed_otherwise_is_suspected_by_its_statistics_and_its_answers(
    resnet20: Model, assets: Path, how: dict, wider: str, answers: str
) -> None:
    found = of_cifar(resnet20, assets, **how)
    assert any(wider in one for one in found)
    assert any(answers in one for one in found)
    assert all(one.startswith("Suspicious: ") for one in found)


@pytest.mark.slow
def test_a_keras_model_trained_on_0_to_255_is_suspected_only_where_that_was_scaled_away(assets: Path, tmp_path: Path) -> None:
    model = importers.load(ImportRequest(assets / "resnet8_cifar10.h5", tmp_path, tmp_path))
    assert of_cifar(model, assets) == ()
    assert any("multiplied by 255 the model is right on" in one for one in of_cifar(model, assets, scale=1 / 255))


def test_the_speech_model_fed_speech_is_not_suspected(assets: Path, tmp_path: Path) -> None:
    model = importers.load(ImportRequest(assets / "silero_vad_16k.onnx", tmp_path, tmp_path))
    how = {
        "input": InputPreprocessing(rate=16000, window=576, hop=512, context=64),
        "state": InputPreprocessing(state="stateN"),
        "sr": InputPreprocessing(value=16000),
    }
    assert suspected(model, [open_samples("speech_16k.wav", model.inputs, Preprocessing(how), assets)]) == ()


@pytest.mark.parametrize(("scale", "suspicious"), [(1.0, False), (255.0, True), (1 / 255, True), (2.0, False), (0.5, False)])
def test_a_layer_s_batch_statistics_behind_a_bias_tell_the_scale(model: Any, samples: Any, scale: float, suspicious: bool) -> None:
    weight = numbers(6, 4)
    made = model(
        "n, 6", "a = MatMul (x, w) b = Add (a, bias) y = BatchNormalization (b, one, zero, mean, var)",
        w=weight, bias=np.full(4, 3, np.float32), one=np.ones(4, np.float32), zero=np.zeros(4, np.float32),
        mean=np.full(4, 3, np.float32), var=(weight**2).sum(axis=0),
    )  # fmt: skip
    found = suspected(made, [samples(made, numbers(64, 6), scale=scale)])
    assert any("as wide as in training" in one for one in found) == suspicious


def test_a_normalization_that_never_trained_tells_nothing(model: Any, samples: Any) -> None:
    one, zero = np.ones(4, np.float32), np.zeros(4, np.float32)
    made = model("n, 4", "y = BatchNormalization (x, one, zero, mean, var)", one=one, zero=zero, mean=zero + 0, var=one + 0)
    assert suspected(made, [samples(made, numbers(64, 4) * 1000)]) == ()


@pytest.mark.parametrize(
    ("body", "constants", "x", "words"),
    [
        ("y = Div (x, c)", {"c": np.float32(255)}, bytes_of_images(20, 3) / 255, "it was scaled before, or should have been"),
        ("y = Div (x, c)", {"c": np.float32(255)}, bytes_of_images(20, 3), None),
        ("a = Sub (x, m) y = Div (a, s)", {"m": np.float32(0.45), "s": np.float32(0.225)}, bytes_of_images(20, 3), "itself (by 4.44)"),
        ("a = Sub (x, m) y = Div (a, s)", {"m": np.float32(0.45), "s": np.float32(0.225)}, bytes_of_images(20, 3) / 255, None),
        ("y = Mul (x, c)", {"c": np.float32(255)}, bytes_of_images(20, 3) / 255, None),
        ("y = Sub (x, c)", {"c": np.float32(120)}, bytes_of_images(20, 3), None),
        ("a = Clip (x, l, h) y = Neg (a)", {"l": np.float32(0), "h": np.float32(1)}, bytes_of_images(20, 3), "own Clip keeps 0 to 1"),
        ("a = Clip (x, l, h) y = Neg (a)", {"l": np.float32(0), "h": np.float32(1)}, bytes_of_images(20, 3) / 250, None),
        (QDQ, {"s": np.float32(1 / 255), "z": np.uint8(0)},
         bytes_of_images(20, 3), "own QuantizeLinear keeps 0 to 1"),
        (QDQ, {"s": np.float32(1), "z": np.uint8(0)},
         bytes_of_images(20, 3) / 255, "own QuantizeLinear keeps 0 to 255"),
        (QDQ, {"s": np.float32(1), "z": np.uint8(0)}, bytes_of_images(20, 3), None),
    ],
)  # fmt: skip
def test_what_a_model_does_to_its_input_first_tells_what_it_expects(
    model: Any, samples: Any, body: str, constants: dict, x: np.ndarray, words: str | None
) -> None:
    made = model("n, 3", body, **constants)
    found = suspected(made, [samples(made, x)])
    assert any(words in one for one in found) if words else found == ()


def nearest(classes: int) -> dict:
    """Weights that make x (n, 1, 1, 1) in 0..1 the class whose centre (k + 0.5) / classes is nearest."""
    centres = (np.arange(classes, dtype=np.float32) + 0.5) / classes
    return {"w": 2 * centres[None], "b": -(centres**2)}


@pytest.mark.parametrize(
    ("factor", "words"),
    [(1, None), (255, "divided by 255 the model is right on 32 of 32"), (16, "times 0.0"), (1 / 300, "brought to 0..1")],
)
def test_labels_show_a_wrong_scale_where_the_model_has_kept_nothing(model: Any, samples: Any, factor: float, words: str | None) -> None:
    x = np.linspace(0, 1, 60, dtype=np.float32)[:, None]
    made = model("n, 1", "a = MatMul (x, w) y = Add (a, b)", **nearest(5))
    found = suspected(made, [samples(made, x * factor, np.minimum((x[:, 0] * 5).astype(int), 4))])
    assert any(words in one for one in found) if words else found == ()


def test_labels_show_a_layout_that_fits_and_is_wrong(model: Any, samples: Any) -> None:
    labels = np.arange(48) % 3
    x = np.random.default_rng(0).random((48, 3, 3, 3)).astype(np.float32)
    x[np.arange(48), :, :, labels] += 0.5  # channels last
    made = model("n, 3, 3, 3", "y = ReduceMean <keepdims = 0> (x, axes)", axes=np.array([2, 3]))
    assert any("read as NHWC the model is right on 3" in one for one in suspected(made, [samples(made, x, labels)]))
    assert suspected(made, [samples(made, x, labels, layout="NHWC")]) == (), "channels last and first both fit; the label tells"


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.where(np.eye(20, 3, dtype=bool), np.nan, numbers(20, 3)), "NaN or infinity in 3 of 20 samples"),
        (np.zeros((20, 3)), "one number throughout in 20 of 20 samples"),
        (np.tile(numbers(1, 3), (20, 1)), "the same in all 20 samples"),
        (numbers(20, 3), None),
        (numbers(1, 3), None),
    ],
)
def test_numbers_that_can_not_be_data_are_told(model: Any, samples: Any, x: np.ndarray, words: str | None) -> None:
    made = model("n, 3", "y = Neg (x)")
    found = suspected(made, [samples(made, x.astype(np.float32))])
    assert any(words in one for one in found) if words else found == ()


def test_one_answer_for_all_is_told_unless_the_labels_allow_it(model: Any, samples: Any) -> None:
    made = model("n, 3", "y = Add (x, b)", b=np.array([9, 0, 0], np.float32))
    assert any("class 0 for all 32" in one for one in suspected(made, [samples(made, numbers(40, 3))]))
    assert any("class 0 for all 32" in one for one in suspected(made, [samples(made, numbers(40, 3), np.arange(40) % 3)]))
    assert suspected(made, [samples(made, numbers(40, 3), np.zeros(40, int))]) == ()


def test_two_data_sets_of_which_one_was_scaled_are_told(model: Any, samples: Any) -> None:
    made = model("n, 3", "y = Neg (x)")
    x = bytes_of_images(20, 3)
    found = suspected(made, [samples(made, x, name="a"), samples(made, x / 255, name="b")])
    assert len(found) == 1
    assert "in a.npz and" in found[0]
    assert suspected(made, [samples(made, x, name="a"), samples(made, x[::2] * 0.6, name="b")]) == ()
