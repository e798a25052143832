"""Stored samples at the intensities that the grid told later: totals and baseline follow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from core.carbon.intensity import Intensity
from core.errors import SignalUnavailable
from core.jobs import service, store
from core.jobs.database import Database, now
from core.jobs.records import Baseline, EnergyRecord, FirstIntensity, JobRecord, Progress
from core.units import JOULES_PER_KWH
from tests.integration.worker.conftest import TENANT, Jobs
from worker.revision import revise

# ahead of the submission, however late in a run of many tests that is: its baseline's hours
# reach over these minutes
T0 = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=2)
STEP = timedelta(minutes=1)


@dataclass
class Grid:
    """Tells ``values`` for the minutes since ``T0``; None: away."""

    values: list[float] | None

    def series(self, zone: str, start: datetime, end: datetime) -> tuple[Intensity, ...]:
        if self.values is None:
            raise SignalUnavailable("away")
        slots = [
            Intensity(
                value_g_per_kwh=value,
                zone=zone,
                source="meters of the grid",
                moment=T0 + n * STEP,
                until=T0 + (n + 1) * STEP,
            )
            for n, value in enumerate(self.values)
        ]
        return tuple(
            s.clipped(start, end) for s in slots if s.moment < end and s.until and s.until > start
        )

    def at(self, zone: str, moment: datetime) -> Intensity:
        raise NotImplementedError

    def forecast(self, zone: str, now: datetime, end: datetime) -> tuple[Intensity, ...]:
        raise NotImplementedError


def sample(minute: int, intensity: float | None, **options: object) -> EnergyRecord:
    fields: dict[str, object] = {
        "device": "cpu",
        "started_at": T0 + minute * STEP,
        "ended_at": T0 + (minute + 1) * STEP,
        "energy_j": 1000.0,
        "method": "rapl",
        "intensity_g_per_kwh": intensity,
        "intensity_kind": None if intensity is None else "average",
        "intensity_source": None if intensity is None else "a guess",
        "intensity_is_estimated": None if intensity is None else True,
        "zone": None if intensity is None else "DE",
    }
    return EnergyRecord(**(fields | options))  # type: ignore[arg-type]


ROWS = [
    sample(0, 300.0),
    sample(1, None),
    sample(2, 310.0, intensity_is_estimated=False, intensity_source="meters of the grid"),
    sample(3, 320.0),
]


@pytest.fixture
def job(database: Database, jobs: Jobs) -> JobRecord:
    """At work, metered at guesses; the grid's hours of its baseline are known by now."""
    job_id = jobs.submit()
    with database.transaction() as session:
        claim = service.claim(
            session, worker="w", now=now(session), lease_s=60, max_attempts=3, job_id=job_id
        )
        assert claim is not None
        service.record_energy(session, job_id, claim.fence, ROWS)
        progress = Progress(trained_tokens=10, spent_flops=1.0, full_flops=2.0)
        service.record_progress(session, job_id, claim.fence, progress)
        old = Baseline(kind="average", energy_j=1.0, emissions_g=1.0)
        service.set_baseline(session, job_id, claim.fence, old)
        return store.get_job(session, TENANT, job_id)


def account_again(database: Database, grid: Grid) -> int:
    return revise(database, grid, pue=1.0, embodied_g_per_hour=None, now=T0)


def test_guesses_follow_the_grid_and_their_first_values_are_kept(
    database: Database, job: JobRecord
) -> None:
    grid = Grid([100.0, 200.0, 999.0])
    assert account_again(database, grid) == 2
    assert account_again(database, grid) == 0, "once"
    with database.read() as session:
        rows = store.list_energy(session, job.id)
        after = store.get_job(session, TENANT, job.id)
        [attempt] = store.list_attempts(session, job.id)
    assert [row.intensity_g_per_kwh for row in rows] == [100.0, 200.0, 310.0, 320.0]
    first = FirstIntensity(
        intensity_g_per_kwh=300.0,
        intensity_kind="average",
        intensity_source="a guess",
        intensity_is_estimated=True,
    )
    unknown = FirstIntensity(
        intensity_g_per_kwh=None,
        intensity_kind=None,
        intensity_source=None,
        intensity_is_estimated=None,
    )
    assert [row.revised_from for row in rows] == [first, unknown, None, None]
    assert [replace(r, attempt=0, revised_from=None).energy_j for r in rows] == [1000.0] * 4
    grams = 1000 * (100 + 200 + 310 + 320) / JOULES_PER_KWH
    assert after.emissions_g == pytest.approx(grams)
    assert attempt.emissions_g == pytest.approx(grams)
    [part] = after.spent_by_kind
    assert (part.kind, part.energy_j) == ("average", 4000.0)
    assert part.emissions_g == pytest.approx(grams)
    assert after.energy_j == job.energy_j
    assert after.baseline is not None
    assert after.baseline.energy_j == pytest.approx(8000.0)

    # the last minute is told later; what was kept first stays
    assert account_again(database, Grid([100.0, 200.0, 999.0, 50.0])) == 1
    with database.read() as session:
        again = store.list_energy(session, job.id)
    assert again[:3] == rows[:3]
    assert again[3].intensity_g_per_kwh == 50.0


def test_a_grid_that_is_away_changes_nothing(database: Database, job: JobRecord) -> None:
    assert account_again(database, Grid(None)) == 0
    with database.read() as session:
        assert store.get_job(session, TENANT, job.id) == job


def test_jobs_that_ended_long_ago_are_left_alone(database: Database, job: JobRecord) -> None:
    with database.read() as session:
        assert [j.id for j in store.list_guessed_jobs(session, since=T0)] == [job.id]
    with database.transaction() as session:
        service.fail(session, job.id, job.fence, code="x", message="m", now=now(session))
    with database.read() as session:
        later = now(session) + timedelta(days=1)
        assert store.list_guessed_jobs(session, since=later) == ()
