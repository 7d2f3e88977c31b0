"""A child lives no longer than its parent, keeps its limits, and whatever it does comes out as an error of the user's."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from optimizer import process
from optimizer.errors import InputError, UnavailableError
from optimizer.process import Child, Workers, check_house, isolated, run_worker

Write = Callable[..., Path]


def run(folder: Path, worker: str = "worker", **limits: Any) -> list[dict[str, Any]]:
    command = isolated(folder / f"{worker}.py")
    return list(run_worker(command, request={"number": 3}, folder=folder, what="The worker", **limits))


def gone(pid: int, seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_worker_gets_its_request_and_its_events_come_back_in_order(user: Write) -> None:
    folder = user(
        worker="""
        def main(channel):
            for step in range(channel.receive().event["number"]):
                channel.send("step", done=step)
        """
    )
    assert [event.get("done") for event in run(folder)] == [0, 1, 2, None]


def test_events_come_back_while_the_worker_still_runs(user: Write) -> None:
    folder = user(
        worker="""
        import time
        def main(channel):
            channel.send("first")
            time.sleep(60)
        """
    )
    events = run_worker(isolated(folder / "worker.py"), request={}, folder=folder, what="It")
    start = time.monotonic()
    assert next(events)["event"] == "first"
    events.close()
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ValueError('no such stage')", "ValueError: no such stage"),
        ("import os; os._exit(7)", "exit code 7"),
        ("import os; os._exit(0)", "exit code 0 before it was done"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os.abort()", "SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "memory"),
        ("import os; os.write(channel._line.fileno(), b'\\x00garbage\\n')", "a line that is not its own"),
        ("import os; os.write(channel._line.fileno(), b'[' * 100000 + b'\\n')", "a line that is not its own"),
        ('channel._line.sendall(b\'{"event": "x", "arrays": [["a", "|O", [1]]]}\\n\')', "a line that is not its own"),
        ('channel._line.sendall(b\'{"event": "x", "arrays": [["a", "<f4", [1000000000, 1000000000]]]}\\n\')', "not its own"),
        ("channel.send('error', reason=['x'], exit_code=[2])", "['x']"),
        ("import time; channel._line.close(); time.sleep(60)", "closed the line"),
        ("bytearray(1 << 34)", "not enough memory"),
        ("print('x' * 50_000_000); print('the last word'); import os; os._exit(1)", "the last word"),
        ("import time; time.sleep(60)", "took more than 2 s"),
        ("print('\\x1b[31mred\\x1b[0m'); import os; os._exit(1)", "its last words:"),
    ],
)
def test_whatever_a_child_does_comes_out_as_a_users_error(user: Write, body: str, words: str) -> None:
    folder = user(worker=f"def main(channel):\n    channel.receive()\n    {body}\n")
    with pytest.raises(InputError) as caught:
        run(folder, memory=1 << 32, seconds=2 if "sleep(60)" in body and "close" not in body else 30)
    assert words in caught.value.reason
    assert caught.value.reason.startswith("The worker ") or "send('error'" in body
    assert len(caught.value.reason) < 2000
    assert caught.value.reason.isprintable()
    assert caught.value.remedy


def test_an_error_keeps_its_kind_and_words(user: Write) -> None:
    folder = user(worker="def main(channel):\n    channel.refuse('No driver.', 'Install one.', exit_code=5)\n")
    with pytest.raises(UnavailableError) as caught:
        run(folder)
    assert (caught.value.reason, caught.value.remedy) == ("No driver.", "Install one.")


def test_a_child_that_leaves_a_writing_process_behind_is_no_hang(user: Write) -> None:
    folder = user(
        worker="""
        import os, subprocess
        def main(channel):
            child = subprocess.Popen(["yes"])
            open("pid", "w").write(str(child.pid))
            os._exit(3)
        """
    )
    start = time.monotonic()
    with pytest.raises(InputError, match="exit code 3"):
        run(folder)
    assert time.monotonic() - start < 20
    assert gone(int((folder / "pid").read_text()))


def test_neither_side_blocks_the_other_with_more_than_a_pipe_holds(user: Write) -> None:
    folder = user(
        worker="""
        import threading
        def main(channel):
            threading.Thread(target=lambda: print("x" * 5_000_000), daemon=True).start()
            arrays = channel.receive().arrays
            print("y" * 5_000_000)
            channel.send("back", arrays)
        """
    )
    sent = np.arange(4_000_000, dtype=np.float32).reshape(2, -1)
    with Child(isolated(folder / "worker.py"), folder=folder, what="The worker") as child:
        child.send({"event": "request"}, {"x": sent, "empty": np.zeros((0, 3)), "scalar": np.array(True)})
        back = child.receive(60).arrays
    np.testing.assert_array_equal(back["x"], sent)
    assert back["empty"].shape == (0, 3)
    assert back["scalar"].shape == ()
    assert back["scalar"].dtype == bool


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_neither_a_child_nor_what_it_started_outlives_its_parent_however_that_dies(user: Write, how: signal.Signals) -> None:
    folder = user(
        worker="""
        import os, time
        def main(channel):
            if started := os.fork():
                channel.send("started", pids=[os.getpid(), started])
            time.sleep(60)
        """
    )
    program = f"""
        from pathlib import Path
        from optimizer.process import isolated, run_worker
        folder = Path({str(folder)!r})
        for event in run_worker(isolated(folder / "worker.py"), request={{}}, folder=folder, what="The worker"):
            print(*event["pids"], flush=True)
    """
    parent = subprocess.Popen([sys.executable, "-c", dedent(program)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        parent.send_signal(how)
        parent.wait()
    dead = [gone(pid) for pid in pids]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert dead == [True, True]


def test_a_child_has_no_children_but_its_own(user: Write) -> None:
    folder = user(
        worker="""
        import os
        def main(channel):
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                channel.send("none")
        """
    )
    assert [event["event"] for event in run(folder)] == ["none", "done"]


def test_a_closed_child_leaves_no_process_behind(user: Write) -> None:
    folder = user(worker="def main(channel): channel.receive()\n")
    with Child(isolated(folder / "worker.py"), folder=folder, what="The worker") as child:
        end = time.monotonic() + 30
        while len(running(folder)) < 2 and time.monotonic() < end:  # the worker, and the process that watches over it
            time.sleep(0.05)
        pids = running(folder)
        assert len(pids) == 2
    child.close()
    assert all(gone(pid) for pid in pids)


def running(folder: Path) -> list[int]:
    """The processes whose command names the folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in file.read_bytes():
                found.append(int(file.parent.name))
    return found


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("hoard = [bytearray(1 << 26) for _ in range(1 << 10)]", "not enough memory"),
        ("import time; time.sleep(60)", "took more than 1 s"),
    ],
)
def test_memory_and_patience_have_limits_that_nobody_needs_to_ask_for(
    user: Write, monkeypatch: pytest.MonkeyPatch, body: str, words: str
) -> None:
    monkeypatch.setattr(process, "memory_here", lambda: 1 << 30)
    folder = user(worker=f"def main(channel):\n    {body}\n")
    patience = 1 if "sleep" in body else 60
    with (
        pytest.raises(InputError, match=words),
        Child(isolated(folder / "worker.py"), folder=folder, what="It", patience=patience) as child,
    ):
        child.receive()


