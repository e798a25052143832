"""The port of this room, and how to open it.

Keys are relative paths of plain segments, such as ``files/file-0123``. Objects are written whole or
not at all, hashed on the way, and never held in memory.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol

from core.errors import InvalidInput

CHUNK_BYTES: Final = 1 << 20
_MAX_KEY: Final = 512
_SEGMENT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """What was written: ``sha256`` in hexadecimal."""

    key: str
    n_bytes: int
    sha256: str


class ObjectStore(Protocol):
    """Where bytes are kept. All methods raise StorageUnavailable when the store cannot be used and
    InvalidInput for a key that is not one; failures of ``source`` itself pass through.
    """

    def put(self, key: str, source: BinaryIO | Iterable[bytes]) -> StoredObject:
        """Write all of ``source`` under ``key``, replacing what was there, or leave no trace."""
        ...

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes ``start`` to ``end`` (excluded; None: the object's end) in pieces.

        Raises:
            NotFound: at the call, not at the first piece.
        """
        ...

    def delete(self, key: str) -> None:
        """Forget the object; nothing happens where there is none."""
        ...


def check_key(key: str) -> str:
    """``key`` itself, if it is one.

    Raises:
        InvalidInput: empty, too long, or a segment that is hidden, ``..`` or not plain.
    """
    if len(key) > _MAX_KEY or not all(_SEGMENT.fullmatch(part) for part in key.split("/")):
        raise InvalidInput(
            f"{key[:80]!r} is not an object key: it takes segments of letters, digits, '.', '_' "
            f"and '-' between single slashes, {_MAX_KEY} characters at most."
        )
    return key


def check_range(start: int, end: int | None) -> None:
    if start < 0 or (end is not None and end < start):
        raise InvalidInput(f"Bytes {start} to {end} are not a range.")


def pieces(source: BinaryIO | Iterable[bytes]) -> Iterator[bytes]:
    """``source`` in pieces of at most `CHUNK_BYTES` where it is a stream, else as it comes."""
    if isinstance(source, Iterable) and not hasattr(source, "read"):
        yield from source
        return
    while piece := source.read(CHUNK_BYTES):
        yield piece


class HashedSource:
    """Counts and hashes what passes. ``failure`` keeps an error of the source itself apart from
    those of the store that it is written to.
    """

    def __init__(self, source: BinaryIO | Iterable[bytes]) -> None:
        self._pieces = pieces(source)
        self._digest = hashlib.sha256()
        self.n_bytes = 0
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            piece = next(self._pieces)
        except StopIteration:
            raise
        except Exception as error:
            self.failure = error
            raise
        self._digest.update(piece)
        self.n_bytes += len(piece)
        return piece

    def take(self, at_least: int) -> bytes:
        """The first bytes: ``at_least`` so many, fewer only where the source has no more."""
        taken = bytearray()
        for piece in self:
            taken += piece
            if len(taken) >= at_least:
                break
        return bytes(taken)

    def stored_as(self, key: str) -> StoredObject:
        return StoredObject(key=key, n_bytes=self.n_bytes, sha256=self._digest.hexdigest())
