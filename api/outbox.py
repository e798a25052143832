"""What a request does to the world outside the database, once its transaction has committed.

Objects are deleted here so that they are gone at once; `worker.tidying` does what does not succeed.
"""

from __future__ import annotations

import logging
from functools import partial

from api.queue import JobQueue
from core.errors import NotFound, StorageUnavailable
from core.objects.folders import delete_folder
from core.objects.store import ObjectStore

logger = logging.getLogger(__name__)


class Outbox:
    """Filled by a route, emptied after the commit; dropped when there is none."""

    def __init__(self) -> None:
        self._job_ids: list[str] = []
        self._object_keys: list[str] = []
        self._folders: list[str] = []

    def nudge(self, job_id: str) -> None:
        """A worker may look at this job."""
        self._job_ids.append(job_id)

    def delete_object(self, key: str) -> None:
        """No row names this object any more."""
        self._object_keys.append(key)

    def delete_folder(self, prefix: str) -> None:
        """No row names this folder of objects any more."""
        self._folders.append(prefix)

    def send(self, queue: JobQueue, objects: ObjectStore) -> None:
        """Never raises for a service that is down: what counts is committed."""
        for job_id in self._job_ids:
            queue.nudge(job_id)
        forget = [partial(objects.delete, key) for key in self._object_keys]
        forget += [partial(delete_folder, objects, prefix) for prefix in self._folders]
        for delete in forget:
            try:
                delete()
            except (StorageUnavailable, NotFound) as error:
                logger.warning("objects stay although no row names them any more: %s", error)
