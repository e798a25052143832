"""Rows, slots and a whole report to test with: by hand where it matters."""

import dataclasses
from datetime import UTC, datetime, timedelta

from core.carbon.account import Attempt, Overhead, report_emissions
from core.carbon.compose import JobFacts, compose
from core.carbon.energy import EnergySample, MeteredEnergy
from core.carbon.evidence import Evidence
from core.carbon.intensity import Intensity

T0 = datetime(2026, 5, 1, 8, tzinfo=UTC)
HOUR = timedelta(hours=1)
KWH_J = 3_600_000.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Full fine-tuning as measured."""

    s_per_token: float
    j_per_token: float
    measured_by: str = "job"


@dataclasses.dataclass(frozen=True)
class Grid:
    """A signal of given slots."""

    slots: list[Intensity]

    def at(self, zone, moment):
        raise NotImplementedError

    forecast = at

    def series(self, zone, start, end):
        return tuple(
            s.clipped(start, end) for s in self.slots if s.moment < end and s.until > start
        )


def at(hours: float) -> datetime:
    return T0 + hours * HOUR


def slot(value, begin, end, kind="average"):
    return Intensity(
        value_g_per_kwh=value, zone="XX", kind=kind, source="s", moment=at(begin), until=at(end)
    )


def sample(begin, end, energy_j, device="cpu", method="rapl"):
    return EnergySample(
        started_at=at(begin), ended_at=at(end), device=device, energy_j=energy_j, method=method
    )


def row(begin, end, kwh, intensity=None, *, device="cpu", method="rapl", kind="average", attempt=1):
    return MeteredEnergy(
        device=device,
        started_at=at(begin),
        ended_at=at(end),
        energy_j=kwh * KWH_J,
        method=method,
        intensity_g_per_kwh=intensity,
        intensity_kind=None if intensity is None else kind,
        intensity_source=None if intensity is None else "test",
        intensity_is_estimated=None if intensity is None else False,
        zone="XX",
        attempt=attempt,
    )


def report(rows, **options):
    return report_emissions(job_id="ftjob-1", zone="XX", rows=rows, submitted_at=T0, **options)


OVERHEADS = [
    Overhead(kind="selection", started_at=at(0.0101), ended_at=at(0.0233)),
    Overhead(kind="selection", started_at=at(0.5), ended_at=at(0.51)),
    Overhead(kind="preparation", started_at=at(0.001), ended_at=at(0.0101)),
]


ATTEMPTS = [
    Attempt(
        number=1,
        worker="w<1>",
        started_at=T0,
        ended_at=at(1.25),
        outcome="held",
        attribution="machine",
    ),
    Attempt(number=2, worker="w2", started_at=at(1.249), ended_at=at(3), attribution="process"),
]


def full_report(count=1800, cost=None):
    """A job of two attempts with the baseline's hours in three slots: (report, evidence)."""
    rows = [
        row(
            i / 720,
            (i + 1) / 720,
            0.0001 + i * 1e-7,
            200 + i // 100,
            device=device,
            attempt=1 + i // (count // 2),
        )
        for i in range(count)
        for device in ("cpu", "gpu")
        if i != 20
    ]
    facts = JobFacts(
        job_id="ftjob-1",
        submitted_at=T0,
        zone="XX",
        pue=1.13,
        trained_tokens=64_000,
        spent_flops=3.3e12,
        full_flops=7.7e12,
        full_cost=cost,
        embodied_g_per_hour=3.5,
    )
    grid = Grid([slot(333.3, 0, 1.01), slot(250.7, 1.01, 2.02), slot(410.1, 2.02, 4.5)])
    told = compose(facts, rows, ATTEMPTS, OVERHEADS, signal=grid)
    return told, Evidence.of(told, facts, OVERHEADS)


CALIBRATED = Cost(s_per_token=0.2111, j_per_token=17.77, measured_by="machine")
