"""The first program of every child: ties it to its parent's life, limits it, then becomes the command.

    python -I -S launch.py PARENT MEMORY LINE COMMAND...

PARENT is the process id of whoever spawned it, MEMORY the most bytes of private memory it may have (less where the user's own
limit is lower).  Both hold across exec, so they bind any command, also one that knows nothing of us; and no Python runs between
fork and exec in a parent that may have threads.  LINE is the end of a pipe that the parent writes to when it has ended the child
and all that this started, and that falls silent when the parent dies before: what it started would live on, for the kernel ends
the child alone.
"""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with_parent(line: int) -> None:
    """Leave a process behind that outlives the parent by a moment, to kill this process group."""
    group = os.getpid()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:  # nobody's child, so that the command never meets one that it did not start
            os.closerange(0, line)
            os.closerange(line + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            if not os.read(line, 1):
                os.killpg(group, signal.SIGKILL)
        os._exit(0)
    os.wait()
    os.close(line)


parent, memory, line, command = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
    sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
if os.getppid() != parent:  # it died before the line above could tell
    sys.exit("the parent is gone")
end_with_parent(line)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves nothing behind
# Private writable memory, not address space: torch alone maps gigabytes of libraries and files that cost nothing.
_, most = resource.getrlimit(resource.RLIMIT_DATA)
limit = memory if most == resource.RLIM_INFINITY else min(memory, most)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"1000")  # where all memory is gone, the child goes, not its parent
os.execv(command[0], command)
