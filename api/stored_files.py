"""A training file on its way into the house: stored and checked, then registered by the route."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from core.data.tables import TABLE_SUFFIXES, check_table
from core.data.validation import DataLimits, ValidationReport, validate
from core.jobs import ids
from core.jobs.records import NewFile
from core.objects.store import ObjectStore


@contextmanager
def stored_file(
    objects: ObjectStore,
    data: BinaryIO,
    *,
    filename: str,
    expires_at: datetime | None,
    max_line_bytes: int,
) -> Iterator[NewFile]:
    """Store ``data`` and check it; the object is deleted again where the block raises.

    Raises:
        StorageUnavailable: the object store cannot be used.
    """
    file_id = ids.new_id(ids.FILE)
    key = f"files/{file_id}"
    try:
        stored = objects.put(key, data)
        data.seek(0)
        # one example at least; how many a job needs is the job's business
        limits = DataLimits(min_examples=1, max_line_bytes=max_line_bytes)
        report = _report(data, filename, limits)
        yield NewFile(
            id=file_id,
            filename=filename,
            purpose="fine-tune",
            n_bytes=stored.n_bytes,
            sha256=stored.sha256,
            object_key=key,
            status="processed" if report.ok else "error",
            status_details=report.first_message,
            validation=report.to_dict(),
            expires_at=expires_at,
        )
    except Exception:
        objects.delete(key)
        raise


def _report(data: BinaryIO, filename: str, limits: DataLimits) -> ValidationReport:
    suffix = Path(filename).suffix.lower()
    if suffix in TABLE_SUFFIXES:
        return check_table(data, suffix, limits=limits)
    return validate(data, limits=limits, name="The file")
