"""Whatever happens ends in an exit code whose name is on the last line; a user's error never in a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from optimizer.cli import main
from optimizer.errors import InputError, OptimizeError, UnavailableError, VerificationError

Run = Callable[..., Any]


def a_command_that(act: Callable[[], object]) -> click.Command:
    return click.Command("doctor", callback=act)


@pytest.fixture
def ends_in(monkeypatch: pytest.MonkeyPatch, optimize: Run) -> Callable[[Callable[[], object]], Any]:
    """How a command ends that does something."""

    def ended(act: Callable[[], object]) -> Any:
        monkeypatch.setattr(main._Commands, "get_command", lambda *_: a_command_that(act))
        return optimize("doctor")

    return ended


def raising(error: BaseException) -> Callable[[], object]:
    def act() -> object:
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "code", "name"),
    [
        (InputError("The reason.", "The remedy."), 2, "WRONG INPUT"),
        (UnavailableError("The reason.", "The remedy."), 5, "NOT AVAILABLE"),
        (VerificationError("The reason.", "The remedy."), 6, "VERIFICATION FAILED"),
    ],
)
def test_a_users_error_is_one_line_of_reason_and_remedy(ends_in: Callable[..., Any], error: OptimizeError, code: int, name: str) -> None:
    ended = ends_in(raising(error))
    assert (ended.code, ended.out) == (code, "")
    assert ended.err == f"{name} (exit {code}): The reason. The remedy.\n"


def test_an_error_of_ours_shows_where_and_asks_for_a_report(ends_in: Callable[..., Any]) -> None:
    ended = ends_in(raising(ZeroDivisionError("oh")))
    assert ended.code == 1
    assert "Traceback" in ended.err
    assert ended.last == "INTERNAL ERROR (exit 1): ZeroDivisionError: oh. Please report this with the lines above."


def test_ctrl_c_ends_in_130_without_traceback(ends_in: Callable[..., Any]) -> None:
    ended = ends_in(raising(KeyboardInterrupt()))
    assert ended.code == 130
    assert ended.last.startswith("INTERRUPTED (exit 130)")
    assert "Traceback" not in ended.err


def test_what_a_command_returns_is_the_exit_code(ends_in: Callable[..., Any]) -> None:
    assert ends_in(lambda: 3).code == 3
    assert ends_in(lambda: None).code == 0


def test_names_in_an_error_do_not_steer_the_terminal(ends_in: Callable[..., Any]) -> None:
    ended = ends_in(raising(InputError("Layer \x1b[2J[red]x[/red]\nPASS (exit 0): is bad.", "Rename it.")))
    assert ended.err == "WRONG INPUT (exit 2): Layer \\x1b[2J[red]x[/red] PASS (exit 0): is bad. Rename it.\n"


@pytest.mark.parametrize(
    "words",
    [
        ["build"],
        ["build", "m.onnx", "-o", "out", "--precision", "int3"],
        ["verify"],
        ["bench"],
        ["build", "m.onnx", "-o", "x", "--nonsense"],
    ],
)
def test_wrong_usage_ends_in_2_with_the_usage(optimize: Run, words: list[str]) -> None:
    ended = optimize(*words)
    assert ended.code == 2
    assert ended.err.startswith("Usage: optimize")
    assert ended.last.startswith("WRONG INPUT (exit 2): ")


def test_a_misspelt_command_is_not_taken_for_a_model(optimize: Run) -> None:
    ended = optimize("verfy", "engine")
    assert ended.code == 2
    assert ended.last.endswith("Did you mean verify?")


def test_every_command_has_help_and_a_line_in_the_list(optimize: Run) -> None:
    listed = optimize("--help")
    assert listed.code == 0
    for name in ("build", "inspect", "verify", "qualify", "bench", "doctor"):
        assert f"\n  {name} " in listed.out
        assert optimize(name, "--help").out.startswith(f"Usage: optimize {name}")


def test_the_version_is_that_of_the_package(optimize: Run) -> None:
    assert optimize("--version").out == "optimize 0.1.0\n"


INTERRUPTED = """
import sys, time, click
from pathlib import Path
from optimizer.cli import main
from optimizer.package import Workspace

output = Path(sys.argv.pop())

def act():
    with Workspace(output) as space:
        (space.folder / "report.json").write_text("{")
        print("writing", flush=True)
        time.sleep(60)

main._Commands.get_command = lambda *_: click.Command("doctor", callback=act)
sys.argv.append("doctor")
main.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "writing\n"
        child.send_signal(number)
        said = child.stderr.read()
        assert child.wait(20) == 130
    assert said.splitlines()[-1].startswith("INTERRUPTED (exit 130)")
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_is_no_error_of_ours() -> None:
    code = "from optimizer.cli.main import main; main()"
    command = f"{sys.executable} -c '{code}' doctor --json | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1].startswith("INTERRUPTED (exit 130): standard output was closed")
    assert "Traceback" not in done.stderr


def test_a_terminal_that_lacks_a_letter_gets_it_spelled_out() -> None:
    code = "from optimizer.cli import _show, main; main.run = lambda _: _show.line('layer 層'); main.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env={"PYTHONIOENCODING": "latin-1"}, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"layer \\u5c64\n")
