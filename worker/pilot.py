"""A job's carbon plan in the loop: which rho next, go on or set the job aside, and until when.

Before training, at every selection, after the first measurement of the machine and whenever the
plan or the grid's hour ends: what was metered so far (all attempts), a fresh forecast and the work
that is left make a new plan (`worker.drafting`, `core.carbon.planner`). A job that should wait is
checkpointed and given back with a hold; any worker takes it up when the hold is over. A wish that
cannot be met any more is said at once, with ways out; the job then goes on as near to it as it can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

from core.carbon.intensity import Intensity, IntensitySignal
from core.carbon.offers import offers
from core.carbon.planner import Infeasible, Ledger, Plan
from core.carbon.quality import Points, expected_quality
from core.carbon.rho import RHO_REFERENCE
from core.errors import GreentuneError
from core.jobs import service
from core.jobs.records import Claim
from core.spec import GreenOptions
from core.training.hooks import Control, FitResult, Hook, SelectionRecord, StepRecord
from worker.calibration import Calibration
from worker.drafting import Drafting, Task, stretch_at
from worker.ending import Ending, SetAside
from worker.energy import EnergyLog
from worker.hooks import Scribe
from worker.plan_news import PlanNews, wait_reason
from worker.purse import Purse
from worker.reporter import Reporter

#: a plan is made anew at least so often, and at most so often
LOOK_AGAIN: Final = timedelta(minutes=15)
LEAST_WAIT: Final = timedelta(seconds=0.5)
#: the first steps of a job whose rho is free, on a machine that nobody has measured: full steps,
#: which count as work and tell what full fine-tuning costs here; only where they are few among many
LADDER_STEPS: Final = 6
LADDER_SHARE: Final = 0.05
#: of intensities, for rho "auto"
_HISTORY: Final = timedelta(days=7)


class Pilot(Hook):
    """Of one claimed job with a plan; see `GreenOptions.is_planned`.

    Args:
        orders: what the world wants (`Steering`); goes before any plan.
        curves: of quality, as this job's selections told them in earlier attempts.
        stored_curves: the same of an earlier job on the same base model.
        clock: aware UTC.
    """

    def __init__(  # noqa: PLR0917  the parts of one attempt, in the order of the runner
        self,
        claim: Claim,
        reporter: Reporter,
        scribe: Scribe,
        orders: Callable[[], Control],
        log: EnergyLog,
        calibration: Calibration,
        *,
        task: Task,
        curves: Sequence[Points],
        stored_curves: Sequence[Points],
        signal: IntensitySignal,
        zone: str,
        pue: float,
        clock: Callable[[], datetime],
    ) -> None:
        self._claim = claim
        self._scribe = scribe
        self._orders = orders
        self._calibration = calibration
        self._task = task
        self._curves = list(curves)
        self._stored_curves = stored_curves
        self._signal = signal
        self._zone = zone
        self._clock = clock
        self._drafting = Drafting(
            green=claim.spec.green, created_at=claim.job.created_at, task=task, pue=pue
        )
        self._purse = Purse(claim, log, calibration, pue=pue)
        self._news = PlanNews(claim, scribe, reporter)
        self._step = task.steps_done
        self._rho_in_force = 1.0
        self._plan: Plan | None = None
        self._is_blind = False
        self._history: tuple[Intensity, ...] | None = None
        #: of the grid, as of the last forecast; g/kWh
        self._intensity: float | None = None
        self._look_at: datetime | None = None
        self._n_measured = 0
        self._ending: Ending | None = None
        #: a sentence on the spent budget, where the model is to be kept as it is
        self._saves: str | None = None

    @property
    def selections(self) -> frozenset[int]:
        """Steps at which to select beside the interval's: the ladder's end. The same in every
        attempt, so that a job goes on as it began.
        """
        return frozenset({LADDER_STEPS} if self._has_ladder else ())

    def begin(self) -> float:
        """Plan before any training.

        Returns:
            rho to start with.

        Raises:
            SetAside: not now.
        """
        self._review(self._clock(), "start")
        if self._ending is not None:
            raise SetAside(self._ending)
        if self._saves is not None and self._step == 0:
            raise SetAside(self._failed(self._saves))
        return self._planned_rho()

    def rho(self, step: int) -> float:
        """Asked by the loop at each selection."""
        self._step = step
        is_known = self._calibration.token_cost.basis != "assumed"
        if self._has_ladder and step < LADDER_STEPS and not is_known:
            self._rho_in_force = 1.0
        else:
            self._calibration.close()
            self._review(self._clock(), "selection")
            self._rho_in_force = self._planned_rho()
        return self._rho_in_force

    def on_selection(self, record: SelectionRecord) -> None:
        self._curves.append(record.quality_curve)

    def on_step(self, record: StepRecord) -> None:
        self._step = record.step

    def order(self) -> Control:
        """Asked by the loop before every step."""
        asked = self._orders()
        if asked is not Control.CONTINUE:
            return asked
        now = self._clock()
        if self._n_measured == 0 and self._calibration.count > 0:
            self._review(now, "measured")
        elif self._look_at is not None and now >= self._look_at:
            self._review(now, "forecast")
        else:
            self._stop_if_spent(self._ledger())
        if self._ending is not None:
            return Control.CHECKPOINT_AND_STOP
        return Control.CONTINUE if self._saves is None else Control.KEEP_BEST_AND_STOP

    def settle(self, result: FitResult) -> FitResult | None:
        """What a run that stopped early means: its result is the job's, or (None) somebody else
        ordered the stop.

        Raises:
            SetAside: the plan did.
        """
        if self._orders() is not Control.CONTINUE:
            return None
        if self._ending is not None:
            raise SetAside(self._ending)
        if self._saves is None:
            return None
        if result.step == 0:
            raise SetAside(self._failed(self._saves))
        spent = self._purse.as_shown(self._ledger())
        kept = result.kept_step
        whose = "is kept as it is" if kept is None else f"has the weights of its best step, {kept}"
        self._scribe.event(
            f"{self._saves} Stopped after {result.step} of {result.total_steps} steps; the model "
            f"{whose}.",
            level="warn",
            data={"kind": "budget_reached", "step": result.step, **spent},
        )
        return result

    @property
    def _green(self) -> GreenOptions:
        return self._claim.spec.green

    @property
    def _has_ladder(self) -> bool:
        is_long = LADDER_SHARE * self._task.total_steps >= LADDER_STEPS
        return is_long and self._green.method == "green" and self._drafting.fixed_rho is None

    def _planned_rho(self) -> float:
        if self._drafting.fixed_rho is not None:
            return self._drafting.fixed_rho
        rho = RHO_REFERENCE if self._plan is None else self._plan.rho
        return min(max(rho, self._task.rho_min), 1.0)

    def _ledger(self) -> Ledger:
        return self._purse.ledger(self._rho_in_force)

    def _review(self, now: datetime, reason: str) -> None:
        """Plan anew, decide, and say what changed."""
        self._n_measured = self._calibration.count
        spent = self._ledger()
        if self._stop_if_spent(spent):
            return
        drafting, cost = self._drafting, self._calibration.token_cost
        work, wish = drafting.work(self._step, cost), drafting.wish(now)
        forecast = self._forecast(now, drafting.horizon(now, wish, work))
        if forecast is None:
            self._go_on_blind(now)
            return
        quality = expected_quality(self._curves, self._stored_curves)
        drawn, refused = drafting.draw(
            work,
            forecast,
            now,
            spent=spent,
            quality=quality.curve,
            history=self._past(now),
            previous=self._plan,
        )
        self._plan = drawn
        self._look_at = _next_look(drawn, forecast, now)
        self._hold_if_due(drawn, now)
        self._news.plan(
            drawn,
            now=now,
            reason=reason,
            step=self._step,
            work=work,
            cost=cost,
            quality=quality,
            spent=self._purse.as_shown(spent),
            holds=self._ending is not None,
        )
        self._news.refusal(
            self._worth_saying(refused),
            step=self._step,
            ways=lambda: offers(wish, work, forecast, now, spent=spent, quality=quality.curve),
        )

    def _worth_saying(self, refused: Infeasible | None) -> Infeasible | None:
        """Missing time is the caller's matter only where the caller set a deadline."""
        is_own = self._green.deadline is None
        return None if refused is not None and refused.missing == "time" and is_own else refused

    def _forecast(self, now: datetime, end: datetime) -> tuple[Intensity, ...] | None:
        try:
            slots = self._signal.forecast(self._zone, now, end)
        except GreentuneError as error:
            if not self._is_blind:
                self._scribe.event(
                    f"No forecast for {self._zone}: the plan stays as it is ({error})",
                    level="warn",
                    data={"kind": "signal"},
                )
            self._is_blind = True
            return None
        self._is_blind = False
        self._intensity = slots[0].value_g_per_kwh
        return slots

    def _past(self, now: datetime) -> tuple[Intensity, ...]:
        """Asked once: a week's median does not move within an attempt."""
        if self._history is None:
            self._history = ()
            if self._drafting.fixed_rho is None:
                # a record that begins later: the absolute reference decides alone
                with suppress(GreentuneError):
                    self._history = self._signal.series(self._zone, now - _HISTORY, now)
        return self._history

    def _go_on_blind(self, now: datetime) -> None:
        """Without a forecast the plan in force holds; without a plan the job runs."""
        self._look_at = now + LOOK_AGAIN
        start = self._green.earliest_start
        if start is not None and start > now:
            self._ending = self._held(start, "not before its earliest start", None)
        elif self._plan is not None:
            self._hold_if_due(self._plan, now)

    def _hold_if_due(self, drawn: Plan, now: datetime) -> None:
        until = self._drafting.hold_until(drawn, now, intensity_g_per_kwh=self._intensity)
        if until is not None:
            reason = wait_reason(stretch_at(drawn, until), self._zone, self._intensity)
            self._ending = self._held(until, reason, drawn.finish)

    def _stop_if_spent(self, spent: Ledger) -> bool:
        """Whether a budget is spent; decides what follows."""
        sentence = self._purse.overdrawn(spent)
        if sentence is None:
            return False
        match self._green.on_budget:
            case "pause":
                self._ending = self._paused(sentence)
            case "fail":
                self._ending = self._failed(sentence)
            case "stop_and_save":
                self._saves = sentence
        return True

    def _held(self, until: datetime, reason: str, finish: datetime | None) -> Ending:
        job_id, fence = self._claim.job_id, self._claim.fence
        return lambda session, now: service.hold(
            session, job_id, fence, until=until, reason=reason, planned_finish=finish, now=now
        )

    def _paused(self, reason: str) -> Ending:
        job_id, fence = self._claim.job_id, self._claim.fence
        return lambda session, now: service.pause_for_budget(
            session, job_id, fence, reason=reason, now=now
        )

    def _failed(self, message: str) -> Ending:
        job_id, fence = self._claim.job_id, self._claim.fence
        param = "carbon_budget_g" if "carbon" in message else "energy_budget_wh"
        return lambda session, now: service.fail(
            session,
            job_id,
            fence,
            code="carbon_budget_exhausted",
            message=message,
            param=f"green.{param}",
            now=now,
        )


def _next_look(drawn: Plan, forecast: tuple[Intensity, ...], now: datetime) -> datetime:
    """When the plan or the grid's hour ends, within `LEAST_WAIT` and `LOOK_AGAIN`."""
    current = next((s.end for s in drawn.stretches if s.start <= now < s.end), drawn.finish)
    slot_end = forecast[0].until or now + LOOK_AGAIN
    return max(min(current, slot_end, now + LOOK_AGAIN), now + LEAST_WAIT)
