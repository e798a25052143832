"""Files that are whole or absent, whatever ends the process or fills the disk meanwhile."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """``text`` at ``path``, durable; what was there stays until all of it is written.

    Raises:
        OSError: the disk is full or refuses; nothing was changed.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def append_whole(path: Path, text: str) -> None:
    """``text`` at the end of ``path``, which is made where it is not there.

    Raises:
        OSError: the disk is full or refuses; what was there is there, and nothing else.
    """
    rest = text.encode()
    with path.open("ab", buffering=0) as out:
        start = out.tell()
        try:
            while rest:
                rest = rest[out.write(rest) :]
        except OSError:
            out.truncate(start)
            raise
