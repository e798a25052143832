"""Removes the objects that no row names."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import timedelta
from typing import Final

from core.errors import NotFound, StorageUnavailable
from core.jobs import store
from core.jobs.database import Database, now
from core.jobs.store.discarded import DiscardedRecord
from core.objects.folders import delete_folder
from core.objects.store import ObjectStore

logger = logging.getLogger(__name__)

_AT_A_TIME: Final = 100
# What cannot be removed (the store is away, or a manifest is damaged) must not hold up the rest.
_RETRY_AFTER: Final = timedelta(minutes=10)


def tidy(database: Database, objects: ObjectStore) -> int:
    """Remove what was discarded and is due; how many objects and folders.

    Objects go before their row does, and removing them twice does no harm: whoever stops half-way,
    the next round finishes. Any number of workers may do it at once.

    Raises:
        Unavailable: the database is away.
    """
    n_removed = 0
    while True:
        with database.read() as session:
            due = store.list_discarded(session, now=now(session), limit=_AT_A_TIME)
        gone, stuck = _remove(objects, due)
        n_removed += len(gone)
        with database.transaction() as session:
            store.forget_discarded(session, gone)
            if stuck is not None:
                store.postpone_discarded(session, stuck, until=now(session) + _RETRY_AFTER)
        if len(due) < _AT_A_TIME or stuck is not None:
            return n_removed


def _remove(objects: ObjectStore, due: tuple[DiscardedRecord, ...]) -> tuple[list[str], str | None]:
    """Keys that are gone, and the one that the store did not let go, where all ended."""
    gone: list[str] = []
    for item in due:
        try:
            if item.is_folder:
                # no manifest: removed before, at the request itself or in a round that broke off
                with suppress(NotFound):
                    delete_folder(objects, item.key)
            else:
                objects.delete(item.key)
        except StorageUnavailable as error:
            logger.warning("discarded objects stay for now: %s", error)
            return gone, item.key
        gone.append(item.key)
    return gone, None
