"""The models of engines.py: where each comes from, what it is run on, and what it means to keep its answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import engines_data as data
from benchmarks import engines_kept as kept
from benchmarks.engines_data import ASSETS, Array, Feeds, Part

Made = Callable[[Part, int], Iterator[Feeds]]
"""So many feeds of one part of a model's data."""


@dataclass(frozen=True)
class Measure:
    """How much is kept: `answer` of each sample's first output, and `score` of all answers held against the parent's, one a sample.

    `metric` names the same for `optimize build`; with `labelled` the parent's answers go into its evaluation data.  `beside` are
    further scores to be shown.
    """

    words: str
    answer: Callable[[Array], Array]
    score: Callable[[Array, Array], Array]
    metric: str
    labelled: bool = False
    beside: Mapping[str, Callable[[Array, Array], Array]] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """A model. `write` makes its ONNX file, `feeds` its data, `counts` says how much of each part there is at most.

    `network` is its PyTorch source in engines_networks.py, `shapes` are its inputs' sizes where the file leaves them open, `state` an
    input and the output that it takes from the sample before, `labels` the true classes of the test data.
    """

    title: str
    write: Callable[[Path], None]
    feeds: Made
    measure: Measure
    counts: Mapping[Part, int]
    trained: bool = True
    network: str | None = None
    transformer: bool = False
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    state: tuple[str, str] | None = None
    labels: Callable[[], Array] | None = None


def _from_torch(name: str, feeds: Made, file: Path) -> None:
    from benchmarks.engines_networks import exported

    exported(name, next(feeds("calibration", 1)), file)


def _from_tensorflow(saved_model: Path, file: Path) -> None:
    """By tf2onnx, in a process of its own: TensorFlow brings threads along."""
    command: list[str | Path] = [
        sys.executable,
        "-P",
        "-m",
        "tf2onnx.convert",
        "--saved-model",
        saved_model,
        "--opset",
        "18",
        "--output",
        file,
    ]
    subprocess.run(command, check=True, capture_output=True)


def _from_keras(source: Path, file: Path) -> None:
    saved = file.parent / "saved_model"
    script = "import sys, tf_keras; tf_keras.models.load_model(sys.argv[1], compile=False).export(sys.argv[2])"
    subprocess.run([sys.executable, "-P", "-c", script, source, saved], check=True, capture_output=True)
    _from_tensorflow(saved, file)


def _from_package(name: str, file: Path) -> None:
    spec = find_spec("rapidocr_onnxruntime")
    assert spec is not None, "the trained models come from PyPI: pip install --no-deps rapidocr-onnxruntime==1.4.4"
    assert spec.submodule_search_locations
    _copied(Path(next(iter(spec.submodule_search_locations))) / "models" / name, file)


def _copied(source: Path, file: Path) -> None:
    file.write_bytes(source.read_bytes())


def _pictures(kind: str, part: Part, count: int) -> Iterator[Feeds]:
    """Imported late: Pillow is needed for these models alone."""
    from benchmarks import engines_pictures

    found: Iterator[Feeds] = getattr(engines_pictures, kind)(part, count)
    return found


