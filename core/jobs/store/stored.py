"""What a tenant has in the object store, and whose turn it is to count."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from core.jobs.tables import File, Upload, UploadPart

#: what is counted -> its locks' seed: those who count jobs do not wait for those who count bytes
_SEEDS = {"jobs": 0, "bytes": 1}


def take_turn(session: Session, tenant: str, counted: Literal["jobs", "bytes"]) -> None:
    """Until this transaction ends nobody else counts the same of ``tenant``: who counts, and then
    adds, sees all that was added before. On SQLite all writers take turns anyway.
    """
    if session.get_bind().dialect.name == "postgresql":
        key = func.hashtextextended(tenant, _SEEDS[counted])
        session.execute(select(func.pg_advisory_xact_lock(key)))


def stored_bytes(session: Session, tenant: str) -> int:
    """Bytes of all files, results too, and of unfinished uploads: what one announced, or its parts
    where those are more. Until a sweep they count past their date, as they are still there.
    """
    files = (
        select(func.coalesce(func.sum(File.n_bytes), 0))
        .where(File.tenant == tenant, File.deleted_at.is_(None))
        .scalar_subquery()
    )
    parts = (
        select(func.coalesce(func.sum(UploadPart.n_bytes), 0))
        .where(UploadPart.upload_id == Upload.id)
        .scalar_subquery()
    )
    uploads = (
        select(
            func.coalesce(func.sum(case((parts > Upload.n_bytes, parts), else_=Upload.n_bytes)), 0)
        )
        .where(Upload.tenant == tenant, Upload.ended_at.is_(None))
        .scalar_subquery()
    )
    # one statement, one snapshot: an upload that becomes a file in between is counted once
    return int(session.scalars(select(files + uploads)).one())
