"""Uploaded data sets and result files: the rows; the bytes lie in the object store."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from core.errors import FileInUse, InvalidInput
from core.jobs.lifecycle import ACTIVE
from core.jobs.records import FileRecord, NewFile
from core.jobs.store.files import find_file
from core.jobs.store.rows import is_storable, record
from core.jobs.tables import File, Job


def create_file(session: Session, *, tenant: str, file: NewFile, now: datetime) -> FileRecord:
    """Register a file whose bytes are stored under ``file.object_key``.

    Raises:
        InvalidInput: the file name holds text that no database stores.
    """
    if not is_storable(file.filename):
        raise InvalidInput("The file's name holds characters that cannot be stored.", param="file")
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
    """Make a file unknown. Delete its object after the commit, by the returned ``object_key``.

    Raises:
        NotFound: no such file.
        FileInUse: a job that has not ended reads it.
    """
    row = find_file(session, tenant, file_id, now=now, lock=True)
    reader = session.scalars(
        select(Job.id)
        .where(
            Job.tenant == tenant,
            Job.status.in_(ACTIVE),
            or_(Job.training_file == file_id, Job.validation_file == file_id),
        )
        .limit(1)
    ).one_or_none()
    if reader is not None:
        raise FileInUse(
            f"File {file_id} is in use by job {reader}; cancel the job or wait for its end.",
            param="file_id",
        )
    row.deleted_at = now
    session.flush()
    return record(FileRecord, row)
