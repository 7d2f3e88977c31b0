"""DATA words become samples: one at a time, hashed, under the model's names, and refused with a reason where they don't fit."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from optimizer.data import open_samples, random_samples
from optimizer.errors import InputError
from optimizer.model import TensorSpec
from optimizer.preprocessing import InputPreprocessing, Preprocessing

IMAGE = (TensorSpec("image", "float32", (1, 3, 4, 5)),)
NHWC = Preprocessing({"image": InputPreprocessing(layout="NHWC", scale=1 / 255, mean=(0.5,), std=(0.25,))})
PLAIN = Preprocessing()


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 4, 5, 3), np.uint8)


def test_an_npz_gives_prepared_samples_and_labels_in_order(tmp_path: Path) -> None:
    x, y = images(7), np.arange(7)
    np.savez_compressed(tmp_path / "d.npz", x=x, y=y)
    samples = open_samples("d.npz", IMAGE, NHWC, tmp_path)
    feeds = list(samples)
    assert len(samples) == len(feeds) == 7
    assert samples.labels.tolist() == list(range(7))
    expected = ((x[3].astype(np.float32) / 255 - 0.5) / 0.25).transpose(2, 0, 1)[None]
    assert feeds[3]["image"].shape == (1, 3, 4, 5)
    assert feeds[3]["image"].dtype == np.float32
    np.testing.assert_allclose(feeds[3]["image"], expected, rtol=1e-5, atol=1e-6)


def test_a_selection_reads_the_same_samples_and_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=images(9), y=np.arange(9) * 10)
    whole = open_samples("d.npz", IMAGE, NHWC, tmp_path)
    some = whole.take([5, 1]).take([1])
    assert some.labels.tolist() == [50]
    np.testing.assert_array_equal(next(iter(some))["image"], list(whole)[5]["image"])


def test_equal_samples_have_equal_fingerprints_whatever_file_they_lie_in(tmp_path: Path) -> None:
    x = images(4)
    np.savez(tmp_path / "a.npz", x=x)
    np.savez_compressed(tmp_path / "b.npz", image=x[::-1])
    one, other = (open_samples(name, IMAGE, NHWC, tmp_path) for name in ("a.npz", "b.npz"))
    assert one.fingerprints() == other.fingerprints()[::-1]
    assert len(set(one.fingerprints())) == 4
    assert one.sha256 != other.sha256


def test_a_model_with_a_fixed_batch_is_fed_whole_batches(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.arange(22, dtype=np.float32).reshape(11, 2), y=np.arange(11))
    samples = open_samples("d.npz", (TensorSpec("in", "float32", (4, 2)),), PLAIN, tmp_path)
    feeds = list(samples)
    assert [feed["in"].shape for feed in feeds] == [(4, 2), (4, 2)]
    assert samples.labels.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    np.testing.assert_array_equal(feeds[1]["in"].ravel(), np.arange(8, 16))


def test_several_inputs_come_by_name_and_a_row_may_be_a_whole_feed(tmp_path: Path) -> None:
    state = np.random.default_rng(0).standard_normal((3, 2, 1, 8)).astype(np.float32)
    np.savez(tmp_path / "d.npz", sound=np.ones((3, 16), np.float32), state=state, rate=np.full(3, 16000))
    inputs = (TensorSpec("sound", "float32", ("n", 16)), TensorSpec("state", "float32", (2, "n", 8)), TensorSpec("rate", "int64", ()))
    feed = list(open_samples("d.npz", inputs, PLAIN, tmp_path))[1]
    assert feed["sound"].shape == (1, 16)
    np.testing.assert_array_equal(feed["state"], state[1])
    assert feed["rate"].shape == ()
    assert int(feed["rate"]) == 16000


def test_files_of_a_folder_may_differ_in_shape(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    np.save(folder / "a.npy", np.ones((1, 5), np.float32))
    np.save(folder / "b.npy", np.ones((2, 9), np.float32))
    samples = open_samples("set", (TensorSpec("in", "float32", ("n", "time")),), PLAIN, tmp_path)
    assert [feed["in"].shape for feed in samples] == [(1, 5), (1, 9), (1, 9)]
    assert len(samples) == 3


def test_a_file_may_be_one_sample_without_a_sample_axis(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for place, size in enumerate((5, 9)):
        np.savez(folder / f"{place}.npz", sound=np.full((1, size), place), rate=np.array([8000]), y=place + 3)
    inputs = (TensorSpec("sound", "float32", ("n", 1, "time")), TensorSpec("rate", "float32", ("n", 1)))
    samples = open_samples("set", inputs, PLAIN, tmp_path)
    assert [feed["sound"].shape for feed in samples] == [(1, 1, 5), (1, 1, 9)]
    assert samples.labels.tolist() == [3, 4]
    (folder / "0.npz").unlink()
    (folder / "1.npz").unlink()
    np.save(folder / "a.npy", np.ones((3, 4), np.float32))
    np.save(folder / "b.npy", np.ones((5, 4), np.float32))
    samples = open_samples("set", (TensorSpec("in", "float32", ("n", "time", 4)),), PLAIN, tmp_path)
    assert [feed["in"].shape for feed in samples] == [(1, 3, 4), (1, 5, 4)]
    assert samples.starts == {0, 1}


def test_files_with_and_without_labels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    np.savez(tmp_path / "set" / "a.npz", x=np.ones((2, 4)), y=np.ones(2))
    np.savez(tmp_path / "set" / "b.npz", x=np.ones((2, 4)))
    with pytest.raises(InputError, match="Some files in set have labels and some have none"):
        open_samples("set", (TensorSpec("in", "float32", ("n", 4)),), PLAIN, tmp_path)


def test_a_state_and_a_constant_need_no_data_and_take_the_batch_of_the_others(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.arange(12, dtype=np.float32).reshape(6, 2))
    how = Preprocessing({"h": InputPreprocessing(state="hN"), "rate": InputPreprocessing(value=8)})
    inputs = (TensorSpec("in", "float32", (3, 2)), TensorSpec("h", "float32", (2, 3, 5)), TensorSpec("rate", "int64", ("n",)))
    first, second = open_samples("d.npz", inputs, how, tmp_path)
    assert second["in"].ravel().tolist() == [6, 7, 8, 9, 10, 11]
    assert (first["h"].shape, first["h"].any(), first["rate"].tolist()) == ((2, 3, 5), False, [8])
    free = (TensorSpec("in", "float32", ("n", 2)), TensorSpec("h", "float32", (2, "n", 5)), TensorSpec("rate", "int64", ()))
    fed = how.apply({"in": np.ones((4, 2), np.float32)}, free)
    assert (fed["h"].shape, fed["rate"].shape) == ((2, 4, 5), ())


def test_images_in_class_folders_are_labelled_by_their_folder(tmp_path: Path) -> None:
    from PIL import Image

    for name, value in (("cat", 10), ("dog", 200)):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (5, 4), (value, 0, 0)).save(tmp_path / "set" / name / "one.png")
    samples = open_samples("set", IMAGE, NHWC, tmp_path)
    assert samples.labels.tolist() == [0, 1]
    np.testing.assert_allclose([feed["image"][0, 0, 0, 0] for feed in samples], [(10 / 255 - 0.5) * 4, (200 / 255 - 0.5) * 4], rtol=1e-5)


def test_a_function_of_the_users_yields_samples_lazily(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def data():\n"
        "    for k in range(3):\n"
        "        yield {'in': np.full((2, 2), k, 'float32'), 'y': np.array([k, k])}\n"
    )
    samples = open_samples("mine.py:data", (TensorSpec("in", "float32", ("n", 2)),), PLAIN, tmp_path)
    assert samples.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [feed["in"][0, 0] for feed in samples] == [0, 0, 1, 1, 2, 2]


def test_a_function_that_gives_other_data_each_time_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os, numpy as np\ndef data():\n    yield {'in': np.frombuffer(os.urandom(8), 'uint8')[None]}\n"
    )
    samples = open_samples("mine.py:data", (TensorSpec("in", "uint8", ("n", 8)),), PLAIN, tmp_path)
    with pytest.raises(InputError, match="other data at a second run"):
        list(samples)


def test_preprocessing_by_a_function_runs_in_the_users_folder(tmp_path: Path) -> None:
    (tmp_path / "prep.py").write_text("def prepare(batch):\n    return batch.astype('float32') * 2\n")
    np.savez(tmp_path / "d.npz", x=np.arange(6).reshape(3, 2))
    how = Preprocessing({"in": InputPreprocessing(function="prep.py:prepare")})
    samples = open_samples("d.npz", (TensorSpec("in", "float32", ("n", 2)),), how, tmp_path)
    assert [feed["in"].tolist() for feed in samples] == [[[0, 2]], [[4, 6]], [[8, 10]]]


def test_channels_that_stand_last_are_pointed_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=images(2))
    with pytest.raises(InputError, match='set layout = "NHWC"'):
        open_samples("d.npz", IMAGE, PLAIN, tmp_path)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": np.ones((2, 3), np.float32), "y": np.ones(3)}, "different lengths"),
        ({"a": np.ones((2, 2), np.float32), "b": np.ones((2, 2), np.float32)}, "no array for the input 'in'"),
        ({"x": np.array(["a", "b"])[:, None].repeat(2, 1)}, "not numbers"),
        ({"x": np.ones((2, 3), np.float32)}, "does not fit"),
        ({"x": np.ones((2, 2, 2, 2), np.float32)}, "does not fit"),
        ({"x": np.empty((0, 2), np.float32)}, "no samples"),
        ({"x": np.float32(1)}, "single number"),
        ({}, "no arrays"),
    ],
)
def test_data_that_does_not_fit_is_refused_with_the_reason(tmp_path: Path, arrays: dict, reason: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(InputError, match=reason):
        open_samples("d.npz", (TensorSpec("in", "float32", ("n", 2)),), PLAIN, tmp_path)


def test_numbers_beyond_the_inputs_type_are_refused_and_not_turned_into_infinities(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.full((2, 3, 4, 5), 1e300))
    with pytest.raises(InputError, match="beyond float32"):
        open_samples("d.npz", IMAGE, PLAIN, tmp_path)


@pytest.mark.parametrize("labels", [np.array(["cat"] * 7), np.array([0, 1, np.nan, 0, 0, 0, 0]), np.zeros(7, complex)])
def test_labels_that_are_no_numbers_are_refused(tmp_path: Path, labels: np.ndarray) -> None:
    np.savez(tmp_path / "d.npz", x=images(7), y=labels)
    with pytest.raises(InputError, match=r"labels in d\.npz are not all numbers"):
        open_samples("d.npz", IMAGE, NHWC, tmp_path)


@pytest.mark.parametrize("shape", ["(-1, 4, 5, 3)", "(7, -4, -5, 3)", "(99, 4, 5, 3)"])
def test_a_header_that_lies_is_refused(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + images(7).tobytes()
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", array)
    with pytest.raises(InputError, match=r"d\.npz is"):
        list(open_samples("d.npz", IMAGE, NHWC, tmp_path))


def test_compressed_data_that_was_damaged_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=images(400))
    content = bytearray((tmp_path / "d.npz").read_bytes())
    content[500:900] = bytes(400)
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"d\.npz is damaged"):
        list(open_samples("d.npz", IMAGE, NHWC, tmp_path))


def test_a_pipe_is_no_data_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(InputError, match="not a kind of data"):
        open_samples("pipe.npz", IMAGE, NHWC, tmp_path)


def test_numbers_that_an_integer_input_can_not_hold_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.array([[1.5]]))
    with pytest.raises(InputError, match="int64 can't hold"):
        open_samples("d.npz", (TensorSpec("in", "int64", ("n", 1)),), PLAIN, tmp_path)


def test_pickled_objects_are_never_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.array([{"a": 1}, None], dtype=object))
    with pytest.raises(InputError, match="Python objects"):
        open_samples("d.npz", (TensorSpec("in", "float32", ("n", 2)),), PLAIN, tmp_path)


def test_a_truncated_archive_and_one_that_lies_about_its_length_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", x=np.ones((50, 2), np.float32))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:200])
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1000, 2)})
    with zipfile.ZipFile(tmp_path / "lies.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(16))
    spec = (TensorSpec("in", "float32", ("n", 2)),)
    with pytest.raises(InputError, match="not a readable"):
        open_samples("cut.npz", spec, PLAIN, tmp_path)
    with pytest.raises(InputError, match="damaged"):
        list(open_samples("lies.npz", spec, PLAIN, tmp_path))


def test_a_tensorrt_calibration_cache_is_recognised_and_explained(tmp_path: Path) -> None:
    (tmp_path / "model.cache").write_text("TRT-100300-EntropyCalibration2\ninput: 3c010a14\n")
    with pytest.raises(InputError, match="TensorRT calibration cache"):
        open_samples("model.cache", IMAGE, PLAIN, tmp_path)


@pytest.mark.parametrize("words", ["nowhere.npz", "nowhere", "empty"])
def test_what_is_not_there_is_refused(tmp_path: Path, words: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        open_samples(words, IMAGE, PLAIN, tmp_path)


def test_preprocessing_for_an_input_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=images(1))
    with pytest.raises(InputError, match="does not have"):
        open_samples("d.npz", (TensorSpec("other", "float32", (1, 3, 4, 5)),), NHWC, tmp_path)


def test_random_samples_are_the_same_for_the_same_seed() -> None:
    spec = (TensorSpec("a", "float32", ("n", 3)), TensorSpec("b", "int64", (1,)))
    one, other = (random_samples(spec, 3, seed=5) for _ in range(2))
    assert all(np.array_equal(x[name], y[name]) for x, y in zip(one, other, strict=True) for name in x)
    assert one[0]["a"].shape == (1, 3)
    assert not np.array_equal(one[0]["a"], random_samples(spec, 1, seed=6)[0]["a"])
