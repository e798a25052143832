"""Joules times intensity: the sums of a job's emissions report.

Conventions. Rows carry computing energy; the building's share is added once, by PUE (total energy
over computing energy, ISO/IEC 30134-2), to every gram and to the total, never to the rows.
Average and marginal intensities are summed apart. Energy without a usable intensity counts as
energy and is reported as such; it is never counted as 0 g.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from core.carbon.baseline import Baseline, Savings, savings
from core.carbon.energy import MeteredRow, MeterGap, Span, during
from core.carbon.held_out import HeldOut
from core.carbon.intensity import STAND_IN
from core.units import emissions_g, joules_to_kwh

#: nvidia-smi's power error, +-5 % (arXiv 2312.02741); RAPL is no worse
MEASURED_ERROR = 0.05
#: a TDP model without counters: taken as right within a factor of two, both ways
ESTIMATED_FACTOR = 2.0


class AttemptRow(Protocol):
    """One run of the job on one worker, however it ended (`core.jobs` stores the like)."""

    @property
    def number(self) -> int: ...
    @property
    def worker(self) -> str: ...
    @property
    def started_at(self) -> datetime: ...
    @property
    def ended_at(self) -> datetime | None: ...
    @property
    def outcome(self) -> str | None: ...
    @property
    def attribution(self) -> str | None:
        """Whose energy its samples are (`core.carbon.energy`); None: not recorded."""
        ...


class OverheadRow(Span, Protocol):
    """A time that went into something other than training steps (`core.jobs` stores the like), of a
    kind such as "selection".
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An `AttemptRow` of our own."""

    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None = None
    outcome: str | None = None
    attribution: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """An `OverheadRow` of our own."""

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
class Sum:
    """Energy (computing) and grams (PUE included) of some rows of one kind of intensity."""

    name: str
    energy_j: float
    emissions_g: float
    methods: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EmissionsReport:
    """All figures of one job; `core.carbon.report` renders it. Energy is computing energy."""

    job_id: str
    zone: str
    pue: float
    #: whose energy the samples are: that of all attempts, "mixed", or None: not recorded
    attribution: str | None
    submitted_at: datetime
    rows: tuple[MeteredRow, ...]
    attempts: tuple[AttemptRow, ...]
    gaps: tuple[MeterGap, ...]
    #: the signal was away for so long at some time that an older value had to stand in
    stale: bool
    trained_tokens: int
    flops_share: float | None
    #: None: not known here, counted as 0 and said so
    embodied: Embodied | None
    #: None: nothing was evaluated
    held_out: HeldOut | None

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
    #: rows accounted again since, and what the total was before that
    n_revised: int
    first_emissions_g: float
    baseline: Baseline | None
    savings: Savings | None


def report_emissions(
    *,
    job_id: str,
    zone: str,
    rows: Iterable[MeteredRow],
    submitted_at: datetime,
    pue: float = 1.0,
    attempts: Sequence[AttemptRow] = (),
    overheads: Sequence[OverheadRow] = (),
    gaps: Sequence[MeterGap] = (),
    against: Baseline | None = None,
    flops_share: float | None = None,
    trained_tokens: int = 0,
    embodied: Embodied | None = None,
    held_out: HeldOut | None = None,
) -> EmissionsReport:
    """Everything the report says, over all attempts.

    Args:
        rows: of all attempts, failed and cancelled ones included.
        pue: 1 or more.
        against: baseline of the same PUE; savings need it to be of the leading kind.
        flops_share: spent over full FLOPs, for the split of the savings.
    """
    ordered = tuple(sorted(rows, key=lambda r: (r.started_at, r.attempt, r.device)))
    kind = leading_kind(ordered)
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
        attribution=_attribution(attempts),
        submitted_at=submitted_at,
        rows=ordered,
        attempts=tuple(attempts),
        gaps=tuple(gaps),
        stale=any(STAND_IN in (r.intensity_source or "") for r in ordered),
        trained_tokens=trained_tokens,
        flops_share=flops_share,
        embodied=embodied,
        held_out=held_out,
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
        n_revised=sum(r.revised_from is not None for r in ordered),
        first_emissions_g=math.fsum(_first_g(r, kind, pue) for r in ordered),
        baseline=against,
        savings=None
        if against is None or mean is None or against.kind != kind
        else savings(
            against,
            energy_j=total.energy_j,
            spent_g=total.emissions_g,
            flops_share=flops_share,
        ),
    )


def _attribution(attempts: Sequence[AttemptRow]) -> str | None:
    found = {a.attribution for a in attempts}
    return "mixed" if len(found) > 1 else next(iter(found), None)


def leading_kind(rows: Sequence[MeteredRow]) -> str | None:
    """The kind that covers most energy; "average" if equal."""
    kinds = {r.intensity_kind for r in rows if r.intensity_kind is not None}
    energy = {k: math.fsum(r.energy_j for r in rows if r.intensity_kind == k) for k in kinds}
    return max(sorted(kinds), key=lambda k: energy[k]) if kinds else None


def row_emissions_g(row: MeteredRow, kind: str | None, pue: float) -> float:
    """Grams of a row, PUE included; 0 for rows that this ``kind`` of sum leaves out."""
    if row.intensity_g_per_kwh is None or row.intensity_kind != kind:
        return 0.0
    return emissions_g(row.energy_j * pue, row.intensity_g_per_kwh)


def _first_g(row: MeteredRow, kind: str | None, pue: float) -> float:
    """As `row_emissions_g`, at what the row was accounted at first."""
    first = row if row.revised_from is None else row.revised_from
    if first.intensity_g_per_kwh is None or first.intensity_kind != kind:
        return 0.0
    return emissions_g(row.energy_j * pue, first.intensity_g_per_kwh)


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
    rows: Sequence[MeteredRow], overheads: Sequence[OverheadRow], kind: str | None, pue: float
) -> tuple[Sum, ...]:
    """Energy of the rows in proportion to the time they share with each kind of overhead."""
    shares: dict[str, list[tuple[float, float]]] = {o.kind: [] for o in overheads}
    for overhead, row, part in during(rows, overheads):
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
