"""The seal names what is missing, changed or too many, and nothing else is trusted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer.errors import InputError, VerificationError
from optimizer.package.passport import Passport, seal, verify

Sealed = Callable[..., Path]


def test_a_folder_as_built_is_accepted_and_its_passport_comes_back_whole(sealed: Sealed, passport: Passport) -> None:
    found = verify(sealed())
    assert sorted(found.files) == ["engine.onnx", "handover/build.sh", "plan.json", "report.json"]
    assert found.plan == found.files["plan.json"]
    assert (found.inputs, found.preprocessing, found.knobs) == (passport.inputs, passport.preprocessing, passport.knobs)


def test_one_flipped_bit_in_any_sealed_file_is_named(sealed: Sealed) -> None:
    folder = sealed()
    for name in ("engine.onnx", "handover/build.sh", "plan.json", "report.json"):
        whole = (folder / name).read_bytes()
        broken = bytearray(whole)
        broken[len(broken) // 2] ^= 1
        (folder / name).write_bytes(broken)
        with pytest.raises(VerificationError, match=name) as error:
            verify(folder)
        assert error.value.exit_code == 6
        (folder / name).write_bytes(whole)
    verify(folder)


def test_a_missing_file_and_one_too_many_are_named(sealed: Sealed) -> None:
    folder = sealed()
    (folder / "handover" / "more.bin").write_bytes(b"x")
    with pytest.raises(VerificationError, match=r"handover/more\.bin"):
        verify(folder)
    (folder / "handover" / "more.bin").unlink()
    (folder / "plan.json").unlink()
    with pytest.raises(VerificationError, match=r"plan\.json is missing"):
        verify(folder)


def test_attestations_may_come_later(sealed: Sealed) -> None:
    folder = sealed()
    (folder / "attestations").mkdir()
    (folder / "attestations" / "1.json").write_text("{}")
    verify(folder)


@pytest.mark.parametrize("where", ["inside", "folder"])
def test_links_are_refused_since_what_they_point_to_can_change(sealed: Sealed, tmp_path: Path, where: str) -> None:
    folder = sealed()
    if where == "inside":
        (tmp_path / "elsewhere").write_bytes((folder / "engine.onnx").read_bytes())
        (folder / "engine.onnx").unlink()
        (folder / "engine.onnx").symlink_to(tmp_path / "elsewhere")
    else:
        (folder / "handover").rename(tmp_path / "handover")
        (folder / "handover").symlink_to(tmp_path / "handover")
    with pytest.raises(VerificationError, match="link"):
        verify(folder)


def test_a_passport_that_points_out_of_its_folder_is_refused(sealed: Sealed, tmp_path: Path) -> None:
    folder = sealed()
    content = json.loads((folder / "passport.json").read_text())
    (tmp_path / "evil.onnx").write_bytes(b"evil")
    (folder / "passport.json").write_text(json.dumps(content | {"engine": "../evil.onnx"}))
    with pytest.raises(VerificationError, match="evil"):
        verify(folder)
    content["files"]["../evil.onnx"] = "0" * 64
    (folder / "passport.json").write_text(json.dumps(content))
    with pytest.raises(VerificationError, match="missing"):
        verify(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "optimize.passport/1"}', "\x00\xff", '{"schema": 5}'])
def test_a_broken_passport_fails_verification(sealed: Sealed, text: str) -> None:
    folder = sealed()
    (folder / "passport.json").write_text(text)
    with pytest.raises(VerificationError):
        verify(folder)


def test_a_passport_of_another_version_is_refused_in_words(sealed: Sealed) -> None:
    folder = sealed()
    content = json.loads((folder / "passport.json").read_text())
    (folder / "passport.json").write_text(json.dumps(content | {"schema": "optimize.passport/99"}))
    with pytest.raises(VerificationError, match="another version"):
        verify(folder)


def test_a_folder_that_is_not_there_is_wrong_input_and_one_without_engine_fails_verification(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        verify(tmp_path / "nowhere")
    (tmp_path / "failed").mkdir()
    with pytest.raises(VerificationError, match=r"no passport\.json"):
        verify(tmp_path / "failed")
    (tmp_path / "failed" / "report.json").write_text("{}")
    with pytest.raises(VerificationError, match="a report and no engine"):
        verify(tmp_path / "failed")


def test_the_same_folder_gets_the_same_passport(sealed: Sealed) -> None:
    assert (sealed("one") / "passport.json").read_bytes() == (sealed("two") / "passport.json").read_bytes()


def test_an_engine_that_is_not_there_is_not_sealed(tmp_path: Path, passport: Passport) -> None:
    with pytest.raises(ValueError, match=r"engine\.onnx"):
        seal(tmp_path, passport)
