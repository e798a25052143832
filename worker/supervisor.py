"""Claims jobs, runs each in a training process, and settles what became of it.

The database row is the truth. A supervisor owns a job from its claim until it settles it, and only
while it keeps the lease: it renews the lease at every heartbeat, kills the training at once when
the lease is lost, and trains on through a database that is away until lease and grace have ended.
What arrives by the broker is only a reason to look earlier (`Supervisor.wake`).

One thread per slot claims and supervises; nothing here knows how a job is trained: that is the
command's business (`worker.runner`), and it says how it ended by `ChildExit`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from core.errors import Conflict, LeaseLost, Unavailable
from core.jobs import service, store
from core.jobs.database import Database, now
from core.jobs.lifecycle import Release
from core.jobs.records import Claim
from worker.child import Child, ChildExit

logger = logging.getLogger(__name__)

# Readiness takes a worker that missed a few touches for dead.
TOUCH_EVERY_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms a worker holds a job. All durations in seconds."""

    lease_s: float
    heartbeat_s: float
    #: how often an idle slot looks for work that nobody told it about
    poll_s: float
    #: attempts after which a job that keeps killing its workers fails
    max_attempts: int
    #: how long past the lease to train on while the database is away
    outage_grace_s: float
    #: how long a training may take to checkpoint and upload once it was asked to stop;
    #: shorter than the compose file's stop_grace_period
    stop_grace_s: float = 150.0
    #: how long a training may take to notice a cancellation before it is killed
    cancel_grace_s: float = 30.0


class Supervisor:
    """``slots`` jobs at a time, claimed whenever work exists.

    Args:
        database: the job database; no connection is made here.
        terms: lease, heartbeat and grace periods.
        command: claim -> program and arguments of its training process.
        name: unique among workers; shown in attempts and in the workers table.
        slots: jobs trained at a time, >= 1.
    """

    def __init__(
        self,
        *,
        database: Database,
        terms: Terms,
        command: Callable[[Claim], Sequence[str]],
        name: str,
        slots: int,
    ) -> None:
        self._database = database
        self._terms = terms
        self._command = command
        self._name = name
        self._slots = [
            threading.Thread(target=self._fill_slot, name=f"slot-{n}") for n in range(slots)
        ]
        self._presence = threading.Thread(target=self._stay_present, name="presence")
        # reentrant: a signal handler may call `drain` while its own thread is in here
        self._changed = threading.Condition(threading.RLock())
        self._n_wakes = 0
        self._draining = threading.Event()
        self._tenures: set[Tenure] = set()

    def start(self) -> None:
        for thread in [*self._slots, self._presence]:
            thread.start()

    def wake(self) -> None:
        """There may be work: idle slots look now. Safe from any thread."""
        with self._changed:
            self._n_wakes += 1
            self._changed.notify_all()

    def drain(self) -> None:
        """Take no more jobs; running ones checkpoint and go back to the queue within the grace.

        Returns at once; `join` waits.
        """
        self._draining.set()
        with self._changed:
            self._changed.notify_all()
            for tenure in self._tenures:
                tenure.ask_to_stop(Release.SHUTDOWN)

    def hurry(self) -> None:
        """Kill what still trains; the jobs resume elsewhere from their last checkpoint."""
        with self._changed:
            for tenure in self._tenures:
                tenure.kill()

    @property
    def is_draining(self) -> bool:
        return self._draining.is_set()

    def join(self) -> None:
        """Wait until every slot is empty; only after `drain`."""
        for thread in [*self._slots, self._presence]:
            thread.join()

    def sweep(self) -> list[str]:
        """Settle what dead workers left behind; the ids of jobs that need another nudge.

        Raises:
            Unavailable: the database is away.
        """
        with self._database.transaction() as session:
            return service.sweep(session, now=now(session), max_attempts=self._terms.max_attempts)

    def _fill_slot(self) -> None:
        while not self._draining.is_set():
            n_seen = self._n_wakes
            claim = self._claim()
            if claim is not None and self._hold(claim):
                continue
            with self._changed:
                self._changed.wait_for(
                    lambda: self._draining.is_set() or self._n_wakes != n_seen,  # noqa: B023  called here only
                    timeout=self._terms.poll_s,
                )

    def _claim(self) -> Claim | None:
        try:
            with self._database.transaction() as session:
                return service.claim(
                    session,
                    worker=self._name,
                    now=now(session),
                    lease_s=self._terms.lease_s,
                    max_attempts=self._terms.max_attempts,
                )
        except Unavailable as error:
            logger.warning("cannot look for work: %s", error)
            return None

    def _hold(self, claim: Claim) -> bool:
        """Run one job; whether to look for the next one at once."""
        try:
            tenure = Tenure(claim, self._command(claim), self._database, self._terms)
        except OSError:
            # no process to be had: the lease will run out, and the attempt counts
            logger.exception("job %s: the training process could not be started", claim.job_id)
            return False
        with self._changed:
            self._tenures.add(tenure)
            if self._draining.is_set():
                tenure.ask_to_stop(Release.SHUTDOWN)
        try:
            tenure.run()
        except Exception:
            # A slot outlives any one job: what nobody foresaw costs this attempt only.
            logger.exception("job %s: supervision failed", claim.job_id)
            tenure.kill()
            return False
        finally:
            with self._changed:
                self._tenures.discard(tenure)
        return True

    def _stay_present(self) -> None:
        """Readiness means that somebody would claim: say so at every touch, and at the end."""
        is_over = False
        while not is_over:
            is_over = self._draining.is_set()
            try:
                with self._database.transaction() as session:
                    if is_over:
                        store.forget_worker(session, self._name)
                    else:
                        store.touch_worker(
                            session, self._name, now=now(session), slots=len(self._slots)
                        )
            except Unavailable as error:
                logger.warning("cannot report presence: %s", error)
            self._draining.wait(TOUCH_EVERY_S)


