"""Fine-tuned models."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from core.jobs.records import ModelRecord
from core.jobs.store.models import find_model
from core.jobs.store.rows import record


def delete_model(session: Session, *, tenant: str, model_id: str, now: datetime) -> ModelRecord:
    """Make a model unknown. Delete its objects after the commit, by the returned ``prefix``.

    Raises:
        ModelNotFound: no such model.
    """
    row = find_model(session, tenant, model_id)
    row.deleted_at = now
    session.flush()
    return record(ModelRecord, row)
