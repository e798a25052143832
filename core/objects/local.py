"""Objects in a local folder: written beside, synced, then renamed into place."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from core.errors import NotFound, StorageUnavailable
from core.objects.store import CHUNK_BYTES, HashedSource, StoredObject, check_key, check_range

# no key has a hidden segment, so this folder cannot be reached by one
_INCOMING: Final = ".incoming"
_ABANDONED_AFTER_S: Final = 24 * 3600


class LocalStore:
    """An `ObjectStore` in ``root``, which is made at the first write."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, source: BinaryIO | Iterable[bytes]) -> StoredObject:
        target = self._root / check_key(key)
        part = self._root / _INCOMING / secrets.token_hex(16)
        upload = HashedSource(source)
        try:
            with named_failures(key, upload):
                part.parent.mkdir(parents=True, exist_ok=True)
                target.parent.mkdir(parents=True, exist_ok=True)
                with part.open("xb") as out:
                    for piece in upload:
                        out.write(piece)
                    out.flush()
                    os.fsync(out.fileno())
                part.replace(target)
                _sync_folder(target.parent)
        finally:
            with suppress(OSError):
                part.unlink()
        return upload.stored_as(key)

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        check_range(start, end)
        path = self._root / check_key(key)
        if not path.is_file():
            raise NotFound(f"There is no object {key!r}.")
        return _read(path, key, start, end)

    def delete(self, key: str) -> None:
        path = self._root / check_key(key)
        with named_failures(key):
            path.unlink(missing_ok=True)

    def discard_abandoned(self) -> None:
        """Remove what killed processes left half written a day ago or earlier."""
        now = time.time()
        with suppress(OSError):
            for part in (self._root / _INCOMING).iterdir():
                with suppress(OSError):
                    if now - part.stat().st_mtime > _ABANDONED_AFTER_S:
                        part.unlink()


def _read(path: Path, key: str, start: int, end: int | None) -> Iterator[bytes]:
    with named_failures(key), path.open("rb") as stream:
        stream.seek(start)
        left = None if end is None else end - start
        while left is None or left > 0:
            piece = stream.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
            if not piece:
                return
            left = None if left is None else left - len(piece)
            yield piece


def _sync_folder(folder: Path) -> None:
    """The rename itself must survive a power cut too."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def named_failures(key: str, upload: HashedSource | None = None) -> Iterator[None]:
    """Says of an OSError which object it hit; errors of the upload's own source pass through."""
    try:
        yield
    except OSError as error:
        if upload is not None and upload.failure is error:
            raise
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full; free some space" if is_full else error.strerror or str(error)
        raise StorageUnavailable(f"Object {key!r} cannot be read or written: {reason}.") from error
