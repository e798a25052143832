"""Bytes of a caller on their way into the house: stored and, of a training file, checked; then
registered by the route.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from sqlalchemy.orm import Session

from core.data.tables import TABLE_SUFFIXES, check_table
from core.data.validation import DataLimits, ValidationReport, validate
from core.jobs import ids, service
from core.jobs.database import Database
from core.jobs.database import now as database_now
from core.jobs.records import NewFile
from core.objects.store import ObjectStore, StoredObject


@contextmanager
def stored_bytes(
    database: Database, objects: ObjectStore, key: str, data: BinaryIO
) -> Iterator[StoredObject]:
    """Store ``data``; the object is deleted again where the block raises, or by a worker where this
    process is killed before the block's transaction is committed. That calls `confirm`.

    Raises:
        StorageUnavailable: the object store cannot be used.
    """
    with database.transaction() as session:
        service.announce_receipt(session, key, now=database_now(session))
    try:
        yield objects.put(key, data)
    except Exception:
        objects.delete(key)
        raise


def confirm(session: Session, key: str) -> None:
    """The object has a row once ``session`` is committed.

    Raises:
        StorageUnavailable: it was so long on its way that it may be gone.
    """
    service.confirm_receipt(session, key, now=database_now(session))


@contextmanager
def stored_file(
    database: Database,
    objects: ObjectStore,
    data: BinaryIO,
    *,
    filename: str,
    expires_at: datetime | None,
    max_line_bytes: int,
) -> Iterator[NewFile]:
    """As `stored_bytes`, and check them."""
    file_id = ids.new_id(ids.FILE)
    key = f"files/{file_id}"
    with stored_bytes(database, objects, key, data) as stored:
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


def _report(data: BinaryIO, filename: str, limits: DataLimits) -> ValidationReport:
    suffix = Path(filename).suffix.lower()
    if suffix in TABLE_SUFFIXES:
        return check_table(data, suffix, limits=limits)
    return validate(data, limits=limits, name="The file")
