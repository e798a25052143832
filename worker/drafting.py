"""From what a caller wished and what is left of the job to a plan: pure, no clock, no network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from core.carbon.calibration import TokenCost
from core.carbon.intensity import Intensity
from core.carbon.planner import (
    DEFAULT_SLACK,
    FARTHEST,
    Infeasible,
    Ledger,
    Plan,
    QualityCurve,
    Stretch,
    Wish,
    Work,
    plan,
)
from core.spec import GreenOptions
from core.units import wh_to_joules

#: plans end before the deadline by the time of one more start and this share of the work
MARGIN: Final = 0.05
#: of the grid's intensity now: an hour that is not cleaner than this is not waited for
WORTH_A_WAIT: Final = 0.98
#: over the longest work, so that rounded seconds do not count
_A_WHILE: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The work as an attempt finds it.

    Args:
        startup_s: from the claim to the first step: what each suspension costs again.
    """

    total_steps: int
    #: by earlier attempts
    steps_done: int
    tokens_per_step: float
    rho_min: float
    startup_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """A job's wishes.

    Args:
        pue: of the building: grams and Wh of the caller hold its share.
    """

    green: GreenOptions
    created_at: datetime
    task: Task
    pue: float

    @property
    def fixed_rho(self) -> float | None:
        if not self.green.follows_rho:
            return self.task.rho_min  # the method costs what it costs
        return self.green.fixed_rho

    @property
    def hold_limit(self) -> datetime | None:
        """From here on the job is not held back any more."""
        if self.green.max_hold_s is None:
            return None
        start = max(self.created_at, self.green.earliest_start or self.created_at)
        return start + timedelta(seconds=self.green.max_hold_s)

    def work(self, step: int, token_cost: TokenCost) -> Work:
        """What is left after ``step`` steps."""
        return Work(
            steps=max(self.task.total_steps - step, 1),
            cost=token_cost.per_step(self.task.tokens_per_step),
            rho_min=self.task.rho_min,
            suspend_s=self.task.startup_s,
        )

    def wish(self, now: datetime) -> Wish:
        green, limit = self.green, self.hold_limit
        budget_wh = green.energy_budget_wh
        return Wish(
            schedule="now" if limit is not None and now >= limit else green.schedule,
            earliest_start=green.earliest_start,
            deadline=green.deadline,
            rho=self.fixed_rho,
            budget_g=green.carbon_budget_g,
            budget_j=None if budget_wh is None else wh_to_joules(budget_wh) / self.pue,
            pue=self.pue,
        )

    def horizon(self, now: datetime, wish: Wish, work: Work) -> datetime:
        """Until when a forecast is of use."""
        return min(self._end(now, wish, work), now + FARTHEST)

    def _end(self, now: datetime, wish: Wish, work: Work) -> datetime:
        """The deadline, or as long as the work may take where there is none."""
        if wish.deadline is not None and wish.deadline > now:
            return wish.deadline
        longest = timedelta(seconds=work.duration_s(wish.rho or 1.0) + work.suspend_s)
        slack = DEFAULT_SLACK if wish.schedule == "green" else _A_WHILE
        return max(now, wish.earliest_start or now) + longest + slack

    def draw(
        self,
        work: Work,
        forecast: tuple[Intensity, ...],
        now: datetime,
        *,
        spent: Ledger,
        quality: QualityCurve | None = None,
        history: tuple[Intensity, ...] = (),
        previous: Plan | None = None,
    ) -> tuple[Plan, Infeasible | None]:
        """A plan for the wish; or the nearest one, and why the wish cannot be met.

        The job is up and running at ``now``: going on costs no start.
        """

        def ask(wish: Wish) -> Plan | Infeasible:
            return plan(
                replace(wish, deadline=wish.deadline or self._end(now, wish, work)),
                work,
                forecast,
                now,
                spent=spent,
                running=True,
                quality=quality,
                history=history,
                previous=previous,
            )

        wish = self._bounded(self.wish(now), work)
        answer = ask(self._early(wish, work))
        if isinstance(answer, Plan):
            return answer, None
        refused = ask(wish)
        if isinstance(refused, Plan):
            return refused, None
        near = replace(wish, rho=wish.rho or work.rho_min, budget_g=None, budget_j=None)
        for looser in (near, replace(near, schedule="now", deadline=None)):
            answer = ask(looser)
            if isinstance(answer, Plan):
                return answer, refused
        raise AssertionError("without bounds there is always a plan")

    def hold_until(
        self, drawn: Plan, now: datetime, *, intensity_g_per_kwh: float | None
    ) -> datetime | None:
        """When to take the job up again; None: go on now.

        Args:
            intensity_g_per_kwh: of the grid now.
        """
        until = drawn.next_start(now)
        if until is None or until <= now:
            return None
        limit, start = self.hold_limit, self.green.earliest_start
        if limit is not None and limit > now:
            until = min(until, limit)
        if start is not None and now < start:
            return max(until, start)
        # a wait that is shorter than stopping and starting again is none
        if (until - now).total_seconds() <= self.task.startup_s:
            return None
        greener = stretch_at(drawn, until).intensity_g_per_kwh
        if intensity_g_per_kwh is not None and greener >= WORTH_A_WAIT * intensity_g_per_kwh:
            return None
        return until

    def _bounded(self, wish: Wish, work: Work) -> Wish:
        """A limited hold bounds the end as well: the latest start and the longest work."""
        if self.hold_limit is None or wish.schedule == "now":
            return wish
        longest = timedelta(seconds=work.duration_s(wish.rho or 1.0) + work.suspend_s)
        end = self.hold_limit + longest
        return replace(wish, deadline=min(wish.deadline or end, end))

    def _early(self, wish: Wish, work: Work) -> Wish:
        """To be ready before the deadline even if steps get slower and the end takes its time."""
        if wish.deadline is None:
            return wish
        slower_s = MARGIN * work.duration_s(wish.rho or 1.0)
        early = wish.deadline - timedelta(seconds=work.suspend_s + slower_s)
        start = wish.earliest_start
        return wish if start is not None and early <= start else replace(wish, deadline=early)


def stretch_at(drawn: Plan, moment: datetime) -> Stretch:
    """The stretch in force at ``moment``, or the next one."""
    return next((s for s in drawn.stretches if s.end > moment), drawn.stretches[-1])
