"""OUT is whole or not there, whatever happens while it is written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from optimizer.errors import InputError
from optimizer.package import Workspace, workspace

OURS = '{"schema": "optimize.report/1"}'


def write(folder: Path, text: str = OURS) -> None:
    (folder / "report.json").write_text(text)
    (folder / "engine.onnx").write_bytes(b"weights")


def build(output: Path, text: str = OURS) -> None:
    with Workspace(output) as space:
        write(space.folder, text)
        space.commit()


def during(output: Path, act: Callable[[Path], None], reads: Sequence[Path] = ()) -> None:
    """A build in which `act` happens, before it is committed."""
    with Workspace(output, reads) as space:
        write(space.folder)
        act(space.folder)
        space.commit()


def raising(error: BaseException) -> Callable[[Path], None]:
    def act(_folder: Path) -> None:
        raise error

    return act


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_that_is_whole_takes_its_place_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    build(tmp_path / "out")
    assert left(tmp_path) == ["out"]
    assert left(tmp_path / "out") == ["engine.onnx", "report.json"]


def test_nothing_is_seen_of_it_before_it_is_whole(tmp_path: Path) -> None:
    with Workspace(tmp_path / "out") as space:
        write(space.folder)
        assert not (tmp_path / "out").exists()
        space.commit()
        assert (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1), InputError("a", "b")])
def test_an_error_leaves_nothing_and_passes_through(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        during(tmp_path / "deep" / "er" / "out", raising(error))
    assert left(tmp_path) == []


def test_what_was_not_committed_is_removed_and_the_old_engine_stays(tmp_path: Path) -> None:
    build(tmp_path / "out")
    with Workspace(tmp_path / "out") as space:
        write(space.folder, '{"schema": "optimize.report/1", "new": 1}')
    assert left(tmp_path) == ["out"]
    assert (tmp_path / "out" / "report.json").read_text() == OURS


@pytest.mark.parametrize("exchange", [True, False], ids=["renameat2", "two renames"])
def test_a_second_build_replaces_the_first_as_a_whole(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(workspace, "_renameat2", lambda *_: False)
    build(tmp_path / "out")
    (tmp_path / "out" / "timings.json").write_text("{}")
    new = '{"schema": "optimize.report/1", "new": 1}'
    build(tmp_path / "out", new)
    assert left(tmp_path) == ["out"]
    assert left(tmp_path / "out") == ["engine.onnx", "report.json"]
    assert (tmp_path / "out" / "report.json").read_text() == new


def test_a_build_killed_between_two_renames_is_recovered_by_the_next(tmp_path: Path) -> None:
    build(tmp_path / "out")
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / "out").rename(tmp_path / ".out.partial" / "previous")
    with Workspace(tmp_path / "out"):
        assert (tmp_path / "out" / "report.json").read_text() == OURS
    assert left(tmp_path) == ["out"]


def test_an_interruption_between_two_renames_brings_the_old_engine_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "out")
    rename = Path.rename

    def interrupted(path: Path, to: Path) -> Path:
        if path.name == "whole":
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(workspace, "_renameat2", lambda *_: False)
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "out", '{"schema": "optimize.report/1", "new": 1}')
    assert left(tmp_path) == ["out"]
    assert (tmp_path / "out" / "report.json").read_text() == OURS


STOPPED = """
import os, shutil, signal, sys
from pathlib import Path
from optimizer.package import Workspace

remove = shutil.rmtree


def stopped(path, ignore_errors=False):
    os.kill(os.getpid(), signal.SIGINT)
    remove(path, ignore_errors=ignore_errors)


