"""Signs in the answers: none, always the same one, or more right ones where the samples are prepared in another common way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.engine import Arrays
from optimizer.model import Model, TensorSpec
from optimizer.preprocessing import fits
from optimizer.reference import Reference

_ENOUGH = 16
"""Samples from which on one answer for all of them says something."""

_CHANCE = 1e-3
"""How unlikely it must be that another preparation is right more often by luck alone (one-sided sign test)."""

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

Array = NDArray[Any]
Outputs = Mapping[str, Array]


@dataclass(frozen=True)
class _Other:
    """Another common way to prepare an input, from the prepared array as it is; `remedy` is what optimize.toml then lacks."""

    words: str
    remedy: str
    change: Callable[[Array], Array]


def answers_suspected(
    model: Model, source: str, feeds: Sequence[Arrays], outputs: Sequence[Outputs], labels: Array | None, inputs: Sequence[TensorSpec]
) -> Iterator[str]:
    """What the model's own answers say against the samples."""
    broken = sum(any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in one.values()) for one in outputs)
    if broken:
        yield f"the model gives NaN or infinity for {broken} of {len(outputs)} samples of {source}. Look at what it is fed."
    output = _scores(model, outputs)
    if output is None or broken:
        return
    answers = _answers(outputs, output)
    truth = _classes(labels, outputs[0][output].shape[1])
    if truth is not None and len(inputs) == 1 and (better := _better(model, feeds, output, answers, truth, inputs[0])) is not None:
        other, right = better
        yield (
            f"with {inputs[0].name!r} {other.words} the model is right on {right} of {len(truth)} samples of {source}, and as it is fed on "
            f"{int((answers == truth).sum())}. {other.remedy}"
        )
    elif len(answers) >= _ENOUGH and len(set(answers.tolist())) == 1 and (truth is None or _varied(truth)):
        yield f"the model gives class {answers[0]} for all {len(answers)} samples of {source}. Look at how training prepared its inputs."


def _scores(model: Model, outputs: Sequence[Outputs]) -> str | None:
    """The first output that holds a score for each of three or more classes, one sample a feed."""
    for spec in model.outputs:
        found = [one[spec.name] for one in outputs]
        if found and all(array.dtype.kind == "f" and array.ndim == 2 and len(array) == 1 and array.shape[1] > 2 for array in found):
            return spec.name
    return None


def _answers(outputs: Sequence[Outputs], output: str) -> NDArray[np.int64]:
    return np.array([int(one[output][0].argmax()) for one in outputs], np.int64)


def _classes(labels: Array | None, classes: int) -> NDArray[np.int64] | None:
    """Labels as the numbers of classes; None where they are something else."""
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        return None
    return labels.astype(np.int64)


def _varied(truth: NDArray[np.int64]) -> bool:
    """Whether one answer for all must be wrong: three classes or more, none with most of the samples."""
    counts = np.bincount(truth)
    return int((counts > 0).sum()) >= 3 and 2 * int(counts.max()) <= len(truth)


def _better(
    model: Model, feeds: Sequence[Arrays], output: str, answers: NDArray[np.int64], truth: NDArray[np.int64], spec: TensorSpec
) -> tuple[_Other, int] | None:
    """The other preparation that is right most often, with how often, where that can't be luck."""
    right = answers == truth
    if not _luck((~right).sum(), 0) < _CHANCE:
        return None  # so few are wrong that nothing could be shown
    best: tuple[_Other, int] | None = None
    with closing(Reference(model.graph, optimized=True)) as reference:
        for other in _others([feed[spec.name] for feed in feeds], spec):
            now = _answers_to(reference, feeds, output, other, spec) == truth
            shown = _luck((now & ~right).sum(), (right & ~now).sum()) < _CHANCE
            if shown and (best is None or now.sum() > best[1]):
                best = other, int(now.sum())
    return best


def _answers_to(reference: Reference, feeds: Sequence[Arrays], output: str, other: _Other, spec: TensorSpec) -> NDArray[np.int64]:
    changed = ({**feed, spec.name: np.ascontiguousarray(other.change(feed[spec.name]), spec.dtype)} for feed in feeds)
    return _answers([reference.run(feed) for feed in changed], output)


def _luck(gained: int, lost: int) -> float:
    """The probability that of so many differences at least `gained` are gains, were both kinds as likely."""
    total = int(gained) + int(lost)
    return float(sum(comb(total, k) for k in range(int(gained), total + 1)) / 2**total)


def _others(arrays: Sequence[Array], spec: TensorSpec) -> Iterator[_Other]:
    """Other ways to prepare what lies where these arrays do."""
    low, high = min(float(array.min()) for array in arrays), max(float(array.max()) for array in arrays)
    mean, std = (_by_channel(numbers, arrays[0].shape) for numbers in (_IMAGENET_MEAN, _IMAGENET_STD))
    normalize = "Set scale, mean and std in optimize.toml as training did."
    if low >= 0 and 1.5 < high <= 255:
        yield _Other("divided by 255", "Set scale = 0.00392156862745098 in optimize.toml.", lambda x: x / 255)
        yield _Other("brought from 0..255 to -1..1", normalize, lambda x: x / 127.5 - 1)
        if mean is not None and std is not None:
            yield _Other("divided by 255 and normalized as for ImageNet", normalize, lambda x: (x / 255 - mean) / std)
    if low >= 0 and not (0.5 < high <= 1 or 200 < high <= 255) and high > 0:
        factor = f"{1 / high:.6g}"
        yield _Other(f"brought to 0..1 (times {factor})", f"Take {factor} times the scale in optimize.toml.", lambda x: x / high)
    if low >= 0 and high <= 1:
        yield _Other("multiplied by 255", "Take 255 times the scale in optimize.toml.", lambda x: x * 255)
        yield _Other("brought from 0..1 to -1..1", normalize, lambda x: 2 * x - 1)
        if mean is not None and std is not None:
            yield _Other("normalized as for ImageNet", normalize, lambda x: (x - mean) / std)
    if low < 0:
        yield _Other("brought from -1..1 to 0..1", normalize, lambda x: (x + 1) / 2)
        yield _Other("brought from -1..1 to 0..255", normalize, lambda x: (x + 1) * 127.5)
        if mean is not None and std is not None:
            yield _Other("normalized once less (by ImageNet's mean and std)", normalize, lambda x: x * std + mean)
            yield _Other("taken back to 0..255 (by ImageNet's mean and std)", normalize, lambda x: (x * std + mean) * 255)
    for axes, layout in (((0, 3, 1, 2), "NHWC"), ((0, 2, 3, 1), "NCHW")):
        if len(spec.shape) == 4 and fits(tuple(arrays[0].shape[axis] for axis in axes), spec):
            yield _Other(f"read as {layout}", f'Set layout = "{layout}" in optimize.toml.', partial(np.transpose, axes=axes))


def _by_channel(numbers: tuple[float, ...], shape: tuple[int, ...]) -> Array | None:
    """Three numbers along the axis of three channels, for images; None where there is no one such axis."""
    if len(shape) != 4 or (shape[1] == 3) == (shape[3] == 3):
        return None
    return np.array(numbers, np.float32).reshape((1, 3, 1, 1) if shape[1] == 3 else (1, 1, 1, 3))
