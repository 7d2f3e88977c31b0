"""The first program of every child: ties it to its parent's life, limits it, then becomes the command.

    python -I -S launch.py PARENT MEMORY COMMAND...

PARENT is the process id of whoever spawned it, MEMORY the most bytes of private memory it may have (0: no limit).  Both hold
across exec, so they bind any command, also one that knows nothing of us; and no Python runs between fork and exec in a parent
that may have threads.
"""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1

parent, memory, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
    sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
if os.getppid() != parent:  # it died before the line above could tell
    sys.exit("the parent is gone")
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves nothing behind
if memory:
    # Private writable memory, not address space: torch alone maps gigabytes of libraries and files that cost nothing.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
os.execv(command[0], command)