signal.signal(signal.SIGINT, signal.default_int_handler)
shutil.rmtree = stopped
try:
    with Workspace(Path(sys.argv[1])) as space:
        (space.folder / "report.json").write_text('{"schema": "optimize.report/1"}')
        space.commit()
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_a_stop_during_the_clearing_up_waits_until_it_is_done(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", STOPPED, str(tmp_path / "out")], check=False, timeout=60)
    assert ended.returncode == 130
    assert left(tmp_path) == ["out"]


def test_scratch_is_no_part_of_what_is_written(tmp_path: Path) -> None:
    during(tmp_path / "out", lambda folder: (folder.parent / "scratch" / "big").touch())
    assert left(tmp_path) == ["out"]
    assert left(tmp_path / "out") == ["engine.onnx", "report.json"]


def test_what_a_killed_build_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".out.partial" / "handover").mkdir(parents=True)
    (tmp_path / ".out.partial" / "stale").write_text("x")
    with Workspace(tmp_path / "out") as space:
        assert left(space.folder) == []
        write(space.folder)
        space.commit()
    assert left(tmp_path) == ["out"]


def test_a_second_build_of_the_same_folder_is_refused_and_does_the_first_no_harm(tmp_path: Path) -> None:
    with Workspace(tmp_path / "out") as space:
        write(space.folder)
        with pytest.raises(InputError, match="Another build is writing out"), Workspace(tmp_path / "out"):
            pass
        space.commit()
    assert left(tmp_path) == ["out"]
    assert left(tmp_path / "out") == ["engine.onnx", "report.json"]


