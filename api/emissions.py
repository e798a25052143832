"""A job's emissions report out of the database."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from api.deps import Services
from core.carbon.account import EmissionsReport
from core.carbon.compose import JobFacts, compose
from core.carbon.evidence import Evidence, KeptSum
from core.jobs import store
from core.jobs.records import AttemptRecord, JobRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A job's report and what it was made of."""

    record: JobRecord
    attempts: tuple[AttemptRecord, ...]
    report: EmissionsReport
    evidence: Evidence


def story_of(
    session: Session, record: JobRecord, held: Services, *, are_merged: bool = False
) -> Story:
    """All that the database knows of the job's energy, up to now.

    Args:
        are_merged: add samples up where they lie: a few rows however long the job has run, without
            gaps and overheads.
    """
    settings = held.settings
    facts = JobFacts.of(record, pue=settings.pue, embodied_g_per_hour=settings.embodied_g_per_hour)
    attempts = store.list_attempts(session, record.id)
    overheads = store.list_overheads(session, record.id)
    report = compose(
        facts,
        (store.list_energy_merged if are_merged else store.list_energy)(session, record.id),
        attempts,
        overheads,
        signal=held.signal,
        are_merged=are_merged,
    )
    kept = _kept(record, attempts)
    evidence = Evidence.of(report, facts, overheads, kept)
    return Story(record=record, attempts=attempts, report=report, evidence=evidence)


def _kept(record: JobRecord, attempts: tuple[AttemptRecord, ...]) -> tuple[KeptSum, ...]:
    """None while a worker adds to them: rows and sums may then be read a moment apart."""
    if record.is_owned:
        return ()
    return (
        KeptSum(attempt=None, energy_j=record.energy_j, emissions_g=record.emissions_g),
        *(
            KeptSum(attempt=a.number, energy_j=a.energy_j, emissions_g=a.emissions_g)
            for a in attempts
        ),
    )
