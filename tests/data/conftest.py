"""What tests of data share."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimizer.data import Samples, open_samples
from optimizer.model import TensorSpec
from optimizer.preprocessing import InputPreprocessing, Preprocessing

Opened = Callable[..., Samples]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """Samples of what lies in the test's folder, for inputs given as name=shape or name=(dtype, shape), and how they are prepared."""

    def call(
        words: str, how: dict[str, dict[str, Any]] | Preprocessing | None = None, *, options: dict | None = None, **inputs: Any
    ) -> Samples:
        specs = tuple(
            TensorSpec(name, *(given if given and isinstance(given[0], str) and isinstance(given[-1], tuple) else ("float32", given)))
            for name, given in inputs.items()
        )
        if not isinstance(how, Preprocessing):
            how = Preprocessing({name: InputPreprocessing(**one) for name, one in (how or {}).items()})
        return open_samples(words, specs, how, tmp_path, **(options or {}))

    return call


@pytest.fixture
def wav(tmp_path: Path) -> Callable[..., Path]:
    """Write a .wav of raw sample bytes; `code` 1 is PCM, 3 float."""

    def write(
        name: str, data: bytes, *, bits: int = 16, channels: int = 1, rate: int = 16000, code: int = 1, size: int | None = None
    ) -> Path:
        width = bits // 8 * channels
        form = struct.pack("<HHIIHH", code, channels, rate, rate * width, width, bits)
        odd = b"LIST" + struct.pack("<I", 3) + b"abc\0"
        chunks = (
            b"fmt " + struct.pack("<I", len(form)) + form + odd + b"data" + struct.pack("<I", len(data) if size is None else size) + data
        )
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks)
        return path

    return write
