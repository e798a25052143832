"""Files that arrive in parts: the rows; the parts' bytes lie in the object store."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.errors import NotFound
from core.jobs import ids
from core.jobs.store.rows import FRESH, record
from core.jobs.tables import Upload, UploadPart
from core.jobs.uploads import PartRecord, UploadRecord


def get_upload(session: Session, tenant: str, upload_id: str) -> UploadRecord:
    """Raises `NotFound`, also for another tenant's upload."""
    return record(UploadRecord, find_upload(session, tenant, upload_id))


def find_upload(session: Session, tenant: str, upload_id: str, *, lock: bool = False) -> Upload:
    """The row. Raises `NotFound`, also for another tenant's upload."""
    statement = select(Upload).where(Upload.id == upload_id, Upload.tenant == tenant)
    if lock:
        statement = statement.with_for_update()
    row = (
        session.scalars(statement, execution_options=FRESH).one_or_none()
        if ids.is_id(ids.UPLOAD, upload_id)
        else None
    )
    if row is None:
        raise NotFound(f"There is no upload {upload_id[:64]!r}.", param="upload_id")
    return row


def list_parts(session: Session, upload_id: str) -> tuple[PartRecord, ...]:
    """All of them, in no order."""
    statement = select(UploadPart).where(UploadPart.upload_id == upload_id)
    rows = session.scalars(statement, execution_options=FRESH)
    return tuple(record(PartRecord, row) for row in rows)


def sum_parts(session: Session, upload_id: str) -> tuple[int, int]:
    """How many there are, and their bytes."""
    sums = select(func.count(), func.coalesce(func.sum(UploadPart.n_bytes), 0))
    n_parts, n_bytes = session.execute(sums.where(UploadPart.upload_id == upload_id)).one()
    return n_parts, int(n_bytes)
