"""What a running attempt leaves behind for good: energy samples, overheads and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import fields
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from core.errors import InvalidInput
from core.jobs import ids
from core.jobs.lifecycle import CHECKPOINT_MESSAGE, Status
from core.jobs.records import (
    CheckpointRecord,
    EnergyRecord,
    KindSpent,
    NewCheckpoint,
    OverheadRecord,
)
from core.jobs.service.checkpoints import discard_checkpoints, superseded
from core.jobs.service.models import needed_models
from core.jobs.store.discarded import announce, discard, keep
from core.jobs.store.jobs import last_checkpoint
from core.jobs.store.rows import FRESH, insert_on_conflict, job_record, record
from core.jobs.store.transitions import NewEvent, lock_owned, refusal, write_owned
from core.jobs.tables import Attempt, Checkpoint, EnergySample, Job, Overhead
from core.units import emissions_g

#: SQLite takes 32,766 values in one statement; a sample has 12
_SAMPLES_A_STATEMENT = 1000
#: a job that starts from a checkpoint may be fetching its files when they are replaced
_REPLACED_STAYS = timedelta(hours=1)


def record_energy(
    session: Session, job_id: str, fence: int, samples: Sequence[EnergyRecord]
) -> None:
    """Add samples to the attempt's and the job's totals; a sample already stored changes nothing.

    Raises:
        InvalidInput: energy that is negative or not finite, or an interval that ends before it
            starts.
    """
    for sample in samples:
        _require_physical(sample)
    job = lock_owned(session, job_id, fence)
    kinds = {part.kind: (part.energy_j, part.emissions_g) for part in job.spent_by_kind}
    added_j = added_g = 0.0
    for start in range(0, len(samples), _SAMPLES_A_STATEMENT):
        for energy_j, intensity, kind in _insert_new(
            session, job_id, fence, samples[start : start + _SAMPLES_A_STATEMENT]
        ):
            grams = 0.0 if intensity is None else emissions_g(energy_j, intensity)
            added_j += energy_j
            added_g += grams
            if kind is not None:
                before_j, before_g = kinds.get(kind, (0.0, 0.0))
                kinds[kind] = (before_j + energy_j, before_g + grams)
    write_owned(
        session,
        job_id,
        fence,
        values={
            "energy_j": Job.energy_j + added_j,
            "emissions_g": Job.emissions_g + added_g,
            "spent_by_kind": tuple(
                KindSpent(kind=kind, energy_j=joules, emissions_g=grams)
                for kind, (joules, grams) in sorted(kinds.items())
            ),
        },
    )
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.number == fence)
        .values(energy_j=Attempt.energy_j + added_j, emissions_g=Attempt.emissions_g + added_g),
        execution_options=FRESH,
    )


def record_attribution(session: Session, job_id: str, fence: int, attribution: str) -> None:
    """Whose energy the attempt's samples are: the whole machine's or the training process's."""
    lock_owned(session, job_id, fence)
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.number == fence)
        .values(attribution=attribution),
        execution_options=FRESH,
    )


def record_overhead(session: Session, job_id: str, fence: int, overhead: OverheadRecord) -> None:
    """Add a time that did not go into training steps; one already stored changes nothing."""
    lock_owned(session, job_id, fence)
    values = {f.name: getattr(overhead, f.name) for f in fields(OverheadRecord)}
    session.execute(
        insert_on_conflict(session, Overhead)
        .values(job_id=job_id, attempt=fence, **values)
        .on_conflict_do_nothing(),
        execution_options=FRESH,
    )


def _require_physical(sample: EnergyRecord) -> None:
    if not (math.isfinite(sample.energy_j) and sample.energy_j >= 0):
        raise InvalidInput(
            f"energy_j of {sample.device} at {sample.started_at} must be finite and 0 or more; "
            f"got {sample.energy_j}.",
            param="energy_j",
        )
    if sample.ended_at < sample.started_at:
        raise InvalidInput(
            f"The sample of {sample.device} at {sample.started_at} ends before it starts.",
            param="ended_at",
        )
    intensity = sample.intensity_g_per_kwh
    if intensity is not None and not (math.isfinite(intensity) and intensity >= 0):
        raise InvalidInput(
            f"intensity_g_per_kwh must be finite and 0 or more, or None; got {intensity}.",
            param="intensity_g_per_kwh",
        )


