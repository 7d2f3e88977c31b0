"""Images come in as torchvision would give them: resized with antialias, cropped at the centre, and what was converted is told."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from optimizer.errors import InputError
from optimizer.images import sized
from optimizer.preprocessing import InputPreprocessing, Preprocessing
from optimizer.provenance import from_json, to_json

RGB = (1, 3, 8, 8)
TO_8 = {"image": {"resize": (10,), "crop": (8, 8)}}


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def by_hand(image: Image.Image) -> np.ndarray:
    """torchvision's Resize(10), CenterCrop(8) in its own arithmetic, by Pillow alone."""
    width, height = image.size
    size = (10, int(10 * height / width)) if width <= height else (int(10 * width / height), 10)
    small = image.resize(size, Image.Resampling.BILINEAR)
    top, left = int(round((size[1] - 8) / 2.0)), int(round((size[0] - 8) / 2.0))  # noqa: RUF046 - as it stands there
    return np.asarray(small.crop((left, top, left + 8, top + 8)))


@pytest.mark.parametrize(("height", "width"), [(30, 47), (61, 33), (9, 9), (10, 10), (200, 23)])
def test_resize_and_crop_are_torchvision_s(tmp_path: Path, opened: Any, height: int, width: int) -> None:
    (tmp_path / "set").mkdir()
    picture(height, width).save(tmp_path / "set" / "a.png")
    (feed,) = opened("set", TO_8, image=RGB)
    np.testing.assert_array_equal(feed["image"][0], by_hand(picture(height, width)).transpose(2, 0, 1))


def test_images_of_several_sizes_make_one_batch(tmp_path: Path, opened: Any) -> None:
    for place, (kind, size) in enumerate([("cat", (20, 30)), ("cat", (40, 20)), ("dog", (16, 16)), ("dog", (90, 11))]):
        (tmp_path / "set" / kind).mkdir(parents=True, exist_ok=True)
        picture(*size, seed=place).save(tmp_path / "set" / kind / f"{place}.png")
    samples = opened("set", TO_8, image=(2, 3, 8, 8))
    assert samples.labels.tolist() == [[0, 0], [1, 1]]
    feeds = list(samples)
    np.testing.assert_array_equal(feeds[1]["image"][1], by_hand(picture(90, 11, seed=3)).transpose(2, 0, 1))
    assert len(set(samples.fingerprints())) == 2


def test_run_raw_resizes_batches_of_image_arrays_as_the_data_set_s_files_are() -> None:
    how = from_json(to_json(Preprocessing({"image": InputPreprocessing(resize=(10,), crop=(8, 8), scale=1 / 255)})), Preprocessing, "")
    from optimizer.model import TensorSpec

    raw = np.stack([np.asarray(picture(30, 47, seed)) for seed in (1, 2)])
    prepared = how.apply({"image": raw}, (TensorSpec("image", "float32", ("n", 3, 8, 8)),))["image"]
    np.testing.assert_allclose(prepared[1], by_hand(picture(30, 47, 2)).transpose(2, 0, 1).astype(np.float32) / 255, rtol=1e-6)


def test_numbers_other_than_bytes_are_resized_in_float() -> None:
    ramp = np.arange(16, dtype=np.float64).reshape(1, 1, 4, 4) / 7
    found = sized(ramp, "NCHW", (2, 2), ())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.mean(), ramp.mean(), rtol=1e-6)


def test_only_the_chosen_images_are_decoded(tmp_path: Path, opened: Any) -> None:
    (tmp_path / "set").mkdir()
    for place in range(5):
        picture(12, 12, seed=place).save(tmp_path / "set" / f"{place}.png")
    broken = (tmp_path / "set" / "2.png").read_bytes()
    (tmp_path / "set" / "2.png").write_bytes(broken[:200])
    samples = opened("set", TO_8, image=RGB)
    assert len(list(samples.take([1, 4]))) == 2
    with pytest.raises(InputError, match=r"2\.png is not a readable image"):
        list(samples)


def test_what_was_converted_is_told_with_counts(tmp_path: Path, opened: Any) -> None:
    (tmp_path / "set").mkdir()
    picture(12, 12).save(tmp_path / "set" / "colour.png")
    picture(12, 12).convert("L").save(tmp_path / "set" / "gray.png")
    picture(12, 12).convert("RGBA").save(tmp_path / "set" / "clear.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(12, 20).save(tmp_path / "set" / "turned.jpg", exif=turned)
    samples = opened("set", TO_8, image=RGB)
    converted, orientation = samples.notes
    assert "2 are not RGB as the model takes them (1 L, 1 RGBA)" in converted
    assert "1 images in set ask viewers to turn them" in orientation
    assert len(list(samples)) == 4


def test_a_model_of_one_channel_gets_gray_with_or_without_the_axis(tmp_path: Path, opened: Any) -> None:
    (tmp_path / "set").mkdir()
    picture(8, 8).convert("L").save(tmp_path / "set" / "a.png")
    gray = np.asarray(picture(8, 8).convert("L"))
    for shape, how in (((1, 1, 8, 8), {"layout": "NHWC"}), ((1, 8, 8, 1), {}), ((1, 8, 8), {})):
        samples = opened("set", {"image": how}, image=shape)
        np.testing.assert_array_equal(next(iter(samples))["image"].squeeze(), gray)
        assert samples.notes == ()


def test_images_of_another_size_than_the_model_s_are_refused_with_the_words_to_write(tmp_path: Path, opened: Any) -> None:
    (tmp_path / "set").mkdir()
    picture(30, 47).save(tmp_path / "set" / "a.png")
    with pytest.raises(InputError, match=r"resize = 256, crop = 224") as refused:
        opened("set", {"image": {"layout": "NHWC"}}, image=(1, 3, 8, 8))
    assert "does not fit" in refused.value.reason
    with pytest.raises(InputError, match="smaller than the crop of 99x99"):
        opened("set", {"image": {"crop": (99, 99)}}, image=(1, 3, 99, 99))


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 60,000 by 60,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content", [b"", b"not an image", bomb(), b"\xff\xd8\xff\xe0 cut", b"\x89PNG\r\n\x1a\n" + bytes(40), b"BM" + bytes(60)]
)
def test_files_that_are_no_images_are_refused(tmp_path: Path, opened: Any, content: bytes) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png is not a readable image"):
        opened("set", TO_8, image=RGB)


def test_images_of_more_than_8_bits_are_refused_because_pillow_would_clip_them(tmp_path: Path, opened: Any) -> None:
    (tmp_path / "set").mkdir()
    Image.fromarray(np.full((12, 12), 40000, np.uint16)).save(tmp_path / "set" / "deep.png")
    with pytest.raises(InputError, match="more than 8 bits a channel"):
        opened("set", TO_8, image=RGB)


def test_class_folders_beside_loose_images_are_refused(tmp_path: Path, opened: Any) -> None:
    (tmp_path / "set" / "cat").mkdir(parents=True)
    picture(12, 12).save(tmp_path / "set" / "cat" / "a.png")
    picture(12, 12).save(tmp_path / "set" / "b.png")
    with pytest.raises(InputError, match=r"b\.png beside the class folder cat"):
        opened("set", TO_8, image=RGB)
