"""Rows of tensors by key: in memory first, then in a file that nobody else can see. Rows are hidden
states (`prefix`), or a weight as it was (`frozen_weights`).

The file has no name: it is gone with the process, however that ends. Every row read from it is
checked against its digest; one that does not fit is forgotten, and the caller computes it again, or
says that it is lost.
"""

from __future__ import annotations

import hashlib
import io
import math
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

_DIGEST_BYTES = 16


def free_disk_bytes(folder: Path | None) -> int:
    """Where a store's file would be: ``folder`` need not be there yet, the disk is that of the
    nearest above it that is. None: of the system's own for temporary files.
    """
    place = Path(tempfile.gettempdir()) if folder is None else folder.absolute()
    existing = next(each for each in (place, *place.parents) if each.is_dir())
    return shutil.disk_usage(existing).free


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    start: int
    n_bytes: int
    digest: bytes
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]


class RowStore:
    """
    Args:
        memory_bytes, disk_bytes: most that rows may take; what fits in neither is not kept.
        folder: of the file, made when the file is; None: the system's own for temporary files.
    """

    def __init__(self, *, memory_bytes: int, disk_bytes: int, folder: Path | None = None) -> None:
        self._memory_bytes = memory_bytes
        self._disk_bytes = disk_bytes
        self._folder = folder
        self._rows: dict[bytes, tuple[torch.Tensor, ...]] = {}
        self._places: dict[bytes, _Place] = {}
        self._file: io.FileIO | None = None
        self.n_memory_bytes = 0
        self.n_disk_bytes = 0

    def __len__(self) -> int:
        return len(self._rows) + len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows or key in self._places

    def get(self, key: bytes) -> tuple[torch.Tensor, ...] | None:
        """The row's tensors, on the CPU; None: not here, or no longer what was stored."""
        row = self._rows.get(key)
        return row if row is not None else self._read(key)

    def put(self, key: bytes, row: Sequence[torch.Tensor]) -> bool:
        """Keep ``row`` (copied); False where there is no room, or ``key`` is here already."""
        if key in self:
            return False
        kept = tuple(tensor.detach().to("cpu", copy=True).contiguous() for tensor in row)
        n_bytes = sum(tensor.nbytes for tensor in kept)
        if self.n_memory_bytes + n_bytes <= self._memory_bytes:
            self._rows[key] = kept
            self.n_memory_bytes += n_bytes
            return True
        if self.n_disk_bytes + n_bytes <= self._disk_bytes:
            return self._write(key, kept)
        return False

    def clear(self) -> None:
        self._rows.clear()
        self._places.clear()
        self.n_memory_bytes = self.n_disk_bytes = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, key: bytes, row: tuple[torch.Tensor, ...]) -> bool:
        data = b"".join(tensor.view(torch.uint8).numpy().tobytes() for tensor in row)
        try:
            if self._file is None:
                if self._folder is not None:
                    self._folder.mkdir(parents=True, exist_ok=True)
                # open for as long as the store is: closing deletes it
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            self._file.seek(self.n_disk_bytes)
            rest = memoryview(data)
            while rest:  # the system takes 2 GiB at once, or what is left of the disk
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._disk_bytes = 0  # full or refusing: rows that are there stay good
            if self._file is not None:
                with suppress(OSError):  # what was begun would keep the disk full for others
                    self._file.truncate(self.n_disk_bytes)
            return False
        self._places[key] = _Place(
            start=self.n_disk_bytes,
            n_bytes=len(data),
            digest=_digest(data),
            shapes=tuple(tuple(tensor.shape) for tensor in row),
            dtypes=tuple(tensor.dtype for tensor in row),
        )
        self.n_disk_bytes += len(data)
        return True

    def _read(self, key: bytes) -> tuple[torch.Tensor, ...] | None:
        place = self._places.get(key)
        if place is None or self._file is None:
            return None
        data, n_read = bytearray(place.n_bytes), 0
        try:
            self._file.seek(place.start)
            # the system gives 2 GiB at once, and nothing where the file ends
            while n_now := self._file.readinto(memoryview(data)[n_read:]):
                n_read += n_now
        except OSError:
            n_read = 0
        if n_read < place.n_bytes or _digest(data) != place.digest:
            del self._places[key]
            return None
        row, start = [], 0
        flat = torch.frombuffer(data, dtype=torch.uint8)
        for shape, dtype in zip(place.shapes, place.dtypes, strict=True):
            end = start + math.prod(shape) * dtype.itemsize
            row.append(flat[start:end].clone().view(dtype).reshape(shape))
            start = end
        return tuple(row)


def _digest(data: bytes | bytearray) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