def test_a_limit_of_the_users_own_that_is_lower_holds(user: Write) -> None:
    folder = user(
        worker="""
        import resource
        def main(channel):
            channel.send("limits", limits=resource.getrlimit(resource.RLIMIT_DATA))
        """
    )
    program = f"""
        import resource
        from pathlib import Path
        from optimizer.process import isolated, run_worker
        resource.setrlimit(resource.RLIMIT_DATA, (1 << 31, 1 << 31))
        folder = Path({str(folder)!r})
        for event in run_worker(isolated(folder / "worker.py"), request={{}}, folder=folder, what="The worker", memory=1 << 40):
            print(event.get("limits"))
    """
    done = subprocess.run([sys.executable, "-c", dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == str([1 << 31, 1 << 31])


def test_a_container_is_taken_for_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = process.memory_here()
    limits = [tmp_path / "none", tmp_path / "max", tmp_path / "limit"]
    limits[1].write_text("max\n")
    monkeypatch.setattr(process, "_CONTAINER", limits)
    assert process.memory_here() == whole
    limits[2].write_text("1048576\n")
    assert process.memory_here() == 1 << 20


def test_a_child_whose_parent_died_before_it_was_tied_ends_by_itself() -> None:
    launch = Path(__file__).parents[2] / "optimizer" / "launch.py"
    not_its_parent = str(os.getpid() + 1)
    done = subprocess.run([sys.executable, "-I", "-S", str(launch), not_its_parent, "0", "0", "/bin/echo", "ran"], capture_output=True)
    assert done.returncode == 1
    assert b"ran" not in done.stdout


def test_a_program_that_is_not_there_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exit code"):
        list(run_worker(["/no/such/program"], request={}, folder=tmp_path, what="The worker"))


def test_the_house_is_ours_here() -> None:
    check_house()


def test_another_package_called_kernels_is_refused_with_the_remedy(user: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = user({"kernels/__init__.py": ""})
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    with pytest.raises(InputError, match="'kernels'") as caught:
        check_house()
    assert "environment of its own" in caught.value.remedy


STAYING = """
import os
def main(channel):
    while True:
        how = channel.receive().event["how"]
        if how == "crash":
            os.abort()
        if how == "refuse":
            channel.refuse("It can't.", "Ask another.", 5)
        if how == "nothing":
            import time; time.sleep(60)
        channel.send("answer", pid=os.getpid())
"""


def test_a_worker_that_stays_answers_every_request_and_one_that_ended_is_replaced(user: Write, tmp_path: Path) -> None:
    command = isolated(user(worker=STAYING) / "worker.py")
    with Workers(tmp_path, patience=2) as workers:

        def ask(how: str) -> int:
            return int(workers.ask(command, {"how": how}, what="It")["pid"])

        pids = [ask("answer"), ask("answer")]
        assert pids[0] == pids[1]
        for how, kind, words in (
            ("crash", InputError, "crashed with SIGABRT"),
            ("refuse", UnavailableError, "It can't"),
            ("nothing", InputError, "without an answer"),
        ):
            with pytest.raises(kind, match=words):
                ask(how)
            assert gone(pids[-1])
            pids.append(ask("answer"))
            assert pids[-1] not in pids[:-1]
        os.kill(pids[-1], signal.SIGKILL)  # idle, as when memory runs out: the next request is none the worse for it
        assert gone(pids[-1])
        pids.append(ask("answer"))
    assert gone(pids[-1])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_a_worker_that_stays_does_not_outlive_its_parent(user: Write, how: signal.Signals) -> None:
    folder = user(
        worker=STAYING,
        parent="""
        import signal, sys, time
        from pathlib import Path
        from optimizer.process import Workers, isolated
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with Workers(Path.cwd()) as workers:
            print(workers.ask(isolated(Path("worker.py").resolve()), {"how": "answer"}, what="It")["pid"], flush=True)
            time.sleep(60)
        """,
    )
    with subprocess.Popen(
        [sys.executable, "parent.py"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid, 0.1)
        parent.send_signal(how)
        parent.wait()
    assert gone(pid)
