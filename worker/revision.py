"""Jobs accounted again at what the grid has told since their energy was metered."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Final

from core.carbon.compose import JobFacts, compose
from core.carbon.intensity import WORLD, Intensity, IntensitySignal
from core.carbon.revision import is_guess, told_since
from core.errors import GreentuneError
from core.jobs import service, store
from core.jobs.database import Database
from core.jobs.records import Baseline, EnergyRecord, JobRecord

logger = logging.getLogger(__name__)

#: providers replace their estimates within days
MEMORY: Final = timedelta(days=3)


def revise(
    database: Database,
    signal: IntensitySignal,
    *,
    pue: float,
    embodied_g_per_hour: float | None,
    now: datetime,
) -> int:
    """Every job that works, or has ended within `MEMORY`; the number of samples that changed.

    The grid is asked outside of any transaction. A signal that is away leaves all as it is.
    """
    with database.read() as session:
        jobs = store.list_guessed_jobs(session, since=now - MEMORY)
    changed = sum(
        _revise_job(database, signal, job, pue=pue, embodied_g_per_hour=embodied_g_per_hour)
        for job in jobs
    )
    if changed:
        logger.info("%d energy samples were accounted again at actual intensities", changed)
    return changed


def _revise_job(
    database: Database,
    signal: IntensitySignal,
    job: JobRecord,
    *,
    pue: float,
    embodied_g_per_hour: float | None,
) -> int:
    with database.read() as session:
        rows = store.list_energy(session, job.id)
        attempts = store.list_attempts(session, job.id)
        overheads = store.list_overheads(session, job.id)
    zone = job.spec.green.zone or next((row.zone for row in rows if row.zone), WORLD)
    slots = _slots(signal, zone, [row for row in rows if is_guess(row)])
    revised: dict[int, EnergyRecord] = {}
    for index, row in enumerate(rows):
        told = told_since(row, slots) if row.zone in (None, zone) else None
        if told is not None:
            revised[index] = replace(row, zone=zone, **asdict(told))
    if not revised:
        return 0
    baseline = None
    if job.baseline is not None:
        anew = [revised.get(index, row) for index, row in enumerate(rows)]
        facts = JobFacts.of(job, pue=pue, embodied_g_per_hour=embodied_g_per_hour)
        against = compose(facts, anew, attempts, overheads, signal=signal).baseline
        if against is not None:
            baseline = Baseline(
                kind=against.kind,
                energy_j=against.effort.energy_j,
                emissions_g=against.emissions_g,
            )
    with database.transaction() as session:
        return service.revise_energy(session, job.id, list(revised.values()), baseline=baseline)


def _slots(
    signal: IntensitySignal, zone: str, rows: Sequence[EnergyRecord]
) -> tuple[Intensity, ...]:
    if not rows:
        return ()
    start, end = min(row.started_at for row in rows), max(row.ended_at for row in rows)
    try:
        return signal.series(zone, start, end)
    except GreentuneError as error:
        logger.warning("no actual intensities for %s yet: %s", zone, error)
        return ()
