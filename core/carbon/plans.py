"""What is asked of the planner and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from core.carbon.rho import RhoDecision
from core.errors import InvalidInput
from core.units import SECONDS_PER_HOUR, SECONDS_PER_MINUTE, joules_to_wh

Schedule = Literal["now", "green"]
Missing = Literal["time", "grams", "energy"]

#: minima of a noisy forecast are biased low, so a budget is planned for with so much in hand
RESERVE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the caller asked for; None: no such bound.

    Args:
        schedule: "now", or "green": wait for and pause between greener hours.
        rho: fixed share, or None: chosen (budget, floor or rule).
        quality_floor: least expected quality share, 0..1.
        budget_g, budget_j: of the whole job, PUE included in the grams.
        may_suspend: False: one contiguous run.
        reserve: share of the planned grams kept in hand against the forecast's bias.
    """

    schedule: Schedule = "green"
    earliest_start: datetime | None = None
    deadline: datetime | None = None
    rho: float | None = None
    quality_floor: float | None = None
    budget_g: float | None = None
    budget_j: float | None = None
    may_suspend: bool = True
    pue: float = 1.0
    reserve: float = RESERVE

    def __post_init__(self) -> None:
        if self.rho is not None and not 0 < self.rho <= 1:
            raise InvalidInput(f"rho must be in (0, 1]; got {self.rho}.", param="green.rho")
        if self.quality_floor is not None and not 0 < self.quality_floor <= 1:
            raise InvalidInput(f"A quality floor must be in (0, 1]; got {self.quality_floor}.")
        for name in ("budget_g", "budget_j"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidInput(f"{name} must be above 0; got {value}.", param=f"green.{name}")

    @property
    def has_budget(self) -> bool:
        return self.budget_g is not None or self.budget_j is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A time to train in, without a pause."""

    start: datetime
    end: datetime
    intensity_g_per_kwh: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Hours and rho for the work that is left; energy and grams of that work, PUE in the grams."""

    made_at: datetime
    rho: float
    stretches: tuple[Stretch, ...]
    energy_j: float
    emissions_g: float
    quality: float
    dirtiest_g_per_kwh: float
    objective: str
    kind: str
    zone: str
    source: str
    decision: RhoDecision | None = None

    @property
    def start(self) -> datetime:
        return self.stretches[0].start

    @property
    def finish(self) -> datetime:
        return self.stretches[-1].end

    def next_start(self, moment: datetime) -> datetime | None:
        """When to run again, ``moment`` itself if it does now; None when the plan is over."""
        later = [max(s.start, moment) for s in self.stretches if s.end > moment]
        return min(later, default=None)

    def to_dict(self) -> dict[str, Any]:
        """For events and the API: plain JSON types."""
        return {
            "made_at": self.made_at.isoformat(),
            "rho": self.rho,
            "start": self.start.isoformat(),
            "finish": self.finish.isoformat(),
            "stretches": [
                [s.start.isoformat(), s.end.isoformat(), round(s.intensity_g_per_kwh, 3)]
                for s in self.stretches
            ],
            "energy_wh": joules_to_wh(self.energy_j),
            "co2e_g": self.emissions_g,
            "quality": self.quality,
            "objective": self.objective,
            "kind": self.kind,
            "zone": self.zone,
            "source": self.source,
            "decision": None if self.decision is None else self.decision.to_dict(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Infeasible:
    """No plan: what is missing and by how much (s, g or J); `core.carbon.offers` finds ways out."""

    missing: Missing
    needed: float
    available: float
    message: str


def no_time(needed_s: float, available_s: float) -> Infeasible:
    unit, form, one_s = ("h", ".2f", SECONDS_PER_HOUR)
    if needed_s < SECONDS_PER_HOUR:
        unit, form, one_s = ("min", ".1f", SECONDS_PER_MINUTE)
    needed, available = needed_s / one_s, available_s / one_s
    return Infeasible(
        missing="time",
        needed=needed_s,
        available=available_s,
        message=f"The work takes {needed:{form}} {unit} and {available:{form}} {unit} are left "
        f"until the deadline: {needed - available:{form}} {unit} are missing.",
    )


def no_budget(missing: Missing, needed: float, left: float, *, pue: float) -> Infeasible:
    """Said as the caller counts: grams with the reserve in them, Wh with the building's share."""
    said, unit, scale = "g, reserve included,", "g", 1.0
    if missing == "energy":
        said, unit, scale = "Wh", "Wh", joules_to_wh(pue)
    return Infeasible(
        missing=missing,
        needed=needed,
        available=left,
        message=f"The work needs {needed * scale:.4g} {said} and "
        f"{max(left, 0.0) * scale:.4g} {unit} of the budget are left.",
    )
