"""Files that arrive in parts. What ends an upload leaves its parts to be removed."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from core.errors import InvalidInput
from core.jobs import ids
from core.jobs.records import FileRecord, NewFile
from core.jobs.service.files import FILE_MEMORY_S, create_file
from core.jobs.service.quotas import require_room_for_bytes
from core.jobs.store.discarded import discard
from core.jobs.store.rows import FRESH, is_storable, record
from core.jobs.store.uploads import find_upload, list_parts, sum_parts
from core.jobs.tables import Upload, UploadPart
from core.jobs.uploads import (
    UPLOAD_S,
    PartRecord,
    UploadRecord,
    UploadStatus,
    check_pending,
    check_room,
)


def create_upload(
    session: Session,
    *,
    tenant: str,
    filename: str,
    n_bytes: int,
    file_expires_after_s: int | None,
    most_bytes: int | None = None,
    now: datetime,
) -> UploadRecord:
    """Announce a file of ``n_bytes``, which has `UPLOAD_S` to arrive. They count as stored from now
    on.

    Raises:
        InvalidInput: the file name holds text that no database stores.
        LimitExceeded: with them the tenant would have over ``most_bytes`` stored (code
            insufficient_quota).
    """
    if not is_storable(filename):
        message = "The file's name holds characters that cannot be stored."
        raise InvalidInput(message, param="filename")
    require_room_for_bytes(session, tenant, n_bytes, most_bytes)
    row = Upload(
        id=ids.new_id(ids.UPLOAD),
        tenant=tenant,
        filename=filename,
        n_bytes=n_bytes,
        status="pending",
        file_expires_after_s=file_expires_after_s,
        created_at=now,
        expires_at=now + timedelta(seconds=UPLOAD_S),
    )
    session.add(row)
    session.flush()
    return record(UploadRecord, row)


def add_part(
    session: Session,
    *,
    tenant: str,
    upload_id: str,
    part_id: str,
    object_key: str,
    n_bytes: int,
    most_bytes: int | None = None,
    now: datetime,
) -> PartRecord:
    """Register a part whose bytes are stored under ``object_key``.

    Raises:
        NotFound: no such upload.
        InvalidTransition: it is completed, cancelled or expired.
        InvalidInput: it has parts enough.
        LimitExceeded: with what it adds to the announced bytes the tenant would have over
            ``most_bytes`` stored (code insufficient_quota).
    """
    upload = record(UploadRecord, find_upload(session, tenant, upload_id, lock=True))
    check_pending(upload, now)
    n_parts, held_bytes = sum_parts(session, upload_id)
    check_room(upload, n_parts=n_parts, held_bytes=held_bytes, n_bytes=n_bytes)
    # parts that are sent again go beyond what was announced, and has been counted
    more = held_bytes + n_bytes - max(held_bytes, upload.n_bytes)
    require_room_for_bytes(session, tenant, more, most_bytes)
    row = UploadPart(
        id=part_id, upload_id=upload_id, n_bytes=n_bytes, object_key=object_key, created_at=now
    )
    session.add(row)
    session.flush()
    return record(PartRecord, row)


def complete_upload(
    session: Session, *, tenant: str, upload_id: str, file: NewFile, now: datetime
) -> tuple[UploadRecord, FileRecord]:
    """Register ``file``, whose bytes are the joined parts, in place of the upload.

    Raises:
        NotFound: no such upload.
        InvalidTransition: it is completed, cancelled or expired.
    """
    row = find_upload(session, tenant, upload_id, lock=True)
    check_pending(record(UploadRecord, row), now)
    made = create_file(session, tenant=tenant, file=file, now=now)
    _end(session, row, "completed", now)
    return record(UploadRecord, row), made


def cancel_upload(session: Session, *, tenant: str, upload_id: str, now: datetime) -> UploadRecord:
    """Drop an upload and its parts; nothing changes where that was done before.

    Raises:
        NotFound: no such upload.
        InvalidTransition: it is completed or expired.
    """
    row = find_upload(session, tenant, upload_id, lock=True)
    if row.status != "cancelled":
        check_pending(record(UploadRecord, row), now)
        _end(session, row, "cancelled", now)
    return record(UploadRecord, row)


def expire_uploads(session: Session, *, now: datetime, limit: int) -> None:
    """Drop uploads past their time, parts and all, and forget those that ended a day ago."""
    expired = (
        select(Upload)
        .where(Upload.ended_at.is_(None), Upload.expires_at <= now)
        .order_by(Upload.expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    for row in session.scalars(expired, execution_options=FRESH).all():
        _end(session, row, "expired", now)
    forgotten = now - timedelta(seconds=FILE_MEMORY_S)
    session.execute(delete(Upload).where(Upload.ended_at <= forgotten), execution_options=FRESH)


def _end(session: Session, row: Upload, status: UploadStatus, now: datetime) -> None:
    row.status, row.ended_at = status, now
    for part in list_parts(session, row.id):
        discard(session, part.object_key, is_folder=False, due_at=now)
    session.execute(
        delete(UploadPart).where(UploadPart.upload_id == row.id), execution_options=FRESH
    )
    session.flush()
