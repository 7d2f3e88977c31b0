"""Sound comes in -1 to 1, cut as optimize.toml says, at the rate that it says, and never read whole where it is cut."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.errors import InputError

RATE = {"rate": 16000}


@pytest.mark.parametrize(
    ("bits", "code", "data", "expected"),
    [
        (8, 1, bytes([0, 128, 255]), [-1, 0, 127 / 128]),
        (16, 1, struct.pack("<3h", -32768, 0, 16384), [-1, 0, 0.5]),
        (24, 1, b"\x00\x00\x80" + b"\x00\x00\x00" + b"\x00\x00\x40", [-1, 0, 0.5]),
        (32, 1, struct.pack("<3i", -(1 << 31), 0, 1 << 30), [-1, 0, 0.5]),
        (32, 3, struct.pack("<3f", -1, 0, 0.5), [-1, 0, 0.5]),
        (64, 3, struct.pack("<3d", -1, 0, 0.5), [-1, 0, 0.5]),
    ],
)
def test_every_usual_kind_of_sample_lies_in_minus_1_to_1(wav: Any, opened: Any, bits: int, code: int, data: bytes, expected: list) -> None:
    wav("a.wav", data, bits=bits, code=code)
    (feed,) = opened("a.wav", {"sound": RATE}, sound=(1, "time"))
    assert feed["sound"].tolist() == [expected]


def test_windows_overlap_and_begin_with_zeros_as_asked(wav: Any, opened: Any) -> None:
    wav("a.wav", np.arange(1, 12, dtype="<f4").tobytes(), bits=32, code=3)
    samples = opened("a.wav", {"sound": {**RATE, "window": 5, "hop": 3, "context": 2}}, sound=("n", "time"))
    assert [feed["sound"][0].tolist() for feed in samples] == [[0, 0, 1, 2, 3], [2, 3, 4, 5, 6], [5, 6, 7, 8, 9]]
    assert len(samples) == 3
    assert samples.starts == {0}


def test_the_speech_model_s_windows_and_its_other_inputs_need_three_tables(assets: Path, opened: Any) -> None:
    how = {"input": {**RATE, "window": 576, "hop": 512, "context": 64}, "state": {"state": "stateN"}, "sr": {"value": 16000}}
    samples = opened(str(assets / "speech_16k.wav"), how, input=("?0", "?1"), state=(2, "?0", 128), sr=("int64", ()))
    assert len(samples) == 1875
    feed = next(iter(samples.take([1])))
    assert {name: array.shape for name, array in feed.items()} == {"input": (1, 576), "state": (2, 1, 128), "sr": ()}
    assert feed["sr"] == 16000
    assert not feed["state"].any()
    raw = np.frombuffer((assets / "speech_16k.wav").read_bytes()[-960000 * 2 :], "<i2")
    np.testing.assert_array_equal(feed["input"][0], raw[512 - 64 : 1024] / np.float32(32768))


def test_class_folders_label_every_window_and_every_file_begins_a_recording(wav: Any, opened: Any) -> None:
    for name, count in (("no/a.wav", 4), ("no/b.wav", 2), ("yes/c.wav", 5)):
        wav(f"set/{name}", np.ones(count, "<i2").tobytes())
    samples = opened("set", {"sound": {**RATE, "window": 2}}, sound=("n", 2))
    assert samples.labels.tolist() == [0, 0, 0, 1, 1]
    assert samples.starts == {0, 2, 3}
    assert samples.take([1, 2, 4]).starts == {0, 1, 2}


def test_labels_may_lie_beside_the_sound_one_a_window(tmp_path: Path, wav: Any, opened: Any) -> None:
    wav("a.wav", np.ones(6, "<i2").tobytes())
    np.save(tmp_path / "a.npy", np.array([0, 1, 1]))
    how = {"sound": {**RATE, "window": 2}}
    samples = opened("a.wav", how, sound=("n", 2))
    assert samples.labels.tolist() == [0, 1, 1]
    before = samples.sha256
    np.save(tmp_path / "a.npy", np.array([0, 1, 0]))
    assert opened("a.wav", how, sound=("n", 2)).sha256 != before
    np.save(tmp_path / "a.npy", np.array([0, 1]))
    with pytest.raises(InputError, match="2 labels for 3 windows"):
        opened("a.wav", how, sound=("n", 2))


def test_channels_are_kept_for_a_model_that_has_them_and_else_averaged_and_told(wav: Any, opened: Any) -> None:
    wav("a.wav", np.array([[1, 0], [0.5, 0.5], [0, 1]], "<f4").tobytes(), bits=32, code=3, channels=2)
    kept = opened("a.wav", {"sound": RATE}, sound=(1, 2, "time"))
    assert next(iter(kept))["sound"].tolist() == [[[1, 0.5, 0], [0, 0.5, 1]]]
    last = opened("a.wav", {"sound": RATE}, sound=(1, "time", 2))
    assert next(iter(last))["sound"].tolist() == [[[1, 0], [0.5, 0.5], [0, 1]]]
    mixed = opened("a.wav", {"sound": RATE}, sound=(1, "time"))
    assert next(iter(mixed))["sound"].tolist() == [[0.5, 0.5, 0.5]]
    assert (kept.notes, last.notes) == ((), ())
    assert mixed.notes == ("1 of 1 files in a.wav have several channels: their mean was taken.",)


@pytest.mark.parametrize(
    ("how", "reason"),
    [({}, "is not said"), ({"rate": 8000}, "not 8,000 as optimize.toml says"), ({"rate": 16000, "window": 9}, "shorter than one window")],
)
def test_another_rate_or_too_short_a_file_is_refused(wav: Any, opened: Any, how: dict, reason: str) -> None:
    wav("a.wav", bytes(8))
    with pytest.raises(InputError, match=reason):
        opened("a.wav", {"sound": how}, sound=("n", "time"))


@pytest.mark.parametrize("size", [9, 10 * 1024**2, 0xFFFFFFFF])
def test_a_file_that_says_it_holds_more_than_it_does_is_refused(wav: Any, opened: Any, size: int) -> None:
    wav("a.wav", bytes(8), size=size)
    with pytest.raises(InputError, match="there are 8"):
        opened("a.wav", {"sound": RATE}, sound=("n", "time"))


@pytest.mark.parametrize(("bits", "code"), [(16, 2), (16, 3), (12, 1), (4, 17)])
def test_kinds_of_sound_that_are_not_read_are_refused(wav: Any, opened: Any, bits: int, code: int) -> None:
    wav("a.wav", bytes(8), bits=bits, code=code)
    with pytest.raises(InputError, match="of a kind that is not read"):
        opened("a.wav", {"sound": RATE}, sound=("n", "time"))


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVEdata\4\0\0\0abcd", b"ID3" + bytes(90)])
def test_files_that_are_no_sound_are_refused(tmp_path: Path, opened: Any, content: bytes) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.wav"):
        opened("a.wav", {"sound": RATE}, sound=("n", "time"))


def test_one_array_for_two_inputs_is_refused_with_the_way_out(wav: Any, opened: Any) -> None:
    wav("a.wav", bytes(8))
    with pytest.raises(InputError, match=r"the model wants sound, rate.*value = NUMBER"):
        opened("a.wav", {"sound": RATE}, sound=("n", "time"), rate=("int64", ()))
