"""Ties a child process to its parent: run as a script, it becomes the command it is given, after
asking Linux to send that command SIGTERM when the parent dies, even by ``kill -9``.

A separate program because nothing but exec is safe between fork and exec in a process with
threads. On other systems the command runs untied.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def tethered(command: list[str]) -> list[str]:
    """``command``, to be started by the calling process from a thread that outlives it."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def _main(parent: int, command: list[str]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606  no shell is wanted


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2:])
