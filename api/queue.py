"""Nudges to the workers: sent after commit, and never able to fail a request.

The row is the truth. A nudge that is lost, because the broker is down, only costs the time until
the workers' sweeper finds the row.
"""

from __future__ import annotations

import logging
from typing import Protocol

from celery import Celery
from kombu.exceptions import OperationalError

from core.wire import JOBS_QUEUE, RUN_JOB

logger = logging.getLogger(__name__)

# A submit waits at most about this long for a broker that does not answer.
BROKER_TIMEOUT_S = 1.0
# A pooled connection does not survive the broker's restart; the second try opens a new one.
_ONCE_MORE = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}


class JobQueue(Protocol):
    def nudge(self, job_id: str) -> None:
        """Tell some worker that ``job_id`` has work; never raises for a broker that is down."""

    def is_up(self) -> bool:
        """Whether the broker answers now."""


class CeleryQueue:
    """Sends task names, never imports tasks: the API shares no code with the worker."""

    def __init__(self, broker_url: str) -> None:
        self._celery = Celery("greentune-api", broker=broker_url, set_as_current=False)
        self._celery.conf.update(
            broker_connection_retry=False,
            broker_connection_timeout=BROKER_TIMEOUT_S,
            broker_transport_options={
                "socket_connect_timeout": BROKER_TIMEOUT_S,
                "socket_timeout": BROKER_TIMEOUT_S,
                "max_retries": 0,
            },
            task_ignore_result=True,
            task_serializer="json",
            accept_content=["json"],
        )

    def nudge(self, job_id: str) -> None:
        try:
            self._celery.send_task(
                RUN_JOB, args=[job_id], queue=JOBS_QUEUE, retry=True, retry_policy=_ONCE_MORE
            )
        except (OperationalError, OSError) as error:
            logger.warning("broker down, job %s waits for the sweeper: %s", job_id, error)

    def is_up(self) -> bool:
        try:
            with self._celery.connection_for_write() as connection:
                connection.ensure_connection(
                    max_retries=1, interval_start=0, timeout=BROKER_TIMEOUT_S
                )
        except (OperationalError, OSError):
            return False
        return True

    def close(self) -> None:
        self._celery.close()
