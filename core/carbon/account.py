"""Joules times intensity: the emissions report of a job, and the baseline it is held against.

Conventions. Rows carry computing energy; the building's share is added once, by PUE (total energy
over computing energy, ISO/IEC 30134-2), to every gram and to the total, never to the rows.
Average and marginal intensities are summed apart. Energy without a usable intensity counts as
energy and is reported as such; it is never counted as 0 g.

Savings split, exact by construction (E energy, CI energy-weighted mean intensity, PUE on all):

    baseline - actual = (E_full - E_model) CI_submission      less work: rho
                      + (E_model - E_actual) CI_submission    fewer joules per FLOP than calibrated
                      + E_actual (CI_submission - CI_actual)  greener hours: shifting

with E_model = E_full x spent FLOPs / full FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from core.carbon.energy import MeteredRow, MeterGap, cut_at_slots
from core.carbon.intensity import Intensity
from core.units import emissions_g, joules_to_kwh

#: nvidia-smi's power error, +-5 % (arXiv 2312.02741); RAPL is no worse
MEASURED_ERROR = 0.05
#: a TDP model without counters: taken as right within a factor of two, both ways
ESTIMATED_FACTOR = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One run of the job on one worker, however it ended."""

    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None = None
    outcome: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """A time that went into something other than training steps, such as "selection"."""

    kind: str
    started_at: datetime
    ended_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Embodied:
    """The hardware's own footprint: M of ISO/IEC 21031:2024, by the hours that the job held it."""

    #: making, transport and disposal over the hours that the hardware is expected to serve
    g_per_hour: float
    hours: float

    @property
    def emissions_g(self) -> float:
        return self.g_per_hour * self.hours


