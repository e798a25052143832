"""One planning, with everything at hand but rho."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np

from core.carbon.intensity import Intensity
from core.carbon.ledger import Ledger
from core.carbon.outlook import Outlook
from core.carbon.plans import Infeasible, Missing, Plan, Stretch, Wish, no_budget, no_time
from core.carbon.rho import RhoDecision, RhoRule, choose_rho
from core.carbon.schedule import (
    Bools,
    Floats,
    cheapest_cells,
    cheapest_stretch,
    cost,
    highest_rho,
    settle,
    starts,
)
from core.carbon.work import QualityCurve, Work
from core.errors import InvalidInput

_HALVINGS = 20
_HAIR = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Everything that one planning needs, so that its questions need only a rho."""

    wish: Wish
    work: Work
    outlook: Outlook
    spent: Ledger
    running: bool
    quality: QualityCurve
    made_at: datetime

    def at_fixed_rho(self) -> Plan | Infeasible:
        if self.wish.rho is not None:
            rho, objective = self.wish.rho, f"rho {self.wish.rho:g} in the fewest grams"
        else:
            floor = self.wish.quality_floor or 0.0
            rho = max(self.quality.rho_for(floor), self.work.rho_min)
            objective = f"quality share {floor:g} in the fewest grams"
        drawn = self.cheapest(rho, objective)
        return drawn if isinstance(drawn, Infeasible) else self._checked(drawn)

    def within_budget(self) -> Plan | Infeasible:
        """The highest rho whose cheapest hours fit both budgets and the deadline.

        The kernel's answer counts starts roughly; where the plan made at it does not hold, the
        highest rho is searched by making plans.
        """
        guesses = [self._highest(left, per_joule_N) for _, left, per_joule_N in self._budgets()]
        high = self.work.rho_min if np.isnan(guesses).any() else min(guesses)
        best = self._affordable_plan(high)
        if not isinstance(best, Infeasible) and high > self.work.rho_min:
            return best
        low = self.work.rho_min
        best = self._affordable_plan(low)
        if isinstance(best, Infeasible):
            return best
        high = 1.0 if high == low else high
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            tried = self._affordable_plan(middle)
            if isinstance(tried, Infeasible):
                high = middle
            else:
                low, best = middle, tried
        return best

    def _affordable_plan(self, rho: float) -> Plan | Infeasible:
        drawn = self.cheapest(rho, "best quality within the budget")
        return drawn if isinstance(drawn, Infeasible) else self._checked(drawn)

    def at_the_rule(
        self, history: tuple[Intensity, ...], rule: RhoRule | None
    ) -> Plan | Infeasible:
        """Where the rule at the plan's dirtiest hour asks for the rho that the plan has.

        The higher rho, the dirtier the last hour and the lower the rule's answer: one crossing.
        """
        objective = "rho by the grid's intensity"
        lowest = self.cheapest(self.work.rho_min, objective)
        if isinstance(lowest, Infeasible):
            return lowest

        def ruled(drawn: Plan) -> RhoDecision:
            worst = Intensity(
                value_g_per_kwh=drawn.dirtiest_g_per_kwh,
                zone=drawn.zone,
                kind="marginal" if drawn.kind == "marginal" else "average",
                source=drawn.source,
                moment=self.made_at,
            )
            return choose_rho(worst, history=history, rho_min=self.work.rho_min, rule=rule)

        low, high, best = self.work.rho_min, 1.0, lowest
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            drawn = self.cheapest(middle, objective)
            if not isinstance(drawn, Infeasible) and ruled(drawn).rho >= middle:
                low, best = middle, drawn
            else:
                high = middle
        decision = ruled(best)
        # the rule may jump over the crossing, where one more second means a dirtier hour
        return replace(best, decision=replace(decision, rho=best.rho))

    def cheapest(self, rho: float, objective: str) -> Plan | Infeasible:
        """Fewest grams at ``rho`` before the deadline, whatever the budget."""
        if rho < self.work.rho_min - _HAIR:
            raise InvalidInput(
                f"rho {rho:.4g} is below the lowest feasible {self.work.rho_min:.4g}.",
                param="green.rho",
            )
        power_w = self.work.cost.power_w(rho)
        start_cost_s = np.array([self.work.suspend_j / power_w])
        amounts_1N = self._amounts(rho, self.outlook.intensity_N, start_cost_s)
        if amounts_1N is None:
            need_s = self.work.duration_s(rho) + self._first_start_s
            return no_time(need_s, self.outlook.duration_s)
        amounts_1N = settle(
            amounts_1N[0],
            self.outlook.intensity_N,
            width_s=self.outlook.width_s,
            running=self.running,
        )[None]
        running = np.array([self.running])
        begun = int(starts(amounts_1N, running).sum())
        grams = power_w * cost(amounts_1N, self.outlook.g_per_joule[None], start_cost_s, running)
        energy_j = power_w * float(amounts_1N.sum()) + begun * self.work.suspend_j
        emissions_g = float(grams[0]) * self.wish.pue
        return self._plan(rho, amounts_1N[0], energy_j, emissions_g, objective)

    @property
    def _first_start_s(self) -> float:
        return 0.0 if self.running else self.work.suspend_s

    def _amounts(self, rho: float, cost_N: Floats, start_cost_s: Floats) -> Floats | None:
        """Seconds per cell, (1, N), time of the starts included; None: not enough time."""
        work_s, limit_s = self.work.duration_s(rho), self.outlook.duration_s
        if work_s + self._first_start_s > limit_s * (1 + _HAIR):
            return None
        need_s = work_s + self._first_start_s
        running = np.array([self.running])
        for _ in range(4):  # each start takes time, which may ask for another cell
            need_1 = np.array([min(need_s, limit_s)])
            whole_start_s = start_cost_s + self.work.suspend_s
            amounts_1N = self._cells(cost_N[None], need_1, whole_start_s, running)
            wanted_s = work_s + int(starts(amounts_1N, running).sum()) * self.work.suspend_s
            if wanted_s <= need_s * (1 + _HAIR):
                return amounts_1N
            need_s = wanted_s
        # so little time that pausing does not pay for itself: one stretch
        need_1 = np.array([min(work_s + self._first_start_s, limit_s)])
        if self.running:
            return self._at_once(need_1)
        return cheapest_stretch(cost_N[None], need_1, width_s=self.outlook.width_s)

    def _cells(
        self, cost_1N: Floats, need_1: Floats, start_cost_s: Floats, running: Bools
    ) -> Floats:
        if self.wish.schedule == "now" or (self.running and not self.wish.may_suspend):
            return self._at_once(need_1)
        width_s = self.outlook.width_s
        if not self.wish.may_suspend:
            return cheapest_stretch(cost_1N, need_1, width_s=width_s)
        return cheapest_cells(
            cost_1N, need_1, width_s=width_s, start_cost_s_B=start_cost_s, running_B=running
        )

    def _at_once(self, need_1: Floats) -> Floats:
        since_s_N = np.arange(len(self.outlook.intensity_N)) * self.outlook.width_s
        return np.clip(need_1[:, None] - since_s_N, 0.0, self.outlook.width_s)

    def _plan(
        self, rho: float, amounts_N: Floats, energy_j: float, grams: float, objective: str
    ) -> Plan:
        used = amounts_N > 0
        return Plan(
            made_at=self.made_at,
            rho=rho,
            stretches=tuple(self._stretches(amounts_N)),
            energy_j=energy_j,
            emissions_g=grams,
            quality=self.quality.quality(rho),
            dirtiest_g_per_kwh=float(self.outlook.intensity_N[used].max()),
            objective=objective,
            kind=self.outlook.kind,
            zone=self.outlook.zone,
            source=self.outlook.source,
        )

    def _stretches(self, amounts_N: Floats) -> list[Stretch]:
        """Neighbouring cells joined; an end used in part is used on the side of its stretch."""
        found: list[tuple[int, int]] = []
        for cell in np.flatnonzero(amounts_N > 0):
            if found and found[-1][1] == cell:
                found[-1] = (found[-1][0], int(cell) + 1)
            else:
                found.append((int(cell), int(cell) + 1))
        stretches = []
        for first, after in found:
            part = amounts_N[first:after]
            seconds = float(part.sum())
            starts_late = after - first > 1 and part[0] < part[1]
            start, end = self.outlook.moment(first), self.outlook.moment(after)
            if starts_late:
                start = end - timedelta(seconds=seconds)
            else:
                end = start + timedelta(seconds=seconds)
            mean = float((part * self.outlook.intensity_N[first:after]).sum()) / seconds
            stretches.append(Stretch(start=start, end=end, intensity_g_per_kwh=mean))
        return stretches

    def _budgets(self) -> list[tuple[Missing, float, Floats]]:
        """What is left of each budget, in its unit, and what a joule costs of it per cell."""
        budgets: list[tuple[Missing, float, Floats]] = []
        if self.wish.budget_g is not None:
            left_g = self.wish.budget_g - self.spent.emissions_g
            per_joule = self.outlook.g_per_joule * self.wish.pue * (1 + self.wish.reserve)
            budgets.append(("grams", left_g, per_joule))
        if self.wish.budget_j is not None:
            left_j = self.wish.budget_j - self.spent.energy_j
            budgets.append(("energy", left_j, np.ones_like(self.outlook.intensity_N)))
        return budgets

    def _highest(self, left: float, per_joule_N: Floats) -> float:
        """The highest rho that ``left`` pays for; NaN: none does."""
        work = self.work
        if self.wish.schedule == "now" or not self.wish.may_suspend:
            low, high = work.rho_min, 1.0
            if not self._affordable(low, left, per_joule_N):
                return float("nan")
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                fits = self._affordable(middle, left, per_joule_N)
                low, high = (middle, high) if fits else (low, middle)
            return low
        found = highest_rho(
            per_joule_N[None],
            np.array([left]),
            width_s=self.outlook.width_s,
            limit_s_B=np.array([self.outlook.duration_s - self._first_start_s]),
            running_B=np.array([self.running]),
            rho_min=work.rho_min,
            need_s=lambda rho_B: work.steps * work.cost.s_per_step_batch(rho_B),
            power_w=work.cost.power_w_batch,
            suspend_j=work.suspend_j,
            suspend_s=work.suspend_s,
        )
        return float(found[0])

    def _affordable(self, rho: float, left: float, per_joule_N: Floats) -> bool:
        amounts_1N = self._amounts(rho, per_joule_N, np.zeros(1))
        if amounts_1N is None:
            return False
        start_j = self.work.suspend_j * float(per_joule_N.max())
        running_j = self.work.cost.power_w(rho) * float((amounts_1N[0] * per_joule_N).sum())
        return running_j + start_j <= left

    def _checked(self, drawn: Plan) -> Plan | Infeasible:
        """The plan itself where it keeps the budgets."""
        for missing, left, _ in self._budgets():
            planned = drawn.emissions_g if missing == "grams" else drawn.energy_j
            needed = planned * (1 + self.wish.reserve) if missing == "grams" else planned
            if needed > left * (1 + _HAIR):
                return no_budget(missing, needed, left, pue=self.wish.pue)
        return drawn
