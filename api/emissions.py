"""A job's rows and the grid's intensity, brought together into its emissions report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from core.carbon import account
from core.carbon.account import EmissionsReport, Overhead
from core.carbon.energy import MeteredEnergy, MeteredRow, MeterGap
from core.carbon.report import stamp
from core.carbon.signal import WORLD, IntensitySignal
from core.errors import InvalidInput, SignalUnavailable
from core.jobs.records import AttemptRecord, EnergyRecord, JobRecord
from core.units import SECONDS_PER_HOUR


def report_of(
    record: JobRecord,
    attempts: Sequence[AttemptRecord],
    energy: Sequence[EnergyRecord],
    *,
    signal: IntensitySignal,
    pue: float,
    now: datetime,
    overheads: Sequence[Overhead] = (),
    gaps: Sequence[MeterGap] = (),
    embodied_g_per_hour: float | None = None,
) -> EmissionsReport:
    """Everything spent so far, over all attempts, beside full fine-tuning started at submission.

    Args:
        record: the job.
        attempts: all of the job's.
        energy: all of the job's, merged or not.
        signal: for the baseline; the energy rows carry their own intensities.
        pue: 1 or more.
        now: aware UTC; where attempts that still run are cut.
        overheads: times that went into something other than training steps.
        gaps: times that were not metered.
        embodied_g_per_hour: the hardware's own footprint; None: not known.
    """
    hours = _active(attempts, now).total_seconds() / SECONDS_PER_HOUR
    return account.report_emissions(
        job_id=record.id,
        zone=record.spec.green.zone or WORLD,
        rows=energy,
        submitted_at=record.created_at,
        pue=pue,
        attempts=[attempt_of(attempt) for attempt in attempts],
        overheads=overheads,
        gaps=gaps,
        embodied=None
        if embodied_g_per_hour is None
        else account.Embodied(g_per_hour=embodied_g_per_hour, hours=hours),
        against=_baseline(record, attempts, energy, signal=signal, pue=pue, now=now),
        flops_share=record.progress.rho_measured,
        trained_tokens=record.progress.trained_tokens,
    )


def _baseline(
    record: JobRecord,
    attempts: Sequence[AttemptRecord],
    energy: Sequence[EnergyRecord],
    *,
    signal: IntensitySignal,
    pue: float,
    now: datetime,
) -> account.Baseline | None:
    """None while nothing was spent, or where the grid's intensity at submission is not known."""
    progress = record.progress
    if not energy or progress.spent_flops <= 0 or progress.full_flops <= 0:
        return None
    effort = account.full_effort(
        energy_j=sum(row.energy_j for row in energy),
        active_s=_active(attempts, now).total_seconds(),
        spent_flops=progress.spent_flops,
        full_flops=progress.full_flops,
    )
    start = record.created_at
    # at least one slot, whatever the length
    end = start + timedelta(seconds=max(effort.duration_s, 1.0))
    try:
        slots = signal.series(record.spec.green.zone or WORLD, start, end)
    except (SignalUnavailable, InvalidInput):
        return None
    return account.baseline(effort, submitted_at=start, slots=slots, pue=pue)


def _active(attempts: Sequence[AttemptRecord], now: datetime) -> timedelta:
    return sum(((a.ended_at or now) - a.started_at for a in attempts), timedelta(0))


def samples_out(rows: Sequence[MeteredRow]) -> list[dict[str, Any]]:
    """The rows as they are stored, to the last bit; `samples_in` reads them."""
    return [
        {
            "attempt": row.attempt,
            "device": row.device,
            "started_at": stamp(row.started_at),
            "ended_at": stamp(row.ended_at),
            "energy_j": row.energy_j,
            "method": row.method,
            "intensity_g_per_kwh": row.intensity_g_per_kwh,
            "intensity_kind": row.intensity_kind,
            "intensity_source": row.intensity_source,
            "intensity_is_estimated": row.intensity_is_estimated,
            "zone": row.zone,
        }
        for row in rows
    ]


def samples_in(samples: Sequence[Mapping[str, Any]]) -> list[MeteredEnergy]:
    return [MeteredEnergy(**(dict(sample) | _moments(sample))) for sample in samples]


def overheads_out(overheads: Sequence[Overhead]) -> list[dict[str, Any]]:
    return [
        {"kind": o.kind, "started_at": stamp(o.started_at), "ended_at": stamp(o.ended_at)}
        for o in overheads
    ]


def overheads_in(spans: Sequence[Mapping[str, Any]]) -> list[Overhead]:
    return [Overhead(kind=span["kind"], **_moments(span)) for span in spans]


def _moments(body: Mapping[str, Any]) -> dict[str, datetime]:
    return {name: datetime.fromisoformat(body[name]) for name in ("started_at", "ended_at")}


def attempt_of(attempt: AttemptRecord) -> account.Attempt:
    return account.Attempt(
        number=attempt.number,
        worker=attempt.worker,
        started_at=attempt.started_at,
        ended_at=attempt.ended_at,
        outcome=attempt.outcome,
    )
