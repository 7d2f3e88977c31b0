"""Nothing is measured twice, what was recorded is recalled only where it still holds, and a broken file costs only itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from optimizer.planner.journal import Journal

KEY = {"target": "a CPU", "version of onnxruntime": "1.30.0"}


@dataclass(frozen=True)
class Found:
    distance: float | None
    words: str = ""


def never() -> object:
    raise AssertionError("measured anew")


def written(file: Path, *values: object) -> Journal:
    """A journal in `file` with one record for each value, of the kind "time", about its number."""
    journal = Journal(file, KEY)
    for number, value in enumerate(values):
        journal.once("time", number, object, lambda value=value: value)
    return journal


def recalled(tmp_path: Path, file: Path, key: dict[str, str] | None = None) -> Journal:
    """A journal of another build that knows of `file`."""
    return Journal(tmp_path / "next" / "timings.jsonl", key or KEY, (file,))


def test_nothing_is_measured_twice(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "timings.jsonl", KEY)
    calls = count(1)
    for _ in range(3):
        assert journal.once("time", {"plan": 1}, int, lambda: next(calls)) == 1
    assert next(calls) == 2


def test_what_a_record_is_about_is_its_kind_and_all_of_its_content(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "timings.jsonl", KEY)
    asked: list[tuple[str, object]] = [("time", [1, 2]), ("time", [2, 1]), ("error", [1, 2]), ("time", {"a": 1, "b": 2})]
    for number, (kind, about) in enumerate(asked):
        assert journal.once(kind, about, int, lambda number=number: number) == number
    assert journal.once("time", {"b": 2, "a": 1}, int, never) == 3  # the order in which a mapping was filled is no content


def test_another_build_with_the_same_key_recalls_and_hands_on_what_it_recalled(tmp_path: Path) -> None:
    file = tmp_path / "timings.jsonl"
    written(file, 5)
    second = recalled(tmp_path, file)
    assert second.once("time", 0, int, never) == 5
    assert (second.recalled.total(), second.unusable) == (1, {})
    third = Journal(tmp_path / "third.jsonl", KEY, (tmp_path / "next" / "timings.jsonl",))
    assert third.once("time", 0, int, never) == 5


def test_records_of_several_earlier_builds_count_and_one_in_place_is_no_hindrance(tmp_path: Path) -> None:
    old, here = tmp_path / "old.jsonl", tmp_path / "here.jsonl"
    written(old, 1)
    Journal(here, KEY).once("error", "x", int, lambda: 2)
    journal = Journal(here, KEY, (old, here, tmp_path / "absent.jsonl"))
    assert (journal.once("time", 0, int, never), journal.once("error", "x", int, never)) == (1, 2)
    assert journal.unusable == {}


def test_values_survive_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "timings.jsonl"
    values = [Found(0.1 + 0.2, "a\nb \u2028"), None, True, Found(None)]
    written(file, *values)
    journal = recalled(tmp_path, file)
    kinds = [Found, Found | None, bool, Found]
    assert [journal.once("time", number, kind, never) for number, kind in enumerate(kinds)] == values


def test_a_number_that_is_not_finite_is_none_after_a_recall(tmp_path: Path) -> None:
    file = tmp_path / "timings.jsonl"
    written(file, Found(math.inf), Found(math.nan))
    journal = recalled(tmp_path, file)
    assert [journal.once("time", number, Found, never).distance for number in range(2)] == [None, None]


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ({**KEY, "version of onnxruntime": "1.31.0"}, "it differs in version of onnxruntime"),
        ({"target": "a CPU"}, "it differs in version of onnxruntime"),
        ({**KEY, "seed": "1", "target": "another CPU"}, "it differs in seed, target"),
    ],
)
def test_a_key_that_differs_is_told_by_its_fields_and_all_is_measured_anew(tmp_path: Path, key: dict[str, str], told: str) -> None:
    file = tmp_path / "timings.jsonl"
    written(file, 5)
    journal = recalled(tmp_path, file, key)
    assert journal.unusable == {"timings.jsonl": told}
    assert journal.once("time", 0, int, lambda: 6) == 6
    assert journal.recalled.total() == 0


def test_what_is_of_no_use_is_not_handed_on(tmp_path: Path) -> None:
    file = tmp_path / "timings.jsonl"
    written(file, 5)
    recalled(tmp_path, file, {**KEY, "target": "another"})
    assert (tmp_path / "next" / "timings.jsonl").read_bytes().count(b"\n") == 1


def test_another_schema_is_told_and_not_used(tmp_path: Path) -> None:
    file = tmp_path / "timings.jsonl"
    written(file, 5)
    file.write_bytes(file.read_bytes().replace(b"optimize.timings/2", b"optimize.timings/0"))
    journal = recalled(tmp_path, file)
    assert journal.unusable == {"timings.jsonl": "it differs in its form"}
    assert journal.once("time", 0, int, lambda: 6) == 6


@pytest.mark.parametrize("content", [b"", b"\n", b"\x00" * 99, b"{", b"[]", b'{"schema": 1, "key": {}}', b"[" * 10**5])
def test_a_file_that_is_none_of_ours_is_told_and_not_used(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "timings.jsonl"
    file.write_bytes(content)
    journal = recalled(tmp_path, file)
    assert journal.unusable == {"timings.jsonl": "it can't be read"}
    assert journal.once("time", 0, int, lambda: 6) == 6


@pytest.mark.parametrize("lost", [1, 2, 9, 40])
def test_a_line_that_was_half_written_costs_only_itself(tmp_path: Path, lost: int) -> None:
    file = tmp_path / "timings.jsonl"
    written(file, 5, 6)
    file.write_bytes(file.read_bytes()[:-lost])
    journal = recalled(tmp_path, file)
    whole = lost == 1  # the line's end alone is missing
    assert journal.once("time", 0, int, never) == 5
    assert journal.once("time", 1, int, lambda: 7) == (6 if whole else 7)
    assert journal.unusable == {}
    again = Journal(tmp_path / "last.jsonl", KEY, (tmp_path / "next" / "timings.jsonl",))
    assert again.once("time", 1, int, never) == (6 if whole else 7)


@pytest.mark.parametrize("cut", range(0, 120, 13))
def test_cut_anywhere_it_is_usable_or_told(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "timings.jsonl"
    written(file, 5)
    file.write_bytes(file.read_bytes()[:cut])
    journal = recalled(tmp_path, file)
    assert journal.once("time", 0, int, lambda: 6) == 6
    assert set(journal.unusable) <= {"timings.jsonl"}


def test_each_record_is_on_disk_as_soon_as_it_is_made(tmp_path: Path) -> None:
    file = tmp_path / "timings.jsonl"
    journal = Journal(file, KEY)
    for number in range(3):
        journal.once("time", number, int, lambda number=number: number)
        assert recalled(tmp_path, file).once("time", number, int, never) == number


def test_what_could_not_be_measured_is_not_recorded(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "timings.jsonl", KEY)
    with pytest.raises(AssertionError):
        journal.once("time", 0, int, never)
    assert journal.once("time", 0, int, lambda: 4) == 4


DEEP = b"[" * 10**5


@pytest.mark.parametrize(
    "content", [b'{"schema": "\xff"}', b'{"schema": ' + DEEP, b'{"schema": "optimize.timings/2", "key": {}, "x": ' + DEEP]
)
def test_a_head_that_is_no_text_is_told_and_not_used(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "timings.jsonl"
    file.write_bytes(content)
    journal = Journal(tmp_path / "next.jsonl", KEY, (file,))
    assert journal.unusable == {"timings.jsonl": "it can't be read"}


def test_a_folder_in_its_place_is_told_and_not_used(tmp_path: Path) -> None:
    (tmp_path / "timings.jsonl").mkdir()
    journal = Journal(tmp_path / "next.jsonl", KEY, (tmp_path / "timings.jsonl",))
    assert journal.unusable == {"timings.jsonl": "it can't be read"}


@pytest.mark.parametrize(
    "line", [b'{"kind": "time\xff", "about": "x", "value": 1}', b'{"kind": "\xff', b'{"kind": "a", "about": "b", "value": ' + DEEP]
)
def test_a_line_that_is_no_text_ends_what_is_recalled(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "timings.jsonl"
    Journal(file, KEY).once("time", 0, int, lambda: 5)
    file.write_bytes(file.read_bytes() + line)
    assert Journal(tmp_path / "next.jsonl", KEY, (file,)).once("time", 0, int, lambda: 6) == 5


@pytest.mark.parametrize("value", ["x", None, [1]])
def test_a_record_of_another_form_is_measured_anew(tmp_path: Path, value: object) -> None:
    file = tmp_path / "timings.jsonl"
    written(file, value)
    assert recalled(tmp_path, file).once("time", 0, int, lambda: 6) == 6


@pytest.mark.parametrize(
    ("old", "new"), [(b'"fail"', b'"pass"'), (b'"verdict"', b'"verdicts"'), (b'"sum":"', b'"sum":"0'), (b'"sum"', b'"s"')]
)
def test_a_line_that_was_changed_is_measured_anew_and_not_handed_on(tmp_path: Path, old: bytes, new: bytes) -> None:
    file = tmp_path / "timings.jsonl"
    Journal(file, KEY).once("verdict", 0, str, lambda: "fail")
    file.write_bytes(file.read_bytes().replace(old, new))
    journal = recalled(tmp_path, file)
    assert (tmp_path / "next" / "timings.jsonl").read_bytes().count(b"\n") == 1
    assert journal.once("verdict", 0, str, lambda: "measured anew") == "measured anew"


def test_what_this_build_has_measured_is_not_told_as_recalled_from_an_earlier_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "timings.jsonl", KEY)
    for _ in range(2):
        journal.once("time", 0, int, lambda: 5)
    assert journal.recalled.total() == 0
    assert journal.found == {"time": 1}


def test_what_was_recalled_and_what_was_found_are_counted_by_kind(tmp_path: Path) -> None:
    file = tmp_path / "timings.jsonl"
    written(file, 5, 6)
    journal = recalled(tmp_path, file)
    for number in range(3):
        journal.once("time", number, int, lambda: 7)
    journal.once("verdict", 0, str, lambda: "pass")
    assert (journal.recalled["time"], journal.recalled["verdict"]) == (2, 0)
    assert journal.found == {"time": 1, "verdict": 1}
