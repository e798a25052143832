"""A year of jobs, one starting in every slot of a trace, through the planner's own kernels.

Each slot of each job: the forecast as it was then (the truth with an error that grows with the
lead, blended with the grid's habits by `core.carbon.forecast`), a plan for the work that is left by
`core.carbon.schedule`, one slot run or waited, and the ledger updated with what it really cost.
A test replays single jobs through `core.carbon.planner.plan` and gets the same grams.

One job draws constant power, 1 kW by convention, so that a full hour costs the slot's grams; the
year wraps around. Shapes: B jobs, T slots of the trace, N slots of a job's window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from core.carbon.forecast import ForecastError, blend, habits
from core.carbon.plans import RESERVE
from core.carbon.schedule import (
    Bools,
    Floats,
    cheapest_cells,
    cheapest_stretch,
    cost,
    highest_rho,
    starts,
)
from core.errors import InvalidInput

Policy = Literal["now", "shift", "suspend", "budget"]
POLICIES: tuple[Policy, ...] = ("now", "shift", "suspend", "budget")
#: errors of one issue and the next: drawn anew, or the same draw that shrinks with the lead
Noise = Literal["none", "independent", "persistent"]
NOISES: tuple[Noise, ...] = ("none", "independent", "persistent")

_SLACK = 1e-9
#: jobs planned at a time; bounds the memory of the dynamic programme
_CHUNK = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What every job of a simulation is like.

    Args:
        policy: "now" (run at once), "shift" (one contiguous run), "suspend" (pauses too), or
            "budget": suspends, and takes the highest rho that ``budget_share`` of the grams of
            full fine-tuning started at submission pays for.
        hours: full fine-tuning takes, above 0.
        slack_h: from submission to the deadline, whole slots, at least the hours at this rho.
        rho: share of full fine-tuning's time and energy; ignored by "budget".
        fixed_share: part of a step that rho does not shrink, see `StepCost.proportional`.
        suspend_h: of full power that each start of a stretch costs.
        replan: every slot; False: the plan of the first slot is kept.
        use_habits: blend the forecast with the grid's habits.
        seed: of the forecast's error.
    """

    policy: Policy = "suspend"
    hours: float = 6.0
    slack_h: float = 24.0
    rho: float = 0.5
    rho_min: float = 0.34
    fixed_share: float = 0.0
    suspend_h: float = 0.0
    budget_share: float = 0.4
    reserve: float = RESERVE
    noise: Noise = "independent"
    error: ForecastError = field(default_factory=ForecastError)
    replan: bool = True
    use_habits: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES or self.noise not in NOISES:
            raise InvalidInput(f"Policies: {', '.join(POLICIES)}; noise: {', '.join(NOISES)}.")
        for name, low, high in (
            ("hours", 0.0, 8760.0),
            ("slack_h", 0.0, 8760.0),
            ("rho", 0.0, 1.0),
            ("rho_min", 0.0, 1.0),
            ("budget_share", 0.0, 10.0),
        ):
            value = getattr(self, name)
            if not low < value <= high:
                raise InvalidInput(f"{name} must be above {low:g}, at most {high:g}; got {value}.")
        if not 0 <= self.suspend_h < math.inf:
            raise InvalidInput(f"suspend_h must be a number from 0 on; got {self.suspend_h}.")
        lowest = self.rho_min if self.policy == "budget" else self.rho
        if self.slack_h < self.hours * self.share(lowest):
            raise InvalidInput(
                f"{self.slack_h:g} h of slack do not hold {self.hours:g} h at rho {lowest:g}."
            )

    def share(self, rho: float) -> float:
        """Of full fine-tuning's time (and energy) that a step takes."""
        return self.fixed_share + (1 - self.fixed_share) * rho


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A zone's year, per job (B,): grams at 1 kW."""

    zone: str
    emissions_g_B: Floats
    #: full fine-tuning, started at submission
    run_now_g_B: Floats
    #: the same policy with the future known
    clairvoyant_g_B: Floats
    #: mean over the work done
    rho_B: Floats
    #: slots in which a stretch began
    starts_B: Floats
    missed_B: Bools
    #: NaN without a budget
    budget_g_B: Floats

    @property
    def ratio(self) -> float:
        """Mean emissions over mean emissions of run-now full fine-tuning; NaN where that is 0 g."""
        return self._over_run_now(self.emissions_g_B)

    @property
    def clairvoyant_ratio(self) -> float:
        return self._over_run_now(self.clairvoyant_g_B)

    def _over_run_now(self, grams_B: Floats) -> float:
        run_now_g = float(self.run_now_g_B.sum())
        return float(grams_B.sum()) / run_now_g if run_now_g > 0 else float("nan")

    @property
    def regret(self) -> float:
        """How much more was emitted than with the future known, relative."""
        return self.ratio / self.clairvoyant_ratio - 1.0

    def over_budget(self, tolerance: float = 0.01) -> float:
        """Share of jobs that exceed their budget by more than ``tolerance``."""
        limit_B = self.budget_g_B * (1 + tolerance)
        return float((self.emissions_g_B > limit_B).mean())


