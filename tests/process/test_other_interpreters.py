"""A worker runs under an interpreter of the user's, which is asked first whether it can."""

from __future__ import annotations

import ast
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

import optimizer
from optimizer.errors import InputError
from optimizer.process import isolated, run_worker

Write = Callable[..., Path]

TELLS = """
    import os, sys
    def main(channel):
        channel.receive()
        channel.send("told", prefix=sys.prefix, path=sys.path, variables=dict(os.environ))
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter, a link, of a virtual environment with nothing in it."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python"


def test_a_worker_runs_in_the_environment_whose_link_was_named_and_sees_nothing_of_ours(
    user: Write, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = user(worker=TELLS)
    packages = next(bare.parents[1].glob("lib/python*/site-packages"))
    (packages / "numpy").symlink_to(Path(__import__("numpy").__file__).parent)
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSAFEPATH"):
        monkeypatch.setenv(name, str(folder))
    told = next(run_worker(isolated(folder / "worker.py", python=bare), request={}, folder=folder, what="The worker"))
    assert told["prefix"] == str(bare.parents[1])
    assert not {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSAFEPATH"} & set(told["variables"])
    assert str(Path(optimizer.__file__).parent) not in told["path"]
    (packages / "numpy").unlink()


def test_our_own_interpreter_keeps_the_users_path(user: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = user(worker=TELLS)
    monkeypatch.setenv("PYTHONPATH", "/users/own")
    told = next(run_worker(isolated(folder / "worker.py"), request={}, folder=folder, what="The worker"))
    assert "/users/own" in told["path"]
    assert str(Path(optimizer.__file__).parent) not in told["path"]


def test_what_is_missing_there_is_told_before_anything_is_started(user: Write, bare: Path) -> None:
    folder = user(worker=TELLS)
    with pytest.raises(InputError, match="has no numpy") as caught:
        isolated(folder / "worker.py", python=bare)
    assert "-m pip install numpy" in caught.value.remedy


@pytest.mark.parametrize("body", ["", "#!/bin/sh\necho hello\n", "#!/bin/sh\nexit 1\n", "#!/no/such/program\n", None])
def test_what_is_no_interpreter_is_refused(user: Write, body: str | None) -> None:
    folder = user(worker=TELLS)
    program = folder / "python"
    if body is not None:
        program.write_text(body)
        program.chmod(0o755)
    with pytest.raises(InputError, match="does not run as a Python interpreter"):
        isolated(folder / "worker.py", python=program)


def test_too_old_an_interpreter_is_refused(user: Write) -> None:
    folder = user({"python": "#!/bin/sh\necho '[[3, 7], []]'\n"}, worker=TELLS)
    (folder / "python").chmod(0o755)
    with pytest.raises(InputError, match=r"is Python 3\.7, and 3\.8 is the oldest"):
        isolated(folder / "worker.py", python=folder / "python")


def test_a_package_that_the_worker_needs_is_named(user: Write) -> None:
    folder = user(worker=TELLS)
    with pytest.raises(InputError, match="has no no_such_framework"):
        isolated(folder / "worker.py", python=Path(sys.executable), needs=["no_such_framework"])


def test_what_runs_there_is_written_for_python_3_8() -> None:
    for file in (Path(optimizer.__file__).parent / "child.py", *(Path(optimizer.__file__).parent / "importers" / "workers").glob("*.py")):
        ast.parse(file.read_text(), str(file), feature_version=(3, 8))
