"""What one tenant may have: unfinished jobs, and stored bytes.

Both are counted in the transaction that adds to them, one tenant's transactions one after another,
so that no two of them take the same room.
"""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.errors import LimitExceeded
from core.jobs.lifecycle import ACTIVE
from core.jobs.store.stored import stored_bytes, take_turn
from core.jobs.tables import Job


def require_room_for_a_job(session: Session, tenant: str, most: int) -> None:
    """Raises `LimitExceeded` (code insufficient_quota) if ``most`` jobs have not ended."""
    take_turn(session, tenant, "jobs")
    unfinished = select(Job.id).where(Job.tenant == tenant, Job.status.in_(ACTIVE)).limit(most)
    count = session.scalars(select(func.count()).select_from(unfinished.subquery())).one()
    if count >= most:
        raise LimitExceeded(
            f"{count} jobs of this organization have not ended yet, and this server takes at most "
            f"{most}: wait until some end, or cancel some.",
            code="insufficient_quota",
        )


def require_room_for_bytes(session: Session, tenant: str, n_bytes: int, most: int | None) -> None:
    """As `check_room_for_bytes`, in the transaction that adds the bytes; None: no limit."""
    if most is not None and n_bytes > 0:
        take_turn(session, tenant, "bytes")
        check_room_for_bytes(session, tenant, n_bytes, most)


def check_room_for_bytes(session: Session, tenant: str, n_bytes: int, most: int) -> None:
    """Raises `LimitExceeded` (code insufficient_quota) if ``n_bytes`` more, 0 or more, than the
    tenant has stored are over ``most``. Somebody else may take the room afterwards.
    """
    stored = stored_bytes(session, tenant)
    if stored + n_bytes > most:
        raise LimitExceeded(
            f"This organization has {stored} bytes stored, in files and unfinished uploads; "
            f"with {n_bytes} more it would be over the {most} that this server keeps for one: "
            "delete files, or cancel uploads.",
            code="insufficient_quota",
        )
