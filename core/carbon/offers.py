"""Ways out of a wish that cannot be met: each is a plan that was made, not a promise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from core.carbon.intensity import Intensity
from core.carbon.ledger import Ledger
from core.carbon.planner import Infeasible, Plan, QualityCurve, Wish, Work, plan
from core.units import joules_to_wh

OfferKind = Literal["fewer_steps", "more_time", "more_budget", "lower_rho", "fewer_steps_and_more"]

_HALVINGS = 14
#: longest extension of a deadline that is offered
_LONGEST = timedelta(days=14)
_QUARTER = timedelta(minutes=15)
_MOST = 3
#: over what is needed, so that an offer taken up a little later still holds
_MARGIN = 1.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A wish that can be met: what changes, and the plan it leads to."""

    kind: OfferKind
    message: str
    wish: Wish
    steps: float
    plan: Plan

    def to_dict(self) -> dict[str, Any]:
        deadline = self.wish.deadline
        return {
            "kind": self.kind,
            "message": self.message,
            "steps": self.steps,
            "rho": self.wish.rho,
            "deadline": None if deadline is None else deadline.isoformat(),
            "carbon_budget_g": self.wish.budget_g,
            "energy_budget_wh": _energy_wh(self.wish),
            "plan": self.plan.to_dict(),
        }


def offers(
    wish: Wish,
    work: Work,
    forecast: Sequence[Intensity],
    now: datetime,
    *,
    spent: Ledger | None = None,
    quality: QualityCurve | None = None,
) -> tuple[Offer, ...]:
    """Up to three feasible changes of an infeasible wish, the smallest change of each kind.

    Raises nothing and returns nothing where the wish is feasible as it stands.
    """
    table = _Table(wish, work, forecast, now, spent or Ledger(), quality or QualityCurve())
    refusal = table.refusal(wish, work.steps)
    if refusal is None:
        return ()
    found = (table.fewer_steps(), table.more_time(), table.more_budget(refusal), table.lower_rho())
    good = [offer for offer in found if offer is not None]
    if len(good) < _MOST:
        both = table.fewer_steps_and_more(good)
        good += [both] if both is not None else []
    return tuple(good[:_MOST])


@dataclass(frozen=True, slots=True)
class _Table:
    wish: Wish
    work: Work
    forecast: Sequence[Intensity]
    now: datetime
    spent: Ledger
    quality: QualityCurve

    def made(self, wish: Wish, steps: float) -> Plan | Infeasible:
        return plan(
            wish,
            replace(self.work, steps=steps),
            self.forecast,
            self.now,
            spent=self.spent,
            quality=self.quality,
        )

    def refusal(self, wish: Wish, steps: float) -> Infeasible | None:
        answer = self.made(wish, steps)
        return answer if isinstance(answer, Infeasible) else None

    def offer(self, kind: OfferKind, message: str, wish: Wish, steps: float) -> Offer | None:
        answer = self.made(wish, steps)
        if isinstance(answer, Infeasible):
            return None
        return Offer(kind=kind, message=message, wish=wish, steps=steps, plan=answer)

    def fewer_steps(self) -> Offer | None:
        share = _most(lambda part: self.refusal(self.wish, self.work.steps * part) is None)
        steps = float(int(self.work.steps * share))
        if steps < 1:
            return None
        said = f"Train {steps:.0f} of {self.work.steps:.0f} steps ({share:.0%})."
        return self.offer("fewer_steps", said, self.wish, steps)

    def more_time(self) -> Offer | None:
        if self.wish.deadline is None:
            return None
        deadline = self.wish.deadline

        def later(part: float) -> Wish:
            quarters = round(_LONGEST / _QUARTER * part)
            end = _whole_minute(max(deadline, self.now))
            return replace(self.wish, deadline=end + quarters * _QUARTER)

        if self.refusal(later(1.0), self.work.steps) is not None:
            return None
        short = _most(lambda part: self.refusal(later(part), self.work.steps) is not None)
        parts = (short, short + _QUARTER / _LONGEST, short + 2 * _QUARTER / _LONGEST, 1.0)
        for part in parts:
            wish = later(min(part, 1.0))
            said = f"Allow until {_end_of(wish)}."
            if offer := self.offer("more_time", said, wish, self.work.steps):
                return offer
        return None

    def more_budget(self, refusal: Infeasible) -> Offer | None:
        wish = self._richer(self.wish, refusal)
        if wish is None:
            return None
        said = f"Raise the budget to {_budget_of(wish, refusal)}."
        return self.offer("more_budget", said, wish, self.work.steps)

    def _richer(self, wish: Wish, refusal: Infeasible) -> Wish | None:
        if refusal.missing == "grams":
            return replace(wish, budget_g=self.spent.emissions_g + refusal.needed * _MARGIN)
        if refusal.missing == "energy":
            return replace(wish, budget_j=self.spent.energy_j + refusal.needed * _MARGIN)
        return None

    def lower_rho(self) -> Offer | None:
        rho = self.wish.rho
        if rho is None or rho <= self.work.rho_min:
            return None
        room = rho - self.work.rho_min

        def at(part: float) -> Wish:
            return replace(self.wish, rho=self.work.rho_min + room * part)

        if self.refusal(at(0.0), self.work.steps) is not None:
            return None
        part = _most(lambda part: self.refusal(at(part), self.work.steps) is None)
        # as it is said, so that who takes the offer at its word gets what was planned
        lower = math.floor(1000 * (self.work.rho_min + room * part)) / 1000
        if lower < self.work.rho_min:
            return None
        said = f"Lower rho from {rho:.3g} to {lower:g}."
        return self.offer("lower_rho", said, replace(self.wish, rho=lower), self.work.steps)

    def fewer_steps_and_more(self, good: Sequence[Offer]) -> Offer | None:
        """Half of the cut, and as much more of what is missing as the rest then needs."""
        cut = next((offer for offer in good if offer.kind == "fewer_steps"), None)
        if cut is None:
            return None
        steps = float(round((cut.steps + self.work.steps) / 2))
        still = self.refusal(self.wish, steps)
        if still is None:
            return None
        said = f"Train {steps:.0f} of {self.work.steps:.0f} steps"
        wish = self._richer(self.wish, still)
        if wish is not None:
            said += f" and raise the budget to {_budget_of(wish, still)}."
            return self.offer("fewer_steps_and_more", said, wish, steps)
        if self.wish.deadline is None:
            return None
        missing = timedelta(seconds=(still.needed - still.available) * _MARGIN + 1)
        end = _whole_minute(max(self.wish.deadline, self.now) + missing)
        wish = replace(self.wish, deadline=end)
        said += f" and allow until {_end_of(wish)}."
        return self.offer("fewer_steps_and_more", said, wish, steps)


def _whole_minute(moment: datetime) -> datetime:
    """The next one, so that a moment said to the minute is not an earlier one."""
    return moment + (datetime.min.replace(tzinfo=UTC) - moment) % timedelta(minutes=1)


def _end_of(wish: Wish) -> str:
    assert wish.deadline is not None
    return wish.deadline.isoformat(timespec="minutes")


def _budget_of(wish: Wish, refusal: Infeasible) -> str:
    if refusal.missing == "energy":
        return f"{_energy_wh(wish):.4g} Wh"
    return f"{wish.budget_g:.4g} g"


def _energy_wh(wish: Wish) -> float | None:
    """As the caller counts it: with the building's share."""
    return None if wish.budget_j is None else joules_to_wh(wish.budget_j) * wish.pue


def _most(holds: Callable[[float], bool]) -> float:
    """The largest part, 0..1, for which something holds that holds for small parts."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
