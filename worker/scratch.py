"""A folder for one training process's files: gone when it ends, or soon after it was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_LOCK: Final = ".lock"


@contextmanager
def scratch_folder(root: Path, name: str) -> Iterator[Path]:
    """``root/name``, empty and ours; folders under ``root`` whose owner has died are removed first.

    The owner holds a lock that the kernel lets go of however it ends. The lock is taken under a
    hidden name, so that nobody ever sees the folder without it.
    """
    root.mkdir(parents=True, exist_ok=True)
    _remove_orphans(root)
    unseen = root / f".{name}"
    shutil.rmtree(unseen, ignore_errors=True)
    unseen.mkdir(mode=0o700)
    with (unseen / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = unseen.rename(root / name)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_orphans(root: Path) -> None:
    for folder in root.iterdir():
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        try:
            handle = os.open(folder / _LOCK, os.O_RDWR)
        except FileNotFoundError:  # half removed
            shutil.rmtree(folder, ignore_errors=True)
            continue
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)
