"""A request is made of words: from the command line, from optimize.toml, from Python; the wrong ones are refused with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.errors import InputError
from optimizer.latency import MaxLatency
from optimizer.plan import Shape
from optimizer.preprocessing import InputPreprocessing
from optimizer.request import Request, request_from_words, shape_from_words

TOML = """
objective = "throughput"
max_latency = "2ms@p99x4"
target = ["cpu", "l4"]
max_drop = "0.5pp"
calibration = "data.npz"
factory = "net.py:make"
[inputs.input]
layout = "NHWC"
scale = 0.5
mean = [0.1, 0.2, 0.3]
std = 2
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "optimize.toml"
    file.write_text(text)
    return file


def test_a_file_gives_words_and_preprocessing_and_given_words_count_before_it(tmp_path: Path) -> None:
    request = request_from_words("m.onnx", "out", config=written(tmp_path, TOML), max_drop="2%", targets=())
    assert request.targets == ("cpu", "l4")
    assert request.max_drop == "2%"
    assert request.objective == "throughput"
    assert request.max_latency == MaxLatency(2.0, "p99", concurrency=4)
    assert request.preprocessing.inputs["input"] == InputPreprocessing("NHWC", 0.5, (0.1, 0.2, 0.3), (2.0,))


def test_a_file_says_how_images_and_sound_become_samples(tmp_path: Path) -> None:
    text = """
    tokenizer = "tok.py:encode"
    [inputs.image]
    resize = 256
    crop = [224, 192]
    [inputs.sound]
    rate = 16000
    window = 576
    hop = 512
    context = 64
    [inputs.rate]
    value = 16000
    """
    found = request_from_words("m.onnx", "out", config=written(tmp_path, text)).preprocessing
    assert found.inputs["image"] == InputPreprocessing(resize=(256,), crop=(224, 192))
    assert found.inputs["image"].axes == "NHWC"
    assert found.inputs["sound"] == InputPreprocessing(rate=16000, window=576, hop=512, context=64)
    assert found.inputs["rate"].value == 16000
    assert found.tokenizer == "tok.py:encode"
    assert str(found.inputs["image"]) == "resize = (256,), crop = (224, 192)"


def test_paths_in_a_file_count_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "data.npz").touch()
    (tmp_path / "net.py").touch()
    request = request_from_words("m.onnx", "out", config=written(tmp_path, TOML))
    assert request.calibration == str(tmp_path / "data.npz")
    assert request.factory == str(tmp_path / "net.py:make")


def test_shapes_are_fixed_or_smallest_usual_largest() -> None:
    assert shape_from_words("1x3x8x8") == Shape((1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 8))
    assert shape_from_words("1x8:1x128:2x512") == Shape((1, 8), (1, 128), (2, 512))
    assert request_from_words("m", "o", shapes=("x=1x2", "y=3")).shapes["y"].fixed


@pytest.mark.parametrize("words", ["", "1x", "axb", "1x8:1x4", "1x8:1x4:1x16", "1:1x2:1x2", "1x0", "-1x3"])
def test_words_that_are_no_shape_are_refused(words: str) -> None:
    if words == "":
        assert shape_from_words(words) == Shape((), (), ())
        return
    with pytest.raises(InputError):
        shape_from_words(words)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"precision": "fp8"}, "not a precision"),
        ({"task": "magic"}, "not a task"),
        ({"threads": 0}, "whole number"),
        ({"threads": True}, "whole number"),
        ({"min_speedup": -1.0}, "above 0"),
        ({"max_drop": 1}, "must be text"),
        ({"max_latency": "2ms"}, "'2ms' is not a latency"),
        ({"max_latency": 2}, "max-latency must be text"),
        ({"objective": "speed"}, "not an objective"),
        ({"shapes": ["x"]}, "name=value"),
        ({"factory_args": ["=3"]}, "name=value"),
        ({"colour": "red"}, "no option 'colour'"),
        ({"ci": True, "random_calibration": True}, "not taken under --ci"),
        ({"calibration": "a.npz", "random_calibration": True}, "both asked for"),
        ({"metric": "top1"}, "--metric is about held-out data"),
        ({"min_metric": 0.8}, "--min-metric is about held-out data"),
        ({"plan": "plan.json", "precision": "int8"}, "says the precision of every layer"),
        ({"random_calibration": "false"}, "random-calibration is either true or false"),
        ({"require_measured": 1}, "require-measured is either true or false"),
    ],
)
def test_wrong_words_are_refused_with_the_reason(words: dict, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        request_from_words("m.onnx", "out", **words)


@pytest.mark.parametrize(
    "text",
    ["target = [", "inputs = 3", "[inputs]\nx = 1", "[inputs.x]\nlayuot = 'NHWC'", "[inputs.x]\nmean = ['a']", "[inputs.x]\nstd = [0.0]",
     "[inputs.x]\nlayout = 'HWC'", "[inputs.x]\nlayout = 3", "[inputs.x]\nfunction = 'a.py:b'\nscale = 2", "nonsense = 1",
     "[inputs.x]\nresize = '256'", "[inputs.x]\ncrop = [1, 2, 3]", "[inputs.x]\nresize = 0", "[inputs.x]\nresize = 8\nlayout = 'NTC'",
     "[inputs.x]\nhop = 3", "[inputs.x]\nwindow = 3\ncontext = 3", "[inputs.x]\nrate = 16e3", "[inputs.x]\nvalue = 'a'", "tokenizer = 3"],
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError):
        request_from_words("m.onnx", "out", config=written(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file optimize\.toml"):
        request_from_words("m.onnx", "out", config=tmp_path / "optimize.toml")


def test_under_ci_code_that_only_the_file_names_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, TOML)
    with pytest.raises(InputError, match=r"names as factory is not run"):
        request_from_words("m.pth", "out", config=file, ci=True)
    assert request_from_words("m.pth", "out", config=file, ci=True, factory="net.py:make").factory == "net.py:make"
    with pytest.raises(InputError, match=r"names as tokenizer is not run"):
        request_from_words("m.pth", "out", config=written(tmp_path, "tokenizer = 'tok.py:encode'"), ci=True)
    with pytest.raises(InputError, match="function"):
        request_from_words("m.pth", "out", config=written(tmp_path, "[inputs.x]\nfunction = 'a.py:b'"), ci=True)


def test_nothing_asked_is_a_request_for_this_cpu() -> None:
    request = request_from_words("m.onnx", "out")
    assert isinstance(request, Request)
    assert (request.targets, request.precision, request.max_drop, request.calibration) == (("cpu",), "auto", "1%", None)