def _normalized(part: Part, count: int) -> Iterator[Feeds]:
    mean, std = (np.array(three, np.float32) for three in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for image in _raw(part, count):
        yield {"input": np.ascontiguousarray(((image["input_1"] / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))}


def _raw(part: Part, count: int) -> Iterator[Feeds]:
    return ({"input_1": image[None].astype(np.float32)} for image in data.cifar(part)[0][:count])


def _keywords(part: Part, count: int) -> Iterator[Feeds]:
    """A few from everywhere in the recordings, or all."""
    return islice(data.keywords(part), 0, None, 7 if count < 1000 else 1)


def _windows(part: Part, count: int) -> Iterator[Feeds]:
    """The state is zeros at a recording's beginning; elsewhere it is not known yet."""
    for sound in data.speech(part):
        state = np.zeros((2, 1, 128), np.float32)
        for window in islice(data.windows(sound), count):
            yield {"input": window, "state": state}


def _noise_images(size: int, part: Part, count: int) -> Iterator[Feeds]:
    return data.noise_images(part, count, size)


def _noise_tokens(part: Part, count: int) -> Iterator[Feeds]:
    return data.noise_tokens(part, count, 128, 30522)


def _of_classes() -> Array:
    return data.cifar("test")[1]


def _parts(calibration: int, evaluation: int, test: int) -> Mapping[Part, int]:
    return {"calibration": calibration, "evaluation": evaluation, "test": test}


def _network(name: str, title: str, feeds: Made, measure: Measure, counts: Mapping[Part, int], **more: Any) -> Subject:
    """A model whose source is in engines_networks.py."""
    return Subject(title, partial(_from_torch, name, feeds), feeds, measure, counts, network=name, **more)


CLASSES = Measure("classes", kept.classes, kept.same, "agreement")
COSINE = Measure("cosine", kept.numbers, kept.cosine, "cosine")
SENTENCES = Measure("cosine", kept.numbers, kept.cosine, "cosine", beside={"same text found first": kept.same_neighbour})
STRINGS = Measure("strings read", kept.classes, kept.same_text, "engines_kept.py:strings", True, {"characters": kept.same_positions})
BOXES = Measure(f"boxes at IoU {kept.OVERLAP:g}", kept.ink, kept.same_boxes, "engines_kept.py:boxes", True, {"pixels": kept.same_positions})
SPEECH = Measure("windows above 0.5", kept.sounding, kept.same, "agreement")

CIFAR, RANDOM = _parts(300, 4000, 4000), _parts(200, 400, 50)

SUBJECTS: Mapping[str, Subject] = {
    "resnet20": _network("resnet20", "ResNet-20, CIFAR-10", _normalized, CLASSES, CIFAR, labels=_of_classes),
    "resnet8": Subject(
        "ResNet-8, CIFAR-10",
        partial(_from_keras, ASSETS / "resnet8_cifar10.h5"),
        _raw,
        CLASSES,
        CIFAR,
        shapes={"input_1": (1, 32, 32, 3)},
        labels=_of_classes,
    ),
    "keywords": Subject(
        "DS-CNN, keywords",
        partial(_from_tensorflow, ASSETS / "kws_saved_model"),
        _keywords,
        CLASSES,
        _parts(300, 4000, 4000),
        shapes={"input_1": (1, 49, 10, 1)},
    ),
    "speech": Subject(
        "Silero VAD, a sequence",
        partial(_copied, ASSETS / "silero_vad_16k.onnx"),
        _windows,
        SPEECH,
        _parts(4000, 4000, 4000),
        shapes={"input": (1, 576), "state": (2, 1, 128)},
        state=("state", "stateN"),
    ),
    "direction": Subject(
        "PP-OCR, text direction",
        partial(_from_package, "ch_ppocr_mobile_v2.0_cls_infer.onnx"),
        partial(_pictures, "turned_lines"),
        CLASSES,
        _parts(300, 3200, 3200),
        shapes={"x": (1, 3, 48, 192)},
    ),
    "recognizer": Subject(
        "PP-OCRv4, text recognizer",
        partial(_from_package, "ch_PP-OCRv4_rec_infer.onnx"),
        partial(_pictures, "lines"),
        STRINGS,
        _parts(300, 1000, 1000),
        shapes={"x": (1, 3, 48, 320)},
    ),
    "detector": Subject(
        "PP-OCRv4, text detector",
        partial(_from_package, "ch_PP-OCRv4_det_infer.onnx"),
        partial(_pictures, "pages"),
        BOXES,
        _parts(100, 600, 200),
        shapes={"x": (1, 3, 480, 640)},
    ),
    "minilm": _network("minilm", "MiniLM, 128 tokens", data.tokens, SENTENCES, _parts(300, 1000, 1000), transformer=True),
    "resnet50": _network("resnet50", "ResNet-50", partial(_noise_images, 224), COSINE, RANDOM, trained=False),
    "mobilenetv2": _network("mobilenetv2", "MobileNetV2", partial(_noise_images, 224), COSINE, RANDOM, trained=False),
    "bert": _network("bert", "BERT-base, 128 tokens", _noise_tokens, COSINE, RANDOM, trained=False, transformer=True),
    "lstm": _network("lstm", "LSTM 2x256, 64 steps", data.noise_frames, COSINE, RANDOM, trained=False),
    "dlrm": _network("dlrm", "DLRM-like, batch 128", data.clicks, COSINE, _parts(100, 400, 50), trained=False),
    "unet": _network("unet", "U-Net, 128x128", partial(_noise_images, 128), COSINE, RANDOM, trained=False),
}