@dataclass(frozen=True, slots=True, kw_only=True)
class FullEffort:
    """Full fine-tuning of the same steps on the same machine, modelled."""

    energy_j: float
    duration_s: float
    #: how it was modelled, for the report
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Full fine-tuning, started at submission; grams include PUE."""

    effort: FullEffort
    started_at: datetime
    intensity_g_per_kwh: float
    kind: str
    source: str
    emissions_g: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """Energy (computing) and grams (PUE included) of some rows of one kind of intensity."""

    name: str
    energy_j: float
    emissions_g: float
    methods: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """Grams against the baseline and where they come from; negative: spent more."""

    emissions_g: float
    share: float
    rho_g: float
    shifting_g: float
    efficiency_g: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EmissionsReport:
    """All figures of one job; `core.carbon.report` renders it. Energy is computing energy."""

    job_id: str
    zone: str
    pue: float
    attribution: str
    submitted_at: datetime
    rows: tuple[MeteredRow, ...]
    attempts: tuple[Attempt, ...]
    gaps: tuple[MeterGap, ...]
    stale: bool
    trained_tokens: int
    flops_share: float | None
    #: None: not known here, counted as 0 and said so
    embodied: Embodied | None

    total: Sum
    by_device: tuple[Sum, ...]
    by_attempt: tuple[Sum, ...]
    by_overhead: tuple[Sum, ...]
    #: kinds of intensity other than the leading one; not part of ``total.emissions_g``
    by_other_kind: tuple[Sum, ...]
    kind: str | None
    #: of all energy; grams are known for the rest
    unaccounted_j: float
    measured_share: float
    emissions_low_g: float
    emissions_high_g: float
    mean_intensity_g_per_kwh: float | None
    baseline: Baseline | None
    savings: Savings | None


def full_effort(
    *, energy_j: float, active_s: float, spent_flops: float, full_flops: float
) -> FullEffort:
    """Scaled from what this job used, as long as no calibration exists: energy and time are taken
    as proportional to FLOPs.
    """
    ratio = full_flops / spent_flops
    return FullEffort(
        energy_j=energy_j * ratio,
        duration_s=active_s * ratio,
        basis=f"metered energy x {ratio:.4g} (FLOPs of full fine-tuning over FLOPs spent)",
    )


def calibrated_effort(*, joules_per_step: float, s_per_step: float, steps: int) -> FullEffort:
    """From full steps measured on this machine at the start of the job."""
    return FullEffort(
        energy_j=joules_per_step * steps,
        duration_s=s_per_step * steps,
        basis=f"{joules_per_step:.4g} J per full step, measured on this machine, x {steps} steps",
    )


def baseline(
    effort: FullEffort, *, submitted_at: datetime, slots: Sequence[Intensity], pue: float
) -> Baseline:
    """``effort`` spent at constant power from ``submitted_at`` on.

    Args:
        slots: from ``submitted_at`` on, one kind, at least one; where they end early (the future is
            not known yet), the last value is held.
    """
    end = submitted_at + timedelta(seconds=effort.duration_s)
    covered = [p for p in cut_at_slots(submitted_at, end, slots) if p[2] is not None]
    covered_s = math.fsum((until - begin).total_seconds() for begin, until, _ in covered)
    weighted = math.fsum(
        (until - begin).total_seconds() * slot.value_g_per_kwh
        for begin, until, slot in covered
        if slot is not None
    )
    last = slots[-1]
    left_s = max(effort.duration_s - covered_s, 0.0)
    seconds = covered_s + left_s
    mean = (
        (weighted + left_s * last.value_g_per_kwh) / seconds
        if seconds > 0
        else last.value_g_per_kwh
    )
    return Baseline(
        effort=effort,
        started_at=submitted_at,
        intensity_g_per_kwh=mean,
        kind=last.kind,
        source=last.source,
        emissions_g=emissions_g(effort.energy_j * pue, mean),
    )


def report_emissions(
    *,
    job_id: str,
    zone: str,
    rows: Iterable[MeteredRow],
    submitted_at: datetime,
    pue: float = 1.0,
    attribution: str = "machine",
    attempts: Sequence[Attempt] = (),
    overheads: Sequence[Overhead] = (),
    gaps: Sequence[MeterGap] = (),
    against: Baseline | None = None,
    flops_share: float | None = None,
    trained_tokens: int = 0,
    embodied: Embodied | None = None,
    stale: bool = False,
) -> EmissionsReport:
    """Everything the report says, over all attempts.

    Args:
        rows: of all attempts, failed and cancelled ones included.
        pue: 1 or more.
        against: baseline of the same PUE; savings need it to be of the leading kind.
        flops_share: spent over full FLOPs, for the split of the savings.
        stale: the signal was older than its provider promises at some time.
    """
    ordered = tuple(sorted(rows, key=lambda r: (r.started_at, r.attempt, r.device)))
    kind = _leading_kind(ordered)
    leading = [r for r in ordered if r.intensity_kind == kind and kind is not None]
    total = _sum("total", ordered, kind, pue)
    energy_known_j = math.fsum(r.energy_j for r in leading)
    measured_j = math.fsum(r.energy_j for r in ordered if r.method != "estimate")
    low_g, high_g = _range(leading, pue)
    mean = total.emissions_g / (joules_to_kwh(energy_known_j) * pue) if energy_known_j else None
    return EmissionsReport(
        job_id=job_id,
        zone=zone,
        pue=pue,
        attribution=attribution,
        submitted_at=submitted_at,
        rows=ordered,
        attempts=tuple(attempts),
        gaps=tuple(gaps),
        stale=stale,
        trained_tokens=trained_tokens,
        flops_share=flops_share,
        embodied=embodied,
        total=total,
        by_device=_grouped(ordered, lambda r: r.device, kind, pue),
        by_attempt=_grouped(ordered, lambda r: str(r.attempt), kind, pue),
        by_overhead=_overheads(ordered, overheads, kind, pue),
        by_other_kind=_other_kinds(ordered, kind, pue),
        kind=kind,
        unaccounted_j=math.fsum(r.energy_j for r in ordered if r.intensity_g_per_kwh is None),
        measured_share=measured_j / total.energy_j if total.energy_j else 0.0,
        emissions_low_g=low_g,
        emissions_high_g=high_g,
        mean_intensity_g_per_kwh=mean,
        baseline=against,
        savings=_savings(total, mean, against, kind, flops_share),
    )


def _leading_kind(rows: Sequence[MeteredRow]) -> str | None:
    """The kind that covers most energy; "average" if equal."""
    kinds = {r.intensity_kind for r in rows if r.intensity_kind is not None}
    energy = {k: math.fsum(r.energy_j for r in rows if r.intensity_kind == k) for k in kinds}
    return max(sorted(kinds), key=lambda k: energy[k]) if kinds else None


def row_emissions_g(row: MeteredRow, kind: str | None, pue: float) -> float:
    """Grams of a row, PUE included; 0 for rows that this ``kind`` of sum leaves out."""
    if row.intensity_g_per_kwh is None or row.intensity_kind != kind:
        return 0.0
    return emissions_g(row.energy_j * pue, row.intensity_g_per_kwh)


def _sum(name: str, rows: Sequence[MeteredRow], kind: str | None, pue: float) -> Sum:
    return Sum(
        name=name,
        energy_j=math.fsum(r.energy_j for r in rows),
        emissions_g=math.fsum(row_emissions_g(r, kind, pue) for r in rows),
        methods=tuple(sorted({r.method for r in rows})),
    )


def _grouped(
    rows: Sequence[MeteredRow], key: Callable[[MeteredRow], str], kind: str | None, pue: float
) -> tuple[Sum, ...]:
    groups: dict[str, list[MeteredRow]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return tuple(_sum(name, groups[name], kind, pue) for name in sorted(groups))


def _other_kinds(rows: Sequence[MeteredRow], kind: str | None, pue: float) -> tuple[Sum, ...]:
    others = sorted(
        {r.intensity_kind for r in rows if r.intensity_kind not in (None, kind)} - {None}
    )
    return tuple(
        _sum(other, [r for r in rows if r.intensity_kind == other], other, pue)
        for other in others
        if other is not None
    )


def _overheads(
    rows: Sequence[MeteredRow], overheads: Sequence[Overhead], kind: str | None, pue: float
) -> tuple[Sum, ...]:
    """Energy of the rows in proportion to the time they share with each kind of overhead."""
    shares: dict[str, list[tuple[float, float]]] = {o.kind: [] for o in overheads}
    for overhead in overheads:
        for row in rows:
            both = min(row.ended_at, overhead.ended_at) - max(row.started_at, overhead.started_at)
            if both > timedelta(0):
                part = both / (row.ended_at - row.started_at)
                grams = row_emissions_g(row, kind, pue)
                shares[overhead.kind].append((row.energy_j * part, grams * part))
    return tuple(
        Sum(
            name=name,
            energy_j=math.fsum(energy for energy, _ in found),
            emissions_g=math.fsum(grams for _, grams in found),
        )
        for name, found in sorted(shares.items())
    )


def _range(rows: Sequence[MeteredRow], pue: float) -> tuple[float, float]:
    """Grams if every meter erred low, and if every one erred high."""
    low, high = [], []
    for row in rows:
        grams = row_emissions_g(row, row.intensity_kind, pue)
        estimated = row.method == "estimate"
        low.append(grams / ESTIMATED_FACTOR if estimated else grams * (1 - MEASURED_ERROR))
        high.append(grams * ESTIMATED_FACTOR if estimated else grams * (1 + MEASURED_ERROR))
    return math.fsum(low), math.fsum(high)


def _savings(
    total: Sum,
    mean_g_per_kwh: float | None,
    against: Baseline | None,
    kind: str | None,
    flops_share: float | None,
) -> Savings | None:
    if against is None or mean_g_per_kwh is None or against.kind != kind:
        return None
    if against.emissions_g <= 0 or total.energy_j <= 0:
        return None
    g_per_joule = against.emissions_g / against.effort.energy_j
    share = total.energy_j / against.effort.energy_j if flops_share is None else flops_share
    model_j = against.effort.energy_j * share
    saved_g = against.emissions_g - total.emissions_g
    rho_g = (against.effort.energy_j - model_j) * g_per_joule
    efficiency_g = (model_j - total.energy_j) * g_per_joule
    return Savings(
        emissions_g=saved_g,
        share=saved_g / against.emissions_g,
        rho_g=rho_g,
        efficiency_g=efficiency_g,
        shifting_g=saved_g - rho_g - efficiency_g,
    )
