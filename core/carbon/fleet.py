"""Many jobs together: what they have spent and emitted in a time range, and saved.

Average and marginal grams are never added: each kind of intensity has lines and a total of its own,
and so has energy without a usable intensity, whose grams are not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from core.carbon.energy import MeteredRow
from core.units import joules_to_wh


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """One job's energy in the time range, of one zone and one kind of intensity."""

    job_id: str
    #: what the job is grouped by, such as zone and model
    group: tuple[str | None, ...]
    #: None: energy without a usable intensity
    kind: str | None
    #: computing energy
    energy_j: float
    measured_j: float
    #: without the building's share
    emissions_g: float
    #: of the job with this kind of intensity, in the range or not: the baseline's whole
    all_time_j: float
    #: modelled full fine-tuning of the whole job, PUE included; None: none of this kind
    baseline_g: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLine:
    """One group, one kind of intensity. Energy is computing energy; grams include PUE."""

    group: tuple[str | None, ...]
    kind: str | None
    pue: float
    jobs: int
    energy_j: float
    measured_j: float
    emissions_g: float
    #: jobs with a baseline, its share for the time range, and what these very jobs emitted
    compared_jobs: int
    baseline_g: float
    compared_g: float

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain JSON types. Energy includes PUE; grams are null where no intensity is known."""
        saved_g = self.baseline_g - self.compared_g
        share = saved_g / self.baseline_g if self.baseline_g > 0 else None
        return {
            **dict(zip(names, self.group, strict=True)),
            "kind": self.kind,
            "jobs": self.jobs,
            "energy_wh": joules_to_wh(self.energy_j * self.pue),
            "measured_share": self.measured_j / self.energy_j if self.energy_j > 0 else None,
            "co2e_g": None if self.kind is None else self.emissions_g,
            "baseline": {"jobs": self.compared_jobs, "co2e_g": self.baseline_g}
            if self.compared_jobs
            else None,
            "savings": {"co2e_g": saved_g, "share": share} if self.compared_jobs else None,
        }


def fleet_report(spent: Iterable[Spent], *, pue: float = 1.0) -> tuple[FleetLine, ...]:
    """Lines by group and kind. What spent nothing is no line and no job.

    A job's baseline counts with the share of the job's energy that lies in the line; jobs without
    one (not finished, failed, or another kind of intensity) are in the energy and the grams, and
    in neither side of the savings.
    """
    groups: dict[tuple[tuple[str, ...], str], list[Spent]] = {}
    for part in spent:
        if part.energy_j > 0:
            key = (tuple(value or "" for value in part.group), part.kind or "")
            groups.setdefault(key, []).append(part)
    return tuple(_line(groups[key], pue) for key in sorted(groups))


def _line(parts: Sequence[Spent], pue: float) -> FleetLine:
    compared = [part for part in parts if part.baseline_g is not None]
    return FleetLine(
        group=parts[0].group,
        kind=parts[0].kind,
        pue=pue,
        jobs=len({part.job_id for part in parts}),
        energy_j=math.fsum(part.energy_j for part in parts),
        measured_j=math.fsum(part.measured_j for part in parts),
        emissions_g=math.fsum(part.emissions_g for part in parts) * pue,
        compared_jobs=len({part.job_id for part in compared}),
        baseline_g=math.fsum(
            part.baseline_g * part.energy_j / part.all_time_j
            for part in compared
            if part.baseline_g is not None
        ),
        compared_g=math.fsum(part.emissions_g for part in compared) * pue,
    )


def share_inside(row: MeteredRow, start: datetime, end: datetime) -> float:
    """Share of the row's time inside the range, 0..1."""
    both = min(row.ended_at, end) - max(row.started_at, start)
    return both / (row.ended_at - row.started_at) if both > timedelta(0) else 0.0
