"""What benchmarks/fuzz.py found in data, configurations and plans: each is refused in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest
from numpy.lib import format as npy

from optimizer.data import open_samples
from optimizer.errors import InputError
from optimizer.model import TensorSpec
from optimizer.package.workspace import is_ours
from optimizer.planner.given import plan_from_file
from optimizer.preprocessing import Preprocessing
from optimizer.report.history import judged_before
from optimizer.request import request_from_words

DEEP = "[" * 20_000 + "]" * 20_000


def read(words: str, folder: Path) -> None:
    for _ in open_samples(words, (TensorSpec("x", "float32", (None, 3)),), Preprocessing(), folder):
        pass


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), ",
        "{'descr': '<f4', 'fortran_order': False, 'shape': ((((((",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976, 0), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1099511627776, 1099511627776), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 5_000,
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path: Path, header: str) -> None:
    (tmp_path / "data").mkdir()
    text = header.encode() + b"\n"
    (tmp_path / "data" / "a.npy").write_bytes(npy.magic(1, 0) + len(text).to_bytes(2, "little") + text + bytes(64))
    with pytest.raises(InputError):
        read("data", tmp_path)


def test_a_configuration_nested_thousands_deep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "optimize.toml").write_text(f"target = {DEEP}\n")
    with pytest.raises(InputError, match="can't be read"):
        request_from_words("m.onnx", "out", config=tmp_path / "optimize.toml")


@pytest.mark.parametrize("content", [b'{"backend": "\xa2\xff"}', DEEP.encode(), b"", b"{}", b"\x00" * 100])
def test_a_plan_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(InputError, match=r"plan\.json"):
        plan_from_file(tmp_path / "plan.json")


@pytest.mark.parametrize("content", [b'{"schema": "\xa2\xff"}', DEEP.encode(), b""])
def test_a_report_that_is_none_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "report.json").write_bytes(content)
    assert judged_before(tmp_path, "model", "data") == 0
    assert not is_ours(tmp_path / "report.json")
