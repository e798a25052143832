"""The one way a job's row changes: a compare-and-set, with its events in the same transaction.

Updating the row locks it, so the events of a job get their numbers in the order of commits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, insert, select, update
from sqlalchemy.orm import Session

from core.errors import InvalidTransition, LeaseLost
from core.jobs import ids
from core.jobs.lifecycle import CLAIMABLE, Edge, EventType, Level, Status
from core.jobs.records import Outcome
from core.jobs.store.discarded import discard_state
from core.jobs.store.rows import FRESH
from core.jobs.tables import Attempt, Event, Job


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    level: Level = "info"
    message: str
    type: EventType = "message"
    data: Mapping[str, Any] | None = None


def edge_event(edge: Edge, **words: object) -> NewEvent:
    return NewEvent(level=edge.level, message=edge.message.format(**words))


def owned(job_id: Any, fence: Any) -> tuple[ColumnElement[bool], ...]:
    """True of the job only while the claim with this fence is alive; values, or columns."""
    return (
        Job.id == job_id,
        Job.fence == fence,
        Job.lease_until.is_not(None),
        Job.status.in_(CLAIMABLE),
    )


def compare_and_set(
    session: Session,
    *guards: ColumnElement[bool],
    values: Mapping[str, Any],
    events: Sequence[NewEvent] = (),
    now: datetime | None = None,
) -> Job | None:
    """One UPDATE of one job if it satisfies ``guards``, else None and nothing written.

    ``now`` dates the events.
    """
    statement = (
        update(Job)
        .where(*guards)
        .values(**values, n_events=Job.n_events + len(events))
        .returning(Job)
    )
    job = session.execute(statement, execution_options=FRESH).scalar_one_or_none()
    if job is not None and events:
        first = job.n_events - len(events) + 1
        session.execute(
            insert(Event),
            [
                {
                    "id": ids.new_id(ids.EVENT),
                    "job_id": job.id,
                    "seq": first + offset,
                    "created_at": now,
                    "level": new.level,
                    "message": new.message,
                    "type": new.type,
                    "data": None if new.data is None else dict(new.data),
                }
                for offset, new in enumerate(events)
            ],
        )
    return job


def write_owned(
    session: Session,
    job_id: str,
    fence: int,
    *,
    sources: frozenset[Status] = CLAIMABLE,
    values: Mapping[str, Any],
    events: Sequence[NewEvent] = (),
    now: datetime | None = None,
) -> Job:
    """`compare_and_set` for the owner of a job in one of the states ``sources``.

    Raises:
        LeaseLost: the fence is not the living claim's.
        InvalidTransition: the owner asks for a step that the state does not allow.
    """
    job = compare_and_set(
        session,
        *owned(job_id, fence),
        Job.status.in_(sources),
        values=values,
        events=events,
        now=now,
    )
    if job is None:
        raise refusal(lock_owned(session, job_id, fence), sources)
    return job


def lock_owned(session: Session, job_id: str, fence: int) -> Job:
    """The owner's job, locked until the commit. Raises `LeaseLost`."""
    statement = select(Job).where(*owned(job_id, fence)).with_for_update()
    job = session.scalars(statement, execution_options=FRESH).one_or_none()
    if job is None:
        raise LeaseLost(
            f"Attempt {fence} no longer owns job {job_id}; stop it and write nothing more."
        )
    return job


def refusal(job: Job, sources: frozenset[Status]) -> InvalidTransition:
    allowed = ", ".join(sorted(sources))
    return InvalidTransition(
        f"Job {job.id} is {job.status}; this step needs it to be: {allowed}.", param="status"
    )


def let_go(
    session: Session,
    job: Job,
    edge: Edge,
    *,
    outcome: Outcome | None,
    events: Sequence[NewEvent],
    now: datetime,
    failure: str | None = None,
    **values: Any,
) -> Job:
    """Take a locked job along ``edge`` and out of its owner's hands, if it has one. Nothing goes on
    from the checkpoints of one that ends: what they hold for that is discarded.

    Args:
        session: open session.
        job: the row, locked by this transaction.
        edge: to the state that follows.
        outcome: how the attempt ended; None: there is none.
        events: appended.
        now: aware UTC.
        failure: the attempt's, as `AttemptRecord.failure`.
        values: further columns.
    """
    if job.status not in edge.sources:
        raise refusal(job, edge.sources)
    terminal = edge.target.is_terminal
    settled = {
        "status": edge.target,
        "lease_until": None,
        "worker": None,
        "pause_requested_at": None,
        "not_before": None,
        "hold_reason": None,
        "nudged_at": None,
        "finished_at": now if terminal else None,
        "estimated_finish": None if terminal else job.estimated_finish,
    }
    changed = compare_and_set(
        session,
        Job.id == job.id,
        Job.fence == job.fence,
        Job.status.in_(edge.sources),
        values=settled | values,
        events=events,
        now=now,
    )
    assert changed is not None, "the caller holds the row's lock"
    if terminal:
        discard_state(session, job.id, due_at=now)
    if outcome is not None:
        session.execute(
            update(Attempt)
            .where(
                Attempt.job_id == job.id,
                Attempt.number == job.fence,
                Attempt.ended_at.is_(None),
            )
            .values(ended_at=now, outcome=outcome, failure=failure),
            execution_options=FRESH,
        )
    return changed