class Tenure:
    """One claimed job, from the start of its training process until it is settled."""

    def __init__(
        self, claim: Claim, command: Sequence[str], database: Database, terms: Terms
    ) -> None:
        self._claim = claim
        self._database = database
        self._terms = terms
        self._lease_ends = time.monotonic() + terms.lease_s
        #: when the training is killed, once that is decided
        self._kill_at: float | None = None
        self._stop_reason: Release | None = None
        self._is_lost = False
        self._child = Child(command)

    def run(self) -> None:
        """Supervise until the training has ended, then settle the job."""
        logger.info("job %s: training in process %d", self._claim.job_id, self._child.pid)
        while (status := self._child.wait(self._until_next_look())) is None:
            self._heartbeat()
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                logger.warning("job %s: killed, it did not stop in time", self._claim.job_id)
                self._child.kill()
        logger.info("job %s: training ended with status %d", self._claim.job_id, status)
        if not self._is_lost and status != ChildExit.LEASE_LOST:
            self._settle(status)

    def ask_to_stop(self, reason: Release) -> None:
        """Checkpoint and release within the grace; the first reason counts."""
        if self._stop_reason is None:
            self._stop_reason = reason
            self._kill_at = time.monotonic() + self._terms.stop_grace_s
            self._child.ask_to_stop()

    def kill(self) -> None:
        self._child.kill()

    def _until_next_look(self) -> float:
        if self._kill_at is None:
            return self._terms.heartbeat_s
        return max(0.0, min(self._terms.heartbeat_s, self._kill_at - time.monotonic()))

    def _heartbeat(self) -> None:
        try:
            with self._database.transaction() as session:
                orders = service.heartbeat(
                    session,
                    self._claim.job_id,
                    self._claim.fence,
                    now=now(session),
                    lease_s=self._terms.lease_s,
                )
        except LeaseLost:
            self._lose()
        except Unavailable as error:
            logger.warning("job %s: heartbeat failed: %s", self._claim.job_id, error)
            if time.monotonic() > self._lease_ends + self._terms.outage_grace_s:
                self.ask_to_stop(Release.TRANSIENT)
        else:
            self._lease_ends = time.monotonic() + self._terms.lease_s
            if orders.cancel and self._kill_at is None:
                # the training sees the order by itself, within a step; this is for one that hangs
                self._kill_at = time.monotonic() + self._terms.cancel_grace_s

    def _lose(self) -> None:
        """The training has just let go of the job and is about to exit; or it was taken from us:
        then the training is killed before it burns more energy.
        """
        if self._was_let_go():
            self._kill_at = self._kill_at or time.monotonic() + self._terms.cancel_grace_s
            return
        logger.warning("job %s: the lease is lost", self._claim.job_id)
        self._is_lost = True
        self._child.kill()

    def _was_let_go(self) -> bool:
        try:
            with self._database.read() as session:
                attempts = store.list_attempts(session, self._claim.job_id)
        except Unavailable:
            return False
        outcomes = [a.outcome for a in attempts if a.number == self._claim.fence]
        return outcomes not in ([None], ["lease_expired"])

    def _settle(self, status: int) -> None:
        """The row decides: whatever the training said, a job still ours is given back."""
        try:
            with self._database.transaction() as session:
                service.release(
                    session,
                    self._claim.job_id,
                    self._claim.fence,
                    reason=self._stop_reason or _reason(status),
                    message=_describe(status) if self._stop_reason is None else None,
                    max_attempts=self._terms.max_attempts,
                    now=now(session),
                )
        except (LeaseLost, Conflict):
            pass  # settled by the training itself, or claimed by another worker since
        except Unavailable as error:
            logger.warning("job %s: its lease must run out: %s", self._claim.job_id, error)


def _reason(status: int) -> Release:
    if status == ChildExit.TRY_LATER:
        return Release.TRANSIENT
    return Release.DIED


def _describe(status: int) -> str | None:
    if status == ChildExit.TRY_LATER:
        return None
    if status < 0:
        return f"The training process was killed by signal {-status}"
    # what its code raises it tells the row itself: this was before it could, or the row was away
    return f"The training process ended with status {status} without saying why"
