"""Samples accounted again at what the grid has told since. Anybody may: energy stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from core.jobs.records import Baseline, EnergyRecord, FirstIntensity, KindSpent
from core.jobs.store.jobs import no_job
from core.jobs.store.rows import FRESH
from core.jobs.tables import Attempt, EnergySample, Job
from core.units import emissions_g

_TOLD = (
    "intensity_g_per_kwh",
    "intensity_kind",
    "intensity_source",
    "intensity_is_estimated",
)


def revise_energy(
    session: Session,
    job_id: str,
    revised: Sequence[EnergyRecord],
    *,
    baseline: Baseline | None = None,
) -> int:
    """Replace the intensities of stored samples, keep their first ones, and add the job's and its
    attempts' grams up anew; the number of samples that changed.

    Args:
        revised: stored samples with other intensities; ones that are not stored change nothing.
        baseline: the job's from now on; None: as it is.

    Raises:
        NotFound: there is no such job.
    """
    statement = select(Job).where(Job.id == job_id).with_for_update()
    job = session.scalars(statement, execution_options=FRESH).one_or_none()
    if job is None:
        raise no_job(job_id)
    stored = session.scalars(
        select(EnergySample).where(EnergySample.job_id == job_id), execution_options=FRESH
    ).all()
    changes = {(row.attempt, row.device, row.started_at): row for row in revised}
    changed = 0
    for sample in stored:
        row = changes.get((sample.attempt, sample.device, sample.started_at))
        if row is None or all(getattr(row, name) == getattr(sample, name) for name in _TOLD):
            continue
        if sample.revised_from is None:
            sample.revised_from = FirstIntensity(**{name: getattr(sample, name) for name in _TOLD})
        for name in _TOLD:
            setattr(sample, name, getattr(row, name))
        changed += 1
    _add_up(session, job, stored)
    if baseline is not None:
        job.baseline = baseline
    session.flush()
    return changed


def _add_up(session: Session, job: Job, samples: Sequence[EnergySample]) -> None:
    kinds: dict[str, tuple[float, float]] = {}
    attempts: dict[int, float] = {}
    for sample in samples:
        if sample.intensity_g_per_kwh is None:
            continue
        grams = emissions_g(sample.energy_j, sample.intensity_g_per_kwh)
        attempts[sample.attempt] = attempts.get(sample.attempt, 0.0) + grams
        if sample.intensity_kind is not None:
            joules, before_g = kinds.get(sample.intensity_kind, (0.0, 0.0))
            kinds[sample.intensity_kind] = (joules + sample.energy_j, before_g + grams)
    job.emissions_g = sum(attempts.values())
    job.spent_by_kind = tuple(
        KindSpent(kind=kind, energy_j=joules, emissions_g=grams)
        for kind, (joules, grams) in sorted(kinds.items())
    )
    for number, grams in attempts.items():
        session.execute(
            update(Attempt)
            .where(Attempt.job_id == job.id, Attempt.number == number)
            .values(emissions_g=grams),
            execution_options=FRESH,
        )