def _insert_new(
    session: Session, job_id: str, fence: int, samples: Sequence[EnergyRecord]
) -> list[tuple[float, float | None, str | None]]:
    """Energy, intensity and its kind of those samples that were not stored before."""
    names = [f.name for f in fields(EnergyRecord) if f.name not in ("attempt", "revised_from")]
    rows = [
        {name: getattr(sample, name) for name in names} | {"job_id": job_id, "attempt": fence}
        for sample in samples
    ]
    statement = (
        insert_on_conflict(session, EnergySample)
        .values(rows)
        .on_conflict_do_nothing()
        .returning(
            EnergySample.energy_j, EnergySample.intensity_g_per_kwh, EnergySample.intensity_kind
        )
    )
    return [(row[0], row[1], row[2]) for row in session.execute(statement, execution_options=FRESH)]


def announce_objects(session: Session, job_id: str, fence: int, keys: Collection[str]) -> None:
    """Say what the attempt is about to store: objects under these keys, where nothing was before.
    Unless `record_checkpoint` or `succeed` gives them a row, they are removed once it is over.

    Raises:
        LeaseLost: the fence is not the living claim's.
    """
    lock_owned(session, job_id, fence)
    announce(session, job_id, fence, keys)


def record_checkpoint(
    session: Session, job_id: str, fence: int, checkpoint: NewCheckpoint, *, now: datetime
) -> CheckpointRecord:
    """Write down a checkpoint whose manifest has been uploaded, with its event.

    A checkpoint beyond all earlier ones is progress: it clears the counts of deaths and retries.
    Written again for the same step, under another prefix, it replaces the first. Older ones that
    were no milestones are discarded (`superseded`), but those that a job which has not ended starts
    from.

    Raises:
        LeaseLost: the fence is not the living claim's.
        InvalidTransition: the job is not running.
    """
    job = lock_owned(session, job_id, fence)
    if job.status is not Status.RUNNING:
        raise refusal(job, frozenset({Status.RUNNING}))
    last = last_checkpoint(session, job_id)
    statement = select(Checkpoint).where(
        Checkpoint.job_id == job_id, Checkpoint.step == checkpoint.step
    )
    row = session.scalars(statement.with_for_update(), execution_options=FRESH).one_or_none()
    if row is None:
        model = ids.checkpoint_model(job_record(job).model_name, checkpoint.step)
        row = Checkpoint(
            id=ids.new_id(ids.CHECKPOINT),
            job_id=job_id,
            step=checkpoint.step,
            model=model,
            is_milestone=checkpoint.is_milestone,
        )
        session.add(row)
    elif (row.attempt, row.prefix) == (fence, checkpoint.prefix):
        return record(CheckpointRecord, row)
    elif row.prefix != checkpoint.prefix:
        discard(session, row.prefix, is_folder=True, due_at=now + _REPLACED_STAYS)
    row.created_at = now
    row.attempt = fence
    row.prefix = checkpoint.prefix
    row.n_bytes = checkpoint.n_bytes
    row.metrics = dict(checkpoint.metrics)
    row.is_milestone = row.is_milestone or checkpoint.is_milestone
    row.state_files = checkpoint.state_files
    row.deleted_at = None
    keep(session, job_id, prefix=checkpoint.prefix)
    session.flush()
    _prune(session, job, now)
    is_progress = last is None or checkpoint.step > last.step
    write_owned(
        session,
        job_id,
        fence,
        values={"deaths": 0, "retries": 0} if is_progress else {},
        events=[NewEvent(message=CHECKPOINT_MESSAGE.format(step=checkpoint.step))],
        now=now,
    )
    return record(CheckpointRecord, row)


def _prune(session: Session, job: Job, now: datetime) -> None:
    old = superseded(session, job.id)
    if old:
        # asked under the locks, as `delete_model` does
        needed = needed_models(session, job.tenant)
        unused = [row for row in old if row.model not in needed]
        discard_checkpoints(session, unused, now=now)