def simulate(zone: str, values_T: Sequence[float], step_h: float, fleet: Fleet) -> Outcome:
    """One job per slot of the trace.

    Args:
        values_T: g/kWh, no holes (`core.carbon.trace.filled`).
        step_h: hours a slot.
    """
    values = np.asarray(values_T, dtype=np.float64)
    window = round(fleet.slack_h / step_h)
    if abs(window * step_h - fleet.slack_h) > _SLACK * fleet.slack_h:
        raise InvalidInput(
            f"The slack of {fleet.slack_h:g} h must be a whole number of the {step_h:g} h slots "
            f"of {zone}."
        )
    if len(values) < window:
        raise InvalidInput(f"The trace of {zone} is shorter than the slack of {fleet.slack_h:g} h.")
    weather = _Weather(values, window, step_h, fleet)
    parts = [
        _Jobs(first, min(first + _CHUNK, len(values)), weather, step_h, fleet)
        for first in range(0, len(values), _CHUNK)
    ]
    for part in parts:
        part.live()
    return Outcome(
        zone=zone,
        emissions_g_B=np.concatenate([p.grams_B for p in parts]),
        run_now_g_B=np.concatenate([p.run_now_g_B for p in parts]),
        clairvoyant_g_B=np.concatenate([p.clairvoyant_g_B for p in parts]),
        rho_B=np.concatenate([p.mean_rho for p in parts]),
        starts_B=np.concatenate([p.starts_B for p in parts]),
        missed_B=np.concatenate([p.left_B > _SLACK * fleet.hours for p in parts]),
        budget_g_B=np.concatenate([p.budget_g_B for p in parts]),
    )


class _Weather:
    """The truth, and what was expected of it in every slot."""

    def __init__(self, values_T: Floats, window: int, step_h: float, fleet: Fleet) -> None:
        slots = len(values_T)
        self.truth_TN = _windows(values_T, window)
        lead_h_N = np.arange(window, dtype=np.float64) * step_h
        error_N = fleet.error.at(lead_h_N)
        said_TN = self.truth_TN
        if fleet.noise != "none":
            random = np.random.default_rng([fleet.seed, slots])
            if fleet.noise == "independent":
                draw_TN = random.standard_normal((slots, window))
            else:
                draw_TN = _windows(random.standard_normal(slots), window)
            # beyond three standard errors a provider would withdraw it
            said_TN = said_TN * (1 + error_N * np.clip(draw_TN, -3, 3))
        self.expected_TN = said_TN
        if fleet.use_habits and fleet.noise != "none":
            per_day = round(24 / step_h)
            past = min(21 * per_day, slots)
            known_T = np.concatenate([values_T[-past:], values_T])
            habit_TN, habit_error_TN = (a[past:] for a in habits(known_T, window, per_day))
            self.expected_TN = blend(said_TN, error_N * said_TN, habit_TN, habit_error_TN)
            self.expected_TN[:, 0] = values_T


def _windows(values_T: Floats, window: int) -> Floats:
    """Row t: the ``window`` values from t on, around the end of the year, (T, N)."""
    wrapped = np.concatenate([values_T, values_T[: window - 1]])
    return np.lib.stride_tricks.sliding_window_view(wrapped, window)


