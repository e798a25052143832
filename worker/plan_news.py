"""What is said of a job's plan: when it changes, and when a wish cannot be met any more."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy.orm import Session

from core.carbon.calibration import TokenCost
from core.carbon.offers import Offer
from core.carbon.planner import Infeasible, Plan, Stretch, Work
from core.carbon.quality import ExpectedQuality
from core.jobs import service
from core.jobs.records import Claim
from core.units import joules_to_wh
from worker.hooks import Scribe
from worker.reporter import Reporter

#: smaller moves of the plan's end (of the time left), or of rho, are no news
_NEWS_SHARE: Final = 0.1
_NEWS_RHO: Final = 0.01
_INSTANT: Final = timedelta(seconds=1)


class PlanNews:
    """Events of kind carbon_plan, deadline_unreachable and budget_too_small, none of them twice."""

    def __init__(self, claim: Claim, scribe: Scribe, reporter: Reporter) -> None:
        self._claim = claim
        self._scribe = scribe
        self._reporter = reporter
        self._told: Plan | None = None
        self._refused: str | None = None

    def plan(
        self,
        drawn: Plan,
        *,
        now: datetime,
        reason: str,
        step: int,
        work: Work,
        cost: TokenCost,
        quality: ExpectedQuality,
        spent: dict[str, float],
        holds: bool,
    ) -> None:
        """If it differs from the last one told."""
        if not holds and not _is_news(drawn, self._told, now):
            return
        self._told = drawn
        data: dict[str, Any] = {
            "kind": "carbon_plan",
            "reason": reason,
            "step": step,
            "steps_left": work.steps,
            "decision": "hold" if holds else "run",
            "rho": drawn.rho,
            "cost": {
                "basis": cost.basis,
                "s_per_step": work.cost.s_per_step(drawn.rho),
                "j_per_step": work.cost.j_per_step(drawn.rho),
            },
            "quality": quality.to_dict(),
            "spent": spent,
            "plan": drawn.to_dict(),
        }
        self._scribe.event(_sentence(drawn, cost.basis, quality), data=data)
        job_id, fence = self._claim.job_id, self._claim.fence
        start = drawn.next_start(now)

        def write(session: Session, _now: datetime) -> None:
            service.record_plan(
                session, job_id, fence, planned_start=start, planned_finish=drawn.finish
            )

        self._reporter.post(write, replaces="plan")

    def refusal(
        self, refused: Infeasible | None, *, step: int, ways: Callable[[], tuple[Offer, ...]]
    ) -> None:
        """As soon as it is known; again only if it had become possible meanwhile.

        Args:
            ways: finds ways out; called only if there is something to say.
        """
        is_known = refused is not None and refused.missing == self._refused
        self._refused = None if refused is None else refused.missing
        if refused is None or is_known:
            return
        found = ways()
        words = " ".join(offer.message for offer in found)
        self._scribe.event(
            f"{refused.message} Going on as near to the wish as can be."
            + (f" What would do: {words}" if words else ""),
            level="warn",
            data={
                "kind": "deadline_unreachable" if refused.missing == "time" else "budget_too_small",
                "step": step,
                "missing": refused.missing,
                "needed": refused.needed,
                "available": refused.available,
                "offers": [offer.to_dict() for offer in found],
            },
        )


def wait_reason(stretch: Stretch, zone: str, now_g_per_kwh: float | None) -> str:
    expected = f"{stretch.intensity_g_per_kwh:.0f} g/kWh expected in {zone} then"
    return expected if now_g_per_kwh is None else f"{expected}, {now_g_per_kwh:.0f} now"


def _is_news(drawn: Plan, told: Plan | None, now: datetime) -> bool:
    if told is None or abs(drawn.rho - told.rho) >= _NEWS_RHO:
        return True
    left = max(told.finish - now, timedelta(0))
    return abs(drawn.finish - told.finish) > _NEWS_SHARE * left + _INSTANT


def _sentence(drawn: Plan, basis: str, quality: ExpectedQuality) -> str:
    pauses = len(drawn.stretches) - 1
    return (
        f"Plan: rho {drawn.rho:.3f}, from {drawn.start:%F %T}Z to {drawn.finish:%F %T}Z"
        + (f" with {pauses} pause{'s' if pauses > 1 else ''}" if pauses else "")
        + f"; {drawn.emissions_g:.4g} gCO2e and {joules_to_wh(drawn.energy_j):.4g} Wh to come "
        f"({drawn.objective}; costs {basis}; {quality.words})"
    )
