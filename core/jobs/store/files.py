"""Files. One that is deleted or past ``expires_at`` does not exist, but for jobs that hold it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from core.errors import NotFound
from core.jobs import ids
from core.jobs.records import FilePurpose, FileRecord, Order, Page
from core.jobs.store.rows import FRESH, page, record, unknown_cursor
from core.jobs.tables import File


def get_file(session: Session, tenant: str, file_id: str, *, now: datetime) -> FileRecord:
    """Raises `NotFound`, also for another tenant's file."""
    return record(FileRecord, find_file(session, tenant, file_id, now=now))


def get_held_file(session: Session, tenant: str, file_id: str) -> FileRecord:
    """As `get_file`, for a job that was accepted while the file was there: its date does not count,
    as no sweep takes a file from a job that has not ended.
    """
    return record(FileRecord, find_file(session, tenant, file_id, now=None))


def find_file(
    session: Session,
    tenant: str,
    file_id: str,
    *,
    now: datetime | None,
    param: str = "file_id",
    lock: bool = False,
    share: bool = False,
) -> File:
    """The row; locked for writing, or (``share``) against being deleted.

    Args:
        session: open session.
        tenant: whose file.
        file_id: its id.
        now: a file past its date is none; None: dates do not count.
        param: of the error.
        lock: for writing.
        share: against being deleted.

    Raises:
        NotFound: no such file, also for another tenant's.
    """
    statement = select(File).where(File.id == file_id, *_alive(tenant, now))
    if lock or share:
        statement = statement.with_for_update(read=share)
    row = (
        session.scalars(statement, execution_options=FRESH).one_or_none()
        if ids.is_id(ids.FILE, file_id)
        else None
    )
    if row is None:
        raise NotFound(f"There is no file {file_id!r}.", param=param)
    return row


def _alive(tenant: str, now: datetime | None) -> list[ColumnElement[bool]]:
    conditions = [File.tenant == tenant, File.deleted_at.is_(None)]
    if now is not None:
        conditions.append(or_(File.expires_at.is_(None), File.expires_at > now))
    return conditions


def list_files(
    session: Session,
    tenant: str,
    *,
    now: datetime,
    purpose: FilePurpose | None = None,
    order: Order = "desc",
    after: str | None = None,
    limit: int = 10_000,
) -> Page[FileRecord]:
    """By time of creation. Raises `InvalidInput` (param after)."""
    cursor = None
    if after is not None:
        # a file deleted between two pages is still a place in the list
        found = select(File.created_at).where(File.tenant == tenant, File.id == after)
        created_at = session.scalars(found).one_or_none() if ids.is_id(ids.FILE, after) else None
        if created_at is None:
            raise unknown_cursor(after)
        cursor = (created_at, after)
    statement = select(File).where(*_alive(tenant, now))
    if purpose is not None:
        statement = statement.where(File.purpose == purpose)
    return page(
        session,
        statement,
        order_by=(File.created_at, File.id),
        after=cursor,
        descending=order == "desc",
        limit=limit,
        convert=lambda row: record(FileRecord, row),
    )