class _Jobs:
    """The jobs that start in slots ``first`` to ``last`` - 1, advanced together slot by slot."""

    def __init__(
        self, first: int, last: int, weather: _Weather, step_h: float, fleet: Fleet
    ) -> None:
        self._weather, self._fleet, self._step_h = weather, fleet, step_h
        self._first_B = np.arange(first, last)
        count = len(self._first_B)
        truth_BN = weather.truth_TN[self._first_B]
        self.run_now_g_B = _at_once(truth_BN, fleet.hours, step_h)
        has_budget = fleet.policy == "budget"
        self.budget_g_B = np.full(count, np.nan)
        if has_budget:
            self.budget_g_B = fleet.budget_share * self.run_now_g_B
        #: hours of full fine-tuning still to be done
        self.left_B = np.full(count, fleet.hours)
        self.grams_B = np.zeros(count)
        self.starts_B = np.zeros(count)
        self._rho_B = np.full(count, fleet.rho)
        self._weighed_rho_B = np.zeros(count)
        self._running_B = np.zeros(count, dtype=bool)
        self._kept_BN: Floats | None = None
        self.clairvoyant_g_B = self._cost_knowing(truth_BN)

    @property
    def mean_rho(self) -> Floats:
        return np.asarray(self._weighed_rho_B / (self._fleet.hours - self.left_B))

    def live(self) -> None:
        for slot, expected_BN in self._forecasts():
            amounts_B = self._planned(slot, expected_BN)
            self._run(slot, amounts_B)

    def _forecasts(self) -> Iterator[tuple[int, Floats]]:
        slots, window = self._weather.truth_TN.shape
        for slot in range(window):
            at_B = (self._first_B + slot) % slots
            yield slot, self._weather.expected_TN[at_B, : window - slot]

    def _planned(self, slot: int, expected_BN: Floats) -> Floats:
        """Hours to run in this slot, 0..step."""
        if self._fleet.replan or self._kept_BN is None:
            self._kept_BN = self._plan(expected_BN)
            return self._kept_BN[:, 0]
        return self._kept_BN[:, slot]

    def _plan(self, expected_BN: Floats) -> Floats:
        if self._fleet.policy == "budget":
            self._rho_B = self._affordable(expected_BN)
        return self._amounts(expected_BN, self._rho_B)

    def _amounts(self, intensity_BN: Floats, rho_B: Floats) -> Floats:
        need_B = np.minimum(self.left_B * self._share(rho_B), intensity_BN.shape[1] * self._step_h)
        if self._fleet.policy == "now":
            since_N = np.arange(intensity_BN.shape[1]) * self._step_h
            return np.asarray(np.clip(need_B[:, None] - since_N, 0.0, self._step_h))
        if self._fleet.policy == "shift":
            return self._one_run(intensity_BN, need_B)
        return cheapest_cells(
            intensity_BN,
            need_B,
            width_s=self._step_h,
            start_cost_s_B=np.full(len(need_B), self._fleet.suspend_h),
            running_B=self._running_B,
        )

    def _one_run(self, intensity_BN: Floats, need_B: Floats) -> Floats:
        """The best contiguous run; one that has begun goes on."""
        amounts_BN = cheapest_stretch(intensity_BN, need_B, width_s=self._step_h)
        since_N = np.arange(intensity_BN.shape[1]) * self._step_h
        going_BN = np.clip(need_B[:, None] - since_N, 0.0, self._step_h)
        return np.where(self._running_B[:, None], going_BN, amounts_BN)

    def _affordable(self, expected_BN: Floats) -> Floats:
        """The highest rho within the budget that is left; rho_min where none is."""
        fleet = self._fleet
        busy_B = self.left_B > _SLACK
        left_B = np.where(busy_B, self.left_B, fleet.hours)
        rho_B = highest_rho(
            expected_BN * (1 + fleet.reserve),
            self.budget_g_B - self.grams_B,
            width_s=self._step_h,
            limit_s_B=np.full(len(left_B), expected_BN.shape[1] * self._step_h),
            running_B=self._running_B,
            rho_min=fleet.rho_min,
            need_s=lambda rho_B: left_B * self._share(rho_B),
            power_w=np.ones_like,
            suspend_j=fleet.suspend_h,
        )
        return np.where(np.isnan(rho_B), fleet.rho_min, rho_B)

    def _run(self, slot: int, hours_B: Floats) -> None:
        at_B = (self._first_B + slot) % len(self._weather.truth_TN)
        here_B = self._weather.truth_TN[at_B, 0]
        on_B = hours_B > _SLACK
        begun_B = on_B & ~self._running_B
        self.grams_B += (hours_B + begun_B * self._fleet.suspend_h) * here_B
        done_B = np.minimum(hours_B / self._share(self._rho_B), self.left_B)
        self.left_B = self.left_B - done_B
        self._weighed_rho_B += done_B * self._rho_B
        self.starts_B += begun_B
        self._running_B = on_B & (self.left_B > _SLACK)

    def _share(self, rho_B: Floats) -> Floats:
        fixed = self._fleet.fixed_share
        return np.asarray(fixed + (1 - fixed) * rho_B)

    def _cost_knowing(self, truth_BN: Floats) -> Floats:
        """Grams of the plan that is made in the first slot with the future known."""
        rho_B = self._affordable(truth_BN) if self._fleet.policy == "budget" else self._rho_B
        amounts_BN = self._amounts(truth_BN, rho_B)
        start_B = np.full(len(rho_B), self._fleet.suspend_h)
        assert starts(amounts_BN, self._running_B).any()
        return cost(amounts_BN, truth_BN, start_B, self._running_B)


def _at_once(truth_BN: Floats, hours: float, step_h: float) -> Floats:
    """Grams of running from the first slot on; where that outlasts the window, at its mean."""
    since_N = np.arange(truth_BN.shape[1]) * step_h
    amounts_N = np.clip(hours - since_N, 0.0, step_h)
    beyond = hours - amounts_N.sum()
    return np.asarray(truth_BN @ amounts_N + beyond * truth_BN.mean(axis=1))
