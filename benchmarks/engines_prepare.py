"""What engines.py is run on, as files in one folder a model.

model.onnx is what `optimize build` takes, with optimize.toml beside it; static.onnx is the same for the neighbours, with fixed sizes
and an opset in which Q/DQ per channel is defined.  calibration.npz, evaluation.npz and test.npz hold what is fed, each input's samples
along its first axis; parent.npy is what ONNX Runtime's FP32 answers to the test data.
"""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import version_converter

from benchmarks import engines_data as data
from benchmarks.engines_data import Array, Feeds, Part
from benchmarks.engines_models import Subject

HERE = Path(__file__).resolve().parent
OPSET = 17

Run = Callable[[Feeds], Sequence[Array]]
"""A run: inputs by name to all outputs in the model's order."""


def prepare(subject: Subject, folder: Path) -> None:
    """Write everything about one model into a new folder."""
    folder.mkdir(parents=True)
    subject.write(folder / "model.onnx")
    _fix(folder / "model.onnx", folder / "static.onnx", subject)
    parent = _session(folder / "static.onnx")
    for part in data.PARTS:
        count = subject.counts[part]
        _store(folder / f"{part}.npz", _with_states(subject, parent, islice(subject.feeds(part, count), count)))
    if subject.measure.labelled:
        answers = answered(subject, parent, folder, "evaluation")
        with np.load(folder / "evaluation.npz") as file:
            np.savez(folder / "evaluation.npz", allow_pickle=False, **file, y=answers[:, 0].astype(np.int64))
    np.save(folder / "parent.npy", answered(subject, parent, folder, "test"))
    (folder / "optimize.toml").write_text(_toml(subject), encoding="utf-8")
    if subject.state is not None:
        for part in ("calibration", "evaluation"):
            _write_sounds(folder / part, data.speech(part))


def stored(folder: Path, part: Part) -> Iterator[Feeds]:
    """One part's feeds, as many rows each as static.onnx takes."""
    declared = {one.name: one.type.tensor_type.shape.dim[0].dim_value for one in onnx.load(folder / "static.onnx").graph.input}
    with np.load(folder / f"{part}.npz") as file:
        arrays = {name: file[name].reshape(-1, rows, *file[name].shape[1:]) for name, rows in declared.items()}
    for number in range(min(map(len, arrays.values()))):
        yield {name: array[number] for name, array in arrays.items()}


def answered(subject: Subject, run: Run, folder: Path, part: Part) -> Array:
    """What a run answers to each sample, (samples, ...); a state is carried from one to the next of a recording."""
    answers, carried = list[Array](), None
    for feeds in stored(folder, part):
        if subject.state is not None and carried is not None and feeds[subject.state[0]].any():
            feeds[subject.state[0]] = carried
        first, *others = run(feeds)
        carried = np.array(others[0]) if others else None
        answers.append(subject.measure.answer(np.array(first)))
    return np.stack(answers)


def _session(file: Path) -> Run:
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def _fix(source: Path, file: Path, subject: Subject) -> None:
    model = onnx.load(source)
    for one in model.graph.input:
        sizes = one.type.tensor_type.shape.dim
        for size, wanted in zip(sizes, subject.shapes.get(one.name, [size.dim_value or 1 for size in sizes]), strict=True):
            size.dim_value = wanted
    for one in [*model.graph.output, *model.graph.value_info]:
        for size in one.type.tensor_type.shape.dim:
            size.ClearField("dim_param")
    for one in [one for one in model.graph.input if one.name == "sr"]:
        model.graph.input.remove(one)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(data.RATE, np.int64), "sr"))
    if next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx")) < OPSET:
        model = version_converter.convert_version(model, OPSET)
    onnx.save(model, file)
    if any(node.op_type == "If" for node in model.graph.node):
        _take_branches(file)


def _take_branches(file: Path) -> None:
    """Replace what hangs on a constant condition by its branch, with ONNX Runtime's basic optimizations: NNCF can't look into an If."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(file)
    ort.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])


def _with_states(subject: Subject, parent: Run, feeds: Iterable[Feeds]) -> Iterator[Feeds]:
    """Each feed with the state that the parent had before it, so that the neighbours calibrate on what a run sees."""
    held = None
    for one in feeds:
        if subject.state is not None:
            if held is not None and one["input"][0, : data.WINDOW - data.HOP].any():
                one[subject.state[0]] = held
            held = parent(one)[1]
        yield one


def _store(file: Path, feeds: Iterable[Feeds]) -> None:
    rows = list(feeds)
    np.savez(file, allow_pickle=False, **{name: np.concatenate([row[name] for row in rows]) for name in rows[0]})


def _toml(subject: Subject) -> str:
    """What a user of `optimize build` would write for this model."""
    ending = ".npz" if subject.state is None else ""
    metric = f"{HERE}/{subject.measure.metric}" if ":" in subject.measure.metric else subject.measure.metric
    lines = [f'calibration = "calibration{ending}"', f'evaluation = "evaluation{ending}"', f'metric = "{metric}"']
    if subject.shapes:
        lines += ["[shapes]", *(f'{name} = "{"x".join(map(str, shape))}"' for name, shape in subject.shapes.items())]
    if subject.state is not None:
        lines += ["[inputs.input]", f"rate = {data.RATE}", f"window = {data.WINDOW}", f"hop = {data.HOP}"]
        lines += [f"context = {data.WINDOW - data.HOP}", f"[inputs.{subject.state[0]}]", f'state = "{subject.state[1]}"']
        lines += ["[inputs.sr]", f"value = {data.RATE}"]
    return "\n".join(lines) + "\n"


def _write_sounds(folder: Path, sounds: Sequence[Array]) -> None:
    folder.mkdir()
    for number, sound in enumerate(sounds):
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, data.RATE, len(sound), "NONE", ""))
            file.writeframes(np.round(sound * 32767).astype(np.int16).tobytes())
