"""What a job would cost before it is submitted: rho against start, and what is worth choosing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from core.carbon.intensity import Intensity
from core.carbon.planner import (
    DEFAULT_SLACK,
    Infeasible,
    Plan,
    QualityCurve,
    Wish,
    Work,
    plan,
)
from core.units import joules_to_wh

DEFAULT_RHOS = (0.35, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)
DEFAULT_START_HOURS = (0.0, 3.0, 6.0, 12.0, 18.0, 24.0)
_HAIR = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to run the job. Grams include PUE."""

    rho: float
    #: "now": in one go from ``start`` on; "green": the planner's own hours until the deadline
    schedule: str
    start: datetime
    finish: datetime
    #: of training only, pauses excluded
    duration_s: float
    energy_j: float
    emissions_g: float
    quality: float
    #: no other option is at least as good in grams, finish and quality, and better in one
    on_front: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A table of options, cheapest rho first; ``full_now`` is what they are compared with."""

    made_at: datetime
    options: tuple[Option, ...]
    full_now: Option
    kind: str
    zone: str
    source: str
    #: rho and starts that do not fit the deadline; 0 without one
    left_out: int
    #: values of rho that were asked for and are below the lowest feasible one
    rho_too_low: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "object": "green.estimate",
            "made_at": self.made_at.isoformat(),
            "zone": self.zone,
            "kind": self.kind,
            "source": self.source,
            "full_now": _plain(self.full_now, self.full_now),
            "options": [_plain(option, self.full_now) for option in self.options],
            "left_out": self.left_out,
            "rho_too_low": list(self.rho_too_low),
        }


def estimate(
    work: Work,
    forecast: Sequence[Intensity],
    now: datetime,
    *,
    rhos: Sequence[float] = DEFAULT_RHOS,
    start_hours: Sequence[float] = DEFAULT_START_HOURS,
    deadline: datetime | None = None,
    pue: float = 1.0,
    quality: QualityCurve | None = None,
) -> Estimate:
    """Every rho at every start, and in the planner's own hours; with a deadline, those that fit it.

    Args:
        work: the whole job; rhos below its ``rho_min`` are left out, and named.
        forecast: adjoining slots from ``now`` on; beyond its end its last day repeats.
        start_hours: from now, 0 or more.
        deadline: bounds every option; None: none of the starts, and the planner's own hours a day
            after the work at full effort, begun now, would end.
    """
    curve = quality or QualityCurve()
    longest = timedelta(seconds=work.duration_s(1.0) + work.suspend_s)
    until = deadline or now + longest + DEFAULT_SLACK
    begins = [now + timedelta(hours=hours) for hours in start_hours]
    base = Wish(schedule="now", pue=pue)
    wishes = [
        wish
        for rho in sorted({r for r in rhos if r >= work.rho_min})
        for wish in (
            *(replace(base, rho=rho, earliest_start=b, deadline=deadline) for b in begins),
            replace(base, rho=rho, schedule="green", deadline=until),
        )
    ]
    drawn = [plan(wish, work, forecast, now, quality=curve) for wish in wishes]
    options = [
        _option(made, wish.schedule)
        for made, wish in zip(drawn, wishes, strict=True)
        if not isinstance(made, Infeasible)
    ]
    full_now = plan(replace(base, rho=1.0), work, forecast, now, quality=curve)
    assert isinstance(full_now, Plan), full_now  # without a deadline there is always time
    return Estimate(
        made_at=now,
        options=_with_front(options),
        full_now=_option(full_now, "now"),
        kind=full_now.kind,
        zone=full_now.zone,
        source=full_now.source,
        left_out=len(wishes) - len(options),
        rho_too_low=tuple(sorted({r for r in rhos if r < work.rho_min})),
    )


def _option(made: Plan, schedule: str) -> Option:
    return Option(
        rho=made.rho,
        schedule=schedule,
        start=made.start,
        finish=made.finish,
        duration_s=sum((s.end - s.start).total_seconds() for s in made.stretches),
        energy_j=made.energy_j,
        emissions_g=made.emissions_g,
        quality=made.quality,
    )


def _with_front(options: Sequence[Option]) -> tuple[Option, ...]:
    return tuple(
        replace(option, on_front=not any(_beats(other, option) for other in options))
        for option in options
    )


def _beats(one: Option, other: Option) -> bool:
    """Grams are sums over cells of each plan's own width, so that rounding tells no two apart."""
    as_good = (
        one.emissions_g <= other.emissions_g * (1 + _HAIR)
        and one.finish <= other.finish
        and one.quality >= other.quality
    )
    return as_good and (
        one.emissions_g < other.emissions_g * (1 - _HAIR)
        or one.finish < other.finish
        or one.quality > other.quality
    )


def _plain(option: Option, full_now: Option) -> dict[str, Any]:
    share = option.emissions_g / full_now.emissions_g if full_now.emissions_g else None
    return {
        "rho": option.rho,
        "schedule": option.schedule,
        "start": option.start.isoformat(),
        "finish": option.finish.isoformat(),
        "duration_s": option.duration_s,
        "energy_wh": joules_to_wh(option.energy_j),
        "co2e_g": option.emissions_g,
        "co2e_share_of_full_now": share,
        "quality": option.quality,
        "on_front": option.on_front,
    }
