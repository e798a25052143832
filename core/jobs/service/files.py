"""Uploaded data sets and result files: the rows; the bytes lie in the object store."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, delete, exists, or_, select
from sqlalchemy.orm import Session

from core.errors import FileInUse, InvalidInput
from core.jobs.lifecycle import ACTIVE
from core.jobs.records import FileRecord, NewFile
from core.jobs.service.quotas import require_room_for_bytes
from core.jobs.store.discarded import discard
from core.jobs.store.files import find_file
from core.jobs.store.rows import FRESH, is_storable, record
from core.jobs.tables import File, Job

#: a file that has been gone for so long is forgotten
FILE_MEMORY_S = 86_400.0


def create_file(
    session: Session,
    *,
    tenant: str,
    file: NewFile,
    most_bytes: int | None = None,
    now: datetime,
) -> FileRecord:
    """Register a file whose bytes are stored under ``file.object_key``.

    Raises:
        InvalidInput: the file name holds text that no database stores.
        LimitExceeded: with it the tenant would have over ``most_bytes`` stored (code
            insufficient_quota).
    """
    if not is_storable(file.filename):
        raise InvalidInput("The file's name holds characters that cannot be stored.", param="file")
    require_room_for_bytes(session, tenant, file.n_bytes, most_bytes)
    row = new_row(file, tenant=tenant, now=now)
    session.add(row)
    session.flush()
    session.refresh(row)  # as stored: columns mend their text
    return record(FileRecord, row)


def new_row(file: NewFile, *, tenant: str, now: datetime) -> File:
    values = {f.name: getattr(file, f.name) for f in fields(file) if f.name != "validation"}
    validation = None if file.validation is None else dict(file.validation)
    return File(**values, validation=validation, tenant=tenant, created_at=now)


def delete_file(session: Session, *, tenant: str, file_id: str, now: datetime) -> FileRecord:
    """Make a file unknown. Its object is discarded, and may be deleted at once after the commit, by
    the returned ``object_key``.

    Raises:
        NotFound: no such file.
        FileInUse: a job that has not ended reads it.
    """
    row = find_file(session, tenant, file_id, now=now, lock=True)
    reader = _reader_of(session, row)
    if reader is not None:
        raise FileInUse(
            f"File {file_id} is in use by job {reader}; cancel the job or wait for its end.",
            param="file_id",
        )
    _make_unknown(session, row, now)
    return record(FileRecord, row)


def discard_expired(session: Session, *, now: datetime, limit: int) -> None:
    """Make files past their date unknown, objects and all, but those that a job which has not ended
    reads; and forget the rows of files that have been gone for `FILE_MEMORY_S`.
    """
    expired = (
        select(File)
        .where(
            File.expires_at <= now,
            File.deleted_at.is_(None),
            ~exists(select(1).where(*_reads(File.tenant, File.id))),
        )
        .order_by(File.expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    for row in session.scalars(expired, execution_options=FRESH).all():
        # again, under the lock: a job may have been accepted since the first look
        if _reader_of(session, row) is None:
            _make_unknown(session, row, now)
    forgotten = now - timedelta(seconds=FILE_MEMORY_S)
    session.execute(delete(File).where(File.deleted_at <= forgotten), execution_options=FRESH)


def _reader_of(session: Session, file: File) -> str | None:
    """Id of a job that reads the locked ``file``."""
    found = select(Job.id).where(*_reads(file.tenant, file.id)).limit(1)
    return session.scalars(found).one_or_none()


def _reads(tenant: Any, file_id: Any) -> tuple[ColumnElement[bool], ...]:
    """True of a job that has not ended and reads the file; values, or columns of `File`."""
    return (
        Job.tenant == tenant,
        Job.status.in_(ACTIVE),
        or_(Job.training_file == file_id, Job.validation_file == file_id),
    )


def _make_unknown(session: Session, row: File, now: datetime) -> None:
    row.deleted_at = now
    discard(session, row.object_key, is_folder=False, due_at=now)
    session.flush()
