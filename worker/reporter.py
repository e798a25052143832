"""A training process's one line to the job database.

All that a training says (progress, events, energy, checkpoints, how it ended) goes through here in
the order in which it was said, every write under the fence of its claim; and here it learns what
the world wants of it. One thread does both, so that a slow database never holds up a training
step: while the database is away writes wait in memory, in order, and training goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from sqlalchemy.orm import Session

from core.errors import LeaseLost, NotFound, Unavailable
from core.jobs import store
from core.jobs.database import Database, now
from core.jobs.records import Orders

logger = logging.getLogger(__name__)

T = TypeVar("T")
#: a write: gets an open transaction and the database's time
Write = Callable[[Session, datetime], T]

# How soon an order is noticed; a quarter of a second is within one training step of any real model
# and costs the database four primary-key reads a second.
LOOK_EVERY_S: Final = 0.25
# After a failure the database is left alone for so long.
RETRY_EVERY_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ask:
    """A write that somebody waits for."""

    write: Write[Any]
    answer: Future[Any]
    give_up_at: float


class Reporter:
    """Use as a context manager; leaving it writes what is still waiting.

    Args:
        database: the job database.
        tenant, job_id, fence: whose job, and the claim's token.
        patience_s: how long `call` waits for a database that is away.
    """

    def __init__(
        self, database: Database, *, tenant: str, job_id: str, fence: int, patience_s: float
    ) -> None:
        self._database = database
        self._tenant = tenant
        self._job_id = job_id
        self._fence = fence
        self._patience_s = patience_s
        self._waiting: dict[object, Write[Any] | _Ask] = {}
        self._lock = threading.Lock()
        self._something = threading.Event()
        self._closing = threading.Event()
        self._is_lost = False
        self._is_finishing = False
        self._failure: Exception | None = None
        self._orders = Orders(cancel=False, pause=False)
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._something.set()
        self._thread.join()

    @property
    def is_lost(self) -> bool:
        """Another worker's job, or a settled one: nothing can be written any more."""
        return self._is_lost

    @property
    def orders(self) -> Orders:
        """What the caller wants, as of a moment ago."""
        return self._orders

    def post(self, write: Write[Any], *, replaces: str | None = None) -> None:
        """Write soon, after all that was posted before.

        Args:
            write: called with an open transaction and the database's time, once or, when the
                commit fails, again.
            replaces: an earlier post by this name that still waits is superfluous.

        Raises:
            Exception: what an earlier post raised, outages and lost leases apart.
        """
        if self._failure is not None:
            raise self._failure
        key = replaces or object()
        with self._lock:
            self._waiting.pop(key, None)
            self._waiting[key] = write
        # no wake-up: steps may be fast, and a quarter of a second of them makes one transaction

    def call(self, write: Write[T]) -> T:
        """Write after all that was posted before, and wait for the result.

        Raises:
            LeaseLost: the job is not ours any more.
            Unavailable: the database was away for all of the patience.
            GreentuneError: what ``write`` itself raises; nothing of it was written.
        """
        if self._failure is not None:
            raise self._failure
        ask = _Ask(write=write, answer=Future(), give_up_at=time.monotonic() + self._patience_s)
        with self._lock:
            self._waiting[object()] = ask
        self._something.set()
        result: T = ask.answer.result()
        return result

    def finish(self, write: Write[Any]) -> None:
        """The last call: after it the job is not ours, which is no loss.

        Raises:
            Exception: as `call`; of an earlier post only once, so that the job's row can be told of
                that as well.
        """
        self._is_finishing = True
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        self.call(write)

    def _run(self) -> None:
        while True:
            is_last_round = self._closing.is_set()
            is_up = self._write_waiting()
            if is_last_round:
                break
            if is_up and not self._is_finishing:
                is_up = self._look()
            self._something.wait(LOOK_EVERY_S if is_up else RETRY_EVERY_S)
            self._something.clear()
        for ask in self._take_asks():
            ask.answer.set_exception(Unavailable("The reporter was closed."))

    def _write_waiting(self) -> bool:
        """Posts up to the next call make one transaction, a call makes its own; False: outage."""
        while True:
            with self._lock:
                batch = list(self._waiting.items())
            posts = []
            ask = None
            for key, item in batch:
                if isinstance(item, _Ask):
                    ask = (key, item)
                    break
                posts.append((key, item))
            if not posts and ask is None:
                return True
            if posts and not self._commit_posts(posts):
                self._give_up_overdue()
                return False
            if ask is not None and not self._commit_ask(*ask):
                self._give_up_overdue()
                return False

    def _commit_posts(self, posts: list[tuple[object, Write[Any]]]) -> bool:
        try:
            if not self._is_lost:
                with self._database.transaction() as session:
                    for _, write in posts:
                        write(session, now(session))
        except Unavailable as error:
            logger.warning("job %s: %d writes wait: %s", self._job_id, len(posts), error)
            return False
        except LeaseLost:
            self._lose()
        except Exception as error:
            # a write that the database refuses is our mistake: the training must hear of it
            logger.exception("job %s: a write failed", self._job_id)
            self._failure = error
        self._remove(posts)
        return True

    def _commit_ask(self, key: object, ask: _Ask) -> bool:
        if self._is_lost:
            self._remove([(key, ask)])
            ask.answer.set_exception(
                LeaseLost(f"Job {self._job_id} is not this worker's any more.")
            )
            return True
        try:
            with self._database.transaction() as session:
                result = ask.write(session, now(session))
        except Unavailable as error:
            logger.warning("job %s: a write waits: %s", self._job_id, error)
            return False
        except Exception as error:  # noqa: BLE001  the caller's thread raises it
            if isinstance(error, LeaseLost):
                self._lose()
            self._remove([(key, ask)])
            ask.answer.set_exception(error)
        else:
            self._remove([(key, ask)])
            ask.answer.set_result(result)
        return True

    def _look(self) -> bool:
        try:
            with self._database.read() as session:
                job = store.get_job(session, self._tenant, self._job_id)
        except Unavailable as error:
            logger.warning("job %s: cannot look for orders: %s", self._job_id, error)
            return False
        except NotFound:
            self._lose()
            return True
        if job.fence != self._fence or not job.is_owned:
            self._lose()
        self._orders = Orders(
            cancel=job.cancel_requested_at is not None, pause=job.pause_requested_at is not None
        )
        return True

    def _lose(self) -> None:
        if not self._is_lost:
            logger.warning("job %s: no longer ours; nothing more is written", self._job_id)
        self._is_lost = True

    def _remove(self, items: list[tuple[object, Any]]) -> None:
        """Those very writes: one that replaced another meanwhile stays."""
        with self._lock:
            for key, item in items:
                if self._waiting.get(key) is item:
                    del self._waiting[key]

    def _give_up_overdue(self) -> None:
        for ask in self._take_asks(overdue_at=time.monotonic()):
            ask.answer.set_exception(
                Unavailable("The database is not available.", code="database_unavailable")
            )

    def _take_asks(self, overdue_at: float = float("inf")) -> list[_Ask]:
        with self._lock:
            taken = [
                (key, item)
                for key, item in self._waiting.items()
                if isinstance(item, _Ask) and item.give_up_at <= overdue_at
            ]
            for key, _ in taken:
                del self._waiting[key]
        return [ask for _, ask in taken]
