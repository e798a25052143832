"""The one place where a job's emissions report comes together: stored rows, the job's facts and the
grid's intensity in, the report out. The API, the worker and `greentune run` all come here, so that
the same rows give the same figures to the last digit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Protocol, Self

from core.carbon.account import (
    AttemptRow,
    Embodied,
    EmissionsReport,
    OverheadRow,
    leading_kind,
    report_emissions,
)
from core.carbon.baseline import (
    Baseline,
    FullCost,
    FullEffort,
    baseline,
    calibrated_effort,
    modelled_effort,
)
from core.carbon.coverage import uncovered
from core.carbon.energy import MeteredRow
from core.carbon.held_out import HeldOut
from core.carbon.intensity import WORLD, Intensity, IntensitySignal
from core.errors import GreentuneError
from core.spec import JobSpec
from core.units import SECONDS_PER_HOUR

#: overheads whose FLOPs are among those spent
GOES_WITH_FLOPS: Final = frozenset({"selection"})


class Progressed(Protocol):
    """How far a job has come."""

    @property
    def trained_tokens(self) -> int: ...
    @property
    def spent_flops(self) -> float: ...
    @property
    def full_flops(self) -> float: ...


class JobRow(Protocol):
    """A stored job (`core.jobs` has the like)."""

    @property
    def id(self) -> str: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def spec(self) -> JobSpec: ...
    @property
    def progress(self) -> Progressed: ...
    @property
    def full_cost(self) -> FullCost | None: ...
    @property
    def held_out(self) -> HeldOut | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """What a report needs to know of a job beside its samples.

    Args:
        submitted_at: aware UTC.
        zone: that the job named; None: where its samples say they were taken.
        pue: 1 or more.
        spent_flops, full_flops: so far, and full fine-tuning's for the same steps.
        full_cost: full fine-tuning as it was measured; None: never was.
        embodied_g_per_hour: the hardware's own footprint; None: not known.
        held_out: quality before and after training; None: nothing was evaluated.
    """

    job_id: str
    submitted_at: datetime
    zone: str | None
    pue: float = 1.0
    trained_tokens: int = 0
    spent_flops: float = 0.0
    full_flops: float = 0.0
    full_cost: FullCost | None = None
    embodied_g_per_hour: float | None = None
    held_out: HeldOut | None = None

    @classmethod
    def of(cls, job: JobRow, *, pue: float, embodied_g_per_hour: float | None) -> Self:
        return cls(
            job_id=job.id,
            submitted_at=job.created_at,
            zone=job.spec.green.zone,
            pue=pue,
            trained_tokens=job.progress.trained_tokens,
            spent_flops=job.progress.spent_flops,
            full_flops=job.progress.full_flops,
            full_cost=job.full_cost,
            embodied_g_per_hour=embodied_g_per_hour,
            held_out=job.held_out,
        )


def compose(
    job: JobFacts,
    rows: Sequence[MeteredRow],
    attempts: Sequence[AttemptRow],
    overheads: Sequence[OverheadRow] = (),
    *,
    signal: IntensitySignal,
    are_merged: bool = False,
) -> EmissionsReport:
    """Everything spent so far, over all attempts, beside full fine-tuning started at submission.

    Args:
        rows: all of the job's.
        attempts: all of the job's.
        overheads: times that went into something other than training steps.
        signal: for the baseline; rows carry their own intensities.
        are_merged: ``rows`` are sums of samples: holes between them, and what overheads used,
            cannot be told.
    """
    zone = job.zone or next((row.zone for row in rows if row.zone), WORLD)
    hours = held(attempts, rows).total_seconds() / SECONDS_PER_HOUR
    has_flops = job.spent_flops > 0 and job.full_flops > 0
    effort = _effort(job, rows, attempts, overheads)
    return report_emissions(
        job_id=job.job_id,
        zone=zone,
        rows=rows,
        submitted_at=job.submitted_at,
        pue=job.pue,
        attempts=attempts,
        overheads=() if are_merged else overheads,
        gaps=() if are_merged else uncovered(rows, attempts),
        against=None
        if effort is None
        else _baseline(job, effort, zone, signal, kind=leading_kind(rows)),
        flops_share=job.spent_flops / job.full_flops if has_flops else None,
        trained_tokens=job.trained_tokens,
        embodied=None
        if job.embodied_g_per_hour is None
        else Embodied(g_per_hour=job.embodied_g_per_hour, hours=hours),
        held_out=job.held_out,
    )


def held(attempts: Sequence[AttemptRow], rows: Sequence[MeteredRow]) -> timedelta:
    """How long hardware was held: every attempt from its start to its last sample, or to its end
    where it has none. Not to its end always: a report that is part of the result is written just
    before that, and must not say something else afterwards. One that has neither counts nothing.
    """
    last: dict[int, datetime] = {}
    for row in rows:
        last[row.attempt] = max(row.ended_at, last.get(row.attempt, row.ended_at))
    spans = (last.get(a.number, a.ended_at or a.started_at) - a.started_at for a in attempts)
    return sum((max(span, timedelta(0)) for span in spans), timedelta(0))


def fixed_s(overheads: Sequence[OverheadRow]) -> float:
    """Seconds that full fine-tuning takes as well, whatever its FLOPs."""
    fixed = [o.ended_at - o.started_at for o in overheads if o.kind not in GOES_WITH_FLOPS]
    return sum(fixed, timedelta(0)).total_seconds()


def _effort(
    job: JobFacts,
    rows: Sequence[MeteredRow],
    attempts: Sequence[AttemptRow],
    overheads: Sequence[OverheadRow],
) -> FullEffort | None:
    """None while nothing was spent."""
    energy_j = math.fsum(row.energy_j for row in rows)
    if energy_j <= 0:
        return None
    if job.full_cost is not None and job.trained_tokens > 0:
        return calibrated_effort(job.full_cost, job.trained_tokens)
    if job.spent_flops <= 0 or job.full_flops <= 0:
        return None
    active_s = held(attempts, rows).total_seconds()
    return modelled_effort(
        energy_j=energy_j,
        active_s=active_s,
        spent_flops=job.spent_flops,
        full_flops=job.full_flops,
        # an overhead may end after the last sample
        fixed_s=min(fixed_s(overheads), active_s),
    )


def _baseline(
    job: JobFacts,
    effort: FullEffort,
    zone: str,
    signal: IntensitySignal,
    *,
    kind: str | None,
) -> Baseline | None:
    """None where the grid's intensity at submission is not known.

    Args:
        kind: of the job's own grams, which the baseline is compared with.
    """
    start = job.submitted_at
    # at least one slot, whatever the length
    end = start + timedelta(seconds=max(effort.duration_s, 1.0))
    try:
        slots = signal.series(zone, start, end)
    except GreentuneError:
        return None
    return baseline(effort, submitted_at=start, slots=of_one_kind(slots, kind), pue=job.pue)


def of_one_kind(slots: Sequence[Intensity], kind: str | None) -> tuple[Intensity, ...]:
    """Adjoining slots of one kind: a marginal provider that was away has averages stand in, and the
    two are never mixed in one mean. The value before (the one after, at the beginning) is held.

    Args:
        slots: adjoining, at least one.
        kind: that is wanted; where no slot has it, the last one's.
    """
    found = {slot.kind for slot in slots}
    chosen = kind if kind in found else slots[-1].kind
    kept = [slot for slot in slots if slot.kind == chosen]
    kept[0] = replace(kept[0], moment=slots[0].moment)
    ends = [*(slot.moment for slot in kept[1:]), slots[-1].until]
    return tuple(replace(slot, until=end) for slot, end in zip(kept, ends, strict=True))
