"""What a message may ask of a worker. A message is a nudge: losing, doubling or delaying one
changes nothing but the moment at which somebody looks at the database.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from celery import Celery

from core.errors import Unavailable
from core.wire import JOBS_QUEUE, REVISE, RUN_JOB, SWEEP, TIDY

logger = logging.getLogger(__name__)


def register(
    app: Celery,
    *,
    wake: Callable[[], None],
    sweep: Callable[[], list[str]],
    revise: Callable[[], int],
    tidy: Callable[[], int],
) -> None:
    """Bind the task names to this process's supervisor.

    Tasks return soon: a job that lasts for hours never holds a message, a pool thread or the
    broker's visibility timeout. Which job runs next is decided by the claim (priority, then age),
    not by the order of messages, so the id is for the log. Not shared: Celery would bind a shared
    task to every other app of this process too.
    """

    @app.task(name=RUN_JOB, shared=False)
    def run_job(job_id: str) -> None:
        logger.info("job %s: nudged", job_id)
        wake()

    @app.task(name=SWEEP, shared=False)
    def settle_expired() -> None:
        with _outages_told(SWEEP):
            for job_id in sweep():
                app.send_task(RUN_JOB, args=[job_id], queue=JOBS_QUEUE)

    @app.task(name=REVISE, shared=False)
    def account_again() -> None:
        with _outages_told(REVISE):
            revise()

    @app.task(name=TIDY, shared=False)
    def remove_discarded() -> None:
        with _outages_told(TIDY):
            tidy()


@contextmanager
def _outages_told(task: str) -> Iterator[None]:
    """A service that is away is no bug with a traceback: the next round does the work."""
    try:
        yield
    except Unavailable as error:
        logger.warning("%s: %s", task, error)
