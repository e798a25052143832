"""Objects of callers on their way to a row: whoever stops where, either a row names them or they
are removed (`core.jobs.store.discarded`).
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from core.errors import StorageUnavailable
from core.jobs.store.discarded import discard, spare

#: what has no row so long after it was announced is removed
RECEIVING_S = 86_400.0
#: between the last moment that an object may get its row, and its removal: a commit takes time
_MARGIN_S = 3_600.0


def announce_receipt(session: Session, object_key: str, *, now: datetime) -> None:
    """The object is about to be stored. To be committed before its first byte.

    Args:
        session: not the one that writes the row.
        object_key: a new one.
        now: the database's clock.
    """
    due_at = now + timedelta(seconds=RECEIVING_S)
    discard(session, object_key, is_folder=False, due_at=due_at)


def confirm_receipt(session: Session, object_key: str, *, now: datetime) -> None:
    """The object gets its row in this transaction.

    Raises:
        StorageUnavailable: storing it took so long that it may be removed any moment.
    """
    if not spare(session, object_key, due_after=now + timedelta(seconds=_MARGIN_S)):
        raise StorageUnavailable("The file took too long to store; send it again.")