KILLED = """
import sys, time
from pathlib import Path
from optimizer.package import Workspace
with Workspace(Path(sys.argv[1])) as space:
    (space.folder / "report.json").write_text("{")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_build_that_is_killed_leaves_no_half_engine_and_does_not_block_the_next(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(number)
        child.wait(10)
    assert not (tmp_path / "out").exists()
    if number == signal.SIGINT:
        assert left(tmp_path) == []
    build(tmp_path / "out")
    assert left(tmp_path) == ["out"]


def foreign_file(output: Path) -> None:
    output.write_text("mine")


def foreign_folder(output: Path) -> None:
    output.mkdir()
    (output / "thesis.txt").write_text("mine")


def foreign_report(output: Path) -> None:
    output.mkdir()
    (output / "report.json").write_text('{"title": "of another tool"}')


def one_foreign_file_in_ours(output: Path) -> None:
    build(output)
    (output / "notes.txt").write_text("mine")


def one_foreign_folder_in_ours(output: Path) -> None:
    build(output)
    (output / "photos").mkdir()
    (output / "photos" / "a.jpg").write_text("mine")


@pytest.mark.parametrize("make", [foreign_file, foreign_folder, foreign_report, one_foreign_file_in_ours, one_foreign_folder_in_ours])
def test_what_is_not_ours_is_refused_and_left_as_it_is(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "out")
    before = sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(InputError, match=r"is a file|not an engine folder of ours"), Workspace(tmp_path / "out"):
        pass
    assert sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()) == before
    assert left(tmp_path) == ["out"]


def test_what_came_into_the_folder_during_the_build_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"thesis\.txt"):
        during(tmp_path / "out", lambda _: foreign_folder(tmp_path / "out"))
    assert left(tmp_path) == ["out"]
    assert left(tmp_path / "out") == ["thesis.txt"]


def test_an_empty_folder_and_one_folder_a_target_are_ours_to_replace(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    build(tmp_path / "out")
    build(tmp_path / "out" / "l4")
    build(tmp_path / "out")
    assert left(tmp_path / "out") == ["engine.onnx", "report.json"]


def test_an_output_that_would_replace_the_model_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "out")
    with (
        pytest.raises(InputError, match=r"would replace engine\.onnx"),
        Workspace(tmp_path / "out", reads=[tmp_path / "out" / "engine.onnx"]),
    ):
        pass
    (tmp_path / "saved_model").mkdir()
    with (
        pytest.raises(InputError, match="would replace saved_model"),
        Workspace(tmp_path / "saved_model" / "x", reads=[tmp_path / "saved_model"]),
    ):
        pass


def test_a_folder_that_may_not_be_written_is_an_input_error() -> None:
    with pytest.raises(InputError, match="can't be written"), Workspace(Path("/sys/kernel/out")):
        pass


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_an_error_of_the_disk_is_told_in_the_users_words(tmp_path: Path, code: int) -> None:
    with pytest.raises(InputError, match=r"full|used up|can't be written"):
        during(tmp_path / "out", raising(OSError(code, os.strerror(code))))
    assert left(tmp_path) == []


def test_an_error_that_has_nothing_to_do_with_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), Workspace(tmp_path / "out"):
        (tmp_path / "nowhere").read_bytes()


def fill(folder: Path) -> None:
    """Write until nothing goes any more, and fail as a library does that writes in C++."""
    try:
        with (folder / "engine").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError as error:
        raise RuntimeError("protobuf failed to serialize") from error


def test_a_full_disk_is_recognised_also_in_the_error_of_a_library(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        with pytest.raises(InputError, match="full"):
            during(small / "out", fill)
        assert left(small) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_link_to_a_folder_is_followed_so_that_the_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    build(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert left(tmp_path / "disk") == ["engine.onnx", "report.json"]


def test_builds_that_race_for_one_folder_leave_one_whole_engine(tmp_path: Path) -> None:
    script = KILLED.replace("time.sleep(60)", "(space.folder / 'report.json').write_text(sys.argv[2]); space.commit()")
    children = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out"), OURS], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(3)
    ]
    deadline = time.monotonic() + 30
    codes = [child.wait(max(1, deadline - time.monotonic())) for child in children]
    assert 0 in codes
    assert left(tmp_path) == ["out"]
    assert (tmp_path / "out" / "report.json").read_text() == OURS


def killed(output: Path) -> Path:
    """What a build leaves that was killed while it wrote; its kept folder."""
    partial = output.with_name(f".{output.name}.partial")
    for name in ("whole", "scratch", "kept"):
        (partial / name).mkdir(parents=True)
        (partial / name / "timings.jsonl").write_text(name)
    return partial / "kept"


def test_what_is_kept_goes_with_the_build_that_kept_it(tmp_path: Path) -> None:
    during(tmp_path / "out", lambda folder: (folder.parent / "kept" / "timings.jsonl").touch())
    assert left(tmp_path) == ["out"]
    assert left(tmp_path / "out") == ["engine.onnx", "report.json"]


@pytest.mark.parametrize(("resume", "there"), [(True, ["timings.jsonl"]), (False, [])])
def test_what_a_killed_build_kept_is_there_for_the_next_only_with_resume(tmp_path: Path, resume: bool, there: list[str]) -> None:
    kept = killed(tmp_path / "out")
    with Workspace(tmp_path / "out", resume=resume) as space:
        assert space.kept == kept
        assert left(space.kept) == there
        assert (left(space.folder), left(space.scratch)) == ([], [])
        write(space.folder)
        space.commit()
    assert left(tmp_path) == ["out"]
    assert left(tmp_path / "out") == ["engine.onnx", "report.json"]


def test_with_resume_nothing_that_was_killed_is_needed(tmp_path: Path) -> None:
    with Workspace(tmp_path / "out", resume=True) as space:
        assert left(space.kept) == []
    assert left(tmp_path) == []


@pytest.mark.parametrize("what", ["a file", "a link"])
def test_with_resume_a_kept_folder_that_is_none_is_cleared(tmp_path: Path, what: str) -> None:
    kept = killed(tmp_path / "out")
    elsewhere = kept.rename(tmp_path / "elsewhere")
    if what == "a file":
        kept.write_text("x")
    else:
        kept.symlink_to(elsewhere)
    with Workspace(tmp_path / "out", resume=True) as space:
        assert left(space.kept) == []
        assert not space.kept.is_symlink()
    assert left(elsewhere) == ["timings.jsonl"]


def test_with_resume_a_build_killed_between_two_renames_is_recovered_too(tmp_path: Path) -> None:
    build(tmp_path / "out")
    kept = killed(tmp_path / "out")
    (tmp_path / "out").rename(kept.parent / "previous")
    with Workspace(tmp_path / "out", resume=True) as space:
        assert (tmp_path / "out" / "report.json").read_text() == OURS
        assert left(space.kept) == ["timings.jsonl"]
