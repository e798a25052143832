"""A training process and its leash.

Training runs in a process of its own: torch hangs in a forked pool, CUDA breaks in one, and a
process can be killed where a thread cannot. The process must never outlive its supervisor, or two
attempts at one job would burn energy side by side. Two leashes see to that:

- the write end of its standard input is held by the supervisor alone; end of file means "die"
  (works everywhere, also when the supervisor is killed);
- on Linux the kernel also sends SIGKILL when the supervising thread ends (``PR_SET_PDEATHSIG``),
  which works even while the process is stuck in native code.

Exit statuses are `ChildExit`; anything else, a signal above all, is a crash.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Final, NoReturn

PR_SET_PDEATHSIG: Final = 1


class ChildExit(enum.IntEnum):
    """How a training process says that it ended in good order."""

    #: the job ended, paused or was given back, and the row says so
    REPORTED = 0
    #: it cannot go on now, but a later attempt may: a dependency is down
    TRY_LATER = 75
    #: the job is another worker's; nothing was or may be written
    LEASE_LOST = 76


class Child:
    """One running training process, as its supervisor holds it.

    Args:
        command: program and arguments.
    """

    def __init__(self, command: Sequence[str]) -> None:
        # A group of its own: Ctrl-C at the terminal reaches the supervisor only, which then
        # decides; and killing the group takes what the training may have started with it.
        self._process = subprocess.Popen(  # noqa: S603  our own words, no shell
            command, stdin=subprocess.PIPE, process_group=0
        )
        self._ended = threading.Event()
        # The reaper is not the thread that spawned: that one is the leash, and must stay.
        threading.Thread(target=self._reap, name=f"reap-{self.pid}", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, timeout_s: float) -> int | None:
        """The exit status (negative: the signal that ended it), or None while it runs."""
        return self._process.returncode if self._ended.wait(timeout_s) else None

    def ask_to_stop(self) -> None:
        """Checkpoint, release, exit."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """At once, with everything it started; returns when it is gone."""
        self._signal(signal.SIGKILL)
        self._ended.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._ended.is_set():
            return
        with contextlib.suppress(ProcessLookupError):
            if number is signal.SIGKILL:
                os.killpg(self.pid, number)
            else:
                self._process.send_signal(number)

    def _reap(self) -> None:
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        # what a crashed training left running; the group's id is not reused while it has members
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._ended.set()


def end_with_parent() -> None:
    """Called first thing in the training process: ties its life to the process that started it.

    A hang-up of standard input ends the whole process group with SIGKILL: by then another worker
    may own the job, so there is nothing left to say.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    threading.Thread(target=_die_at_hangup, name="leash", daemon=True).start()


def _die_at_hangup() -> NoReturn:
    with contextlib.suppress(OSError):
        while os.read(sys.stdin.fileno(), 4096):
            pass  # what is written means nothing
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL was survived")
