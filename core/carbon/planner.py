"""Which hours to train in and at which rho: pure, replayable, the same code in the service and in
the simulator.

Measured before it was built (twelve zones, a year of hours): rho that follows the intensity of the
hour inside one job saves nothing at equal mean rho, since power is constant and time and energy are
proportional to rho. What saves is a lower mean rho, greener hours, and another rho for jobs and
zones whose hours differ. So a plan is one rho for the work that is left, and the hours to do it in;
it is made anew at every selection interval from what was metered until then.

Objectives: a given rho in the fewest grams; a quality floor in the fewest grams; the best quality
within a budget (the highest rho whose cheapest hours fit it, which is optimal for any rising q);
or "auto", rho by `core.carbon.rho` at the dirtiest hour that the plan uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from core.carbon.desk import Desk
from core.carbon.intensity import Intensity
from core.carbon.ledger import Ledger
from core.carbon.outlook import look_ahead
from core.carbon.plans import RESERVE, Infeasible, Plan, Stretch, Wish, no_time
from core.carbon.rho import RhoDecision, RhoRule, choose_rho
from core.carbon.work import CostPoint, QualityCurve, StepCost, Work

__all__ = [
    "DEFAULT_SLACK",
    "FARTHEST",
    "RESERVE",
    "CostPoint",
    "Infeasible",
    "Ledger",
    "Plan",
    "QualityCurve",
    "RhoDecision",
    "RhoRule",
    "StepCost",
    "Stretch",
    "Wish",
    "Work",
    "choose_rho",
    "plan",
]

#: slack of a green schedule without a deadline: long enough for the next night and noon
DEFAULT_SLACK = timedelta(hours=24)
#: forecasts are asked for so far ahead; beyond that their last day repeats
FARTHEST = timedelta(days=14)
#: in so many times the work's length even the greenest hour of each day is enough for it
_AMPLE = 24
#: upward changes of rho below this are left alone: each one costs a new selection's noise
RHO_HYSTERESIS = 0.02


def plan(
    wish: Wish,
    work: Work,
    forecast: Sequence[Intensity],
    now: datetime,
    *,
    spent: Ledger | None = None,
    running: bool = False,
    quality: QualityCurve | None = None,
    history: tuple[Intensity, ...] = (),
    rule: RhoRule | None = None,
    previous: Plan | None = None,
) -> Plan | Infeasible:
    """The best plan for the work that is left.

    Args:
        forecast: adjoining slots from ``now`` on; the first is the one in force.
        spent: metered so far; None: nothing.
        running: the job runs at ``now``, so that going on costs no start.
        quality: the job's own measured curve where there is one.
        history, rule: for rho "auto", see `choose_rho`.
        previous: the plan in force, for hysteresis.
    """
    begin = max(now, wish.earliest_start or now)
    deadline = wish.deadline or _own_deadline(wish, work, begin)
    if deadline <= begin:
        return no_time(work.duration_s(wish.rho or work.rho_min), 0.0)
    desk = Desk(
        wish=wish,
        work=work,
        outlook=look_ahead(forecast, begin, _within_reach(deadline, begin, work)),
        spent=spent or Ledger(),
        running=running and begin == now,
        quality=quality or QualityCurve(),
        made_at=now,
    )
    if wish.rho is not None or wish.quality_floor is not None:
        chosen = desk.at_fixed_rho()
    elif wish.has_budget:
        chosen = desk.within_budget()
    else:
        chosen = desk.at_the_rule(history, rule)
    return _steady(desk, chosen, previous)


def _own_deadline(wish: Wish, work: Work, begin: datetime) -> datetime:
    longest = timedelta(seconds=work.duration_s(wish.rho or 1.0) + work.suspend_s)
    longest += timedelta.resolution  # seconds are rounded to it, and there must be enough
    return begin + longest + (DEFAULT_SLACK if wish.schedule == "green" else timedelta(0))


def _within_reach(deadline: datetime, begin: datetime, work: Work) -> datetime:
    """The deadline, or an earlier end that allows as green a plan: cells are few, and over decades
    each would be weeks wide.
    """
    longest_s = work.duration_s(1.0) + work.suspend_s
    reach_s = max(FARTHEST.total_seconds(), _AMPLE * longest_s)
    # compared before it is added: the calendar may not have the sum
    if (deadline - begin).total_seconds() <= reach_s:
        return deadline
    return begin + timedelta(seconds=reach_s)


def _steady(desk: Desk, chosen: Plan | Infeasible, previous: Plan | None) -> Plan | Infeasible:
    """Small rises of rho are not followed; everything else is."""
    if isinstance(chosen, Infeasible) or previous is None or desk.wish.rho is not None:
        return chosen
    if not 0 < chosen.rho - previous.rho < RHO_HYSTERESIS:
        return chosen
    kept = desk.cheapest(previous.rho, chosen.objective)
    return chosen if isinstance(kept, Infeasible) else replace(kept, decision=chosen.decision)
