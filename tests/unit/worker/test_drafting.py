"""Plans of a job replayed over recorded hours with a clock of the test's own: every hour is a
decision, as in the loop."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from core.carbon.calibration import TokenCost
from core.carbon.intensity import Intensity
from core.carbon.planner import CostPoint, Infeasible, Ledger, Plan, StepCost
from core.carbon.trace import TraceSignal
from core.moments import LONGEST
from core.spec import MAX_HOLD_S, GreenOptions
from core.units import emissions_g
from tests.unit.carbon.recorded import folder
from worker.drafting import Drafting, Task

NOW = datetime(2026, 3, 2, 6, tzinfo=UTC)
HOUR = timedelta(hours=1)
#: a full step of a thousand tokens takes a minute and 60 kJ
COST = TokenCost(
    cost=StepCost(points=(CostPoint(rho=1.0, s_per_step=0.06, j_per_step=60.0),)), basis="measured"
)


def drafting(steps: int = 360, startup_s: float = 60.0, **green: object) -> Drafting:
    wishes = {"zone": "DE", "rho": 0.5, "schedule": "green"} | green
    return Drafting(
        green=GreenOptions(**wishes),  # type: ignore[arg-type]
        created_at=NOW,
        task=Task(
            total_steps=steps,
            steps_done=0,
            tokens_per_step=1000.0,
            rho_min=0.35,
            startup_s=startup_s,
        ),
        pue=1.2,
    )


def hours(values: list[float]) -> tuple[Intensity, ...]:
    return tuple(
        Intensity(
            value_g_per_kwh=value,
            zone="DE",
            source="test",
            moment=NOW + index * HOUR,
            until=NOW + (index + 1) * HOUR,
        )
        for index, value in enumerate(values)
    )


def drawn(
    job: Drafting, values: list[float], step: int = 0, spent: Ledger | None = None
) -> tuple[Plan, Infeasible | None]:
    return job.draw(job.work(step, COST), hours(values), NOW, spent=spent or Ledger())


def test_wishes_reach_the_planner_in_its_units() -> None:
    job = drafting(energy_budget_wh=12.0, carbon_budget_g=5.0, rho="auto", deadline=NOW + HOUR)
    wish = job.wish(NOW)
    assert wish.budget_j == pytest.approx(12.0 * 3600 / 1.2)
    assert (wish.budget_g, wish.pue, wish.rho) == (5.0, 1.2, None)


def test_a_plan_ends_with_time_in_hand() -> None:
    job = drafting(deadline=NOW + 8 * HOUR)
    plan, refused = drawn(job, [300.0] * 4 + [100.0] * 4)
    assert refused is None
    assert NOW + 7 * HOUR < plan.finish <= NOW + 8 * HOUR - timedelta(minutes=10)


def test_the_margin_is_given_up_before_the_deadline_is() -> None:
    job = drafting(deadline=NOW + 3 * HOUR + timedelta(minutes=2))
    plan, refused = drawn(job, [100.0] * 4)
    assert refused is None
    assert plan.start == NOW


def test_an_unreachable_deadline_is_named_and_the_job_runs_at_once() -> None:
    job = drafting(deadline=NOW + 2 * HOUR)
    plan, refused = drawn(job, [300.0, 100.0, 50.0, 50.0])
    assert refused is not None
    assert refused.missing == "time"
    assert (plan.start, len(plan.stretches), plan.rho) == (NOW, 1, 0.5)
    assert job.hold_until(plan, NOW, intensity_g_per_kwh=300.0) is None


def test_a_budget_that_is_too_small_leaves_the_lowest_rho_in_the_greenest_hours() -> None:
    job = drafting(rho="auto", carbon_budget_g=100.0, deadline=NOW + 8 * HOUR)
    plan, refused = drawn(job, [300.0] * 4 + [100.0] * 4)
    assert refused is not None
    assert refused.missing == "grams"
    assert plan.rho == 0.35
    assert job.hold_until(plan, NOW, intensity_g_per_kwh=300.0) is not None


def test_after_the_longest_hold_the_job_runs() -> None:
    job = drafting(max_hold_s=7200.0)
    assert job.hold_limit == NOW + 2 * HOUR
    plan, _ = drawn(job, [300.0] * 6 + [50.0] * 18)
    until = job.hold_until(plan, NOW, intensity_g_per_kwh=300.0)
    assert until is None or until <= NOW + 2 * HOUR
    assert job.wish(NOW + 2 * HOUR).schedule == "now"


def test_no_wait_for_what_is_no_greener_or_nearly_now() -> None:
    job = drafting(deadline=NOW + 12 * HOUR)
    plan, _ = drawn(job, [300.0] * 4 + [100.0] * 8)
    assert job.hold_until(plan, NOW, intensity_g_per_kwh=300.0) == plan.start
    assert job.hold_until(plan, NOW, intensity_g_per_kwh=100.0) is None
    nearly = plan.start - timedelta(seconds=50)
    assert job.hold_until(plan, nearly, intensity_g_per_kwh=300.0) is None


def test_an_earliest_start_is_kept_however_near() -> None:
    start = NOW + timedelta(seconds=20)
    job = drafting(schedule="now", earliest_start=start)
    plan, _ = drawn(job, [100.0] * 8)
    assert job.hold_until(plan, NOW, intensity_g_per_kwh=100.0) == start


@pytest.mark.parametrize("steps", [1, 360])
@pytest.mark.parametrize("schedule", ["now", "green"])
@pytest.mark.parametrize(
    "far",
    [
        {"max_hold_s": MAX_HOLD_S},
        {"deadline": NOW + LONGEST},
        {"earliest_start": NOW + LONGEST - HOUR, "deadline": NOW + LONGEST},
        {"earliest_start": NOW + LONGEST, "max_hold_s": MAX_HOLD_S},
        {"deadline": datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)},
    ],
)
def test_the_farthest_wishes_are_planned(far: dict[str, object], schedule: str, steps: int) -> None:
    job = drafting(schedule=schedule, steps=steps, **far)
    work = job.work(0, COST)
    # no provider and no record is asked for decades
    assert NOW < job.horizon(NOW, job.wish(NOW), work) <= NOW + timedelta(days=14)
    plan, _ = drawn(job, [300.0, 100.0] * 12)
    until = job.hold_until(plan, NOW, intensity_g_per_kwh=300.0)
    if "earliest_start" in far:
        assert until is not None
        assert until >= NOW + LONGEST - HOUR
    else:
        assert until is None or until <= NOW + timedelta(days=15)


class Replay:
    """One job through recorded hours: held or run until the next hour, then planned anew."""

    def __init__(self, signal: TraceSignal, zone: str, start: datetime, job: Drafting) -> None:
        self.signal, self.zone, self.job = signal, zone, job
        self.now, self.step, self.spent = start, 0.0, Ledger()
        self.starts = 0

    def live(self) -> None:
        end = self.job.task.total_steps
        is_up = False
        previous: Plan | None = None
        while self.step < end - 1e-6:
            work = self.job.work(int(self.step), COST)
            horizon = self.job.horizon(self.now, self.job.wish(self.now), work)
            forecast = self.signal.forecast(self.zone, self.now, horizon)
            plan, refused = self.job.draw(
                work, forecast, self.now, spent=self.spent, previous=previous
            )
            assert refused is None, (self.now, refused)
            value = forecast[0].value_g_per_kwh
            until = self.job.hold_until(plan, self.now, intensity_g_per_kwh=value)
            if until is not None:
                self.now, is_up, previous = until, False, None
                continue
            if not is_up:
                self._spend(self.job.task.startup_s, plan.rho)
                self.starts, is_up = self.starts + 1, True
            previous = plan
            slot_end = self.signal.at(self.zone, self.now).until
            assert slot_end is not None
            s_per_step = work.cost.s_per_step(plan.rho)
            seconds = min((slot_end - self.now).total_seconds(), (end - self.step) * s_per_step)
            self._spend(seconds, plan.rho)
            self.step += seconds / s_per_step

    def _spend(self, seconds: float, rho: float) -> None:
        energy_j = seconds * COST.cost.power_w(rho)
        value = self.signal.at(self.zone, self.now).value_g_per_kwh
        self.spent = self.spent.after(
            energy_j=energy_j, emissions_g=emissions_g(energy_j * self.job.pue, value)
        )
        self.now += timedelta(seconds=seconds)


@pytest.fixture(scope="module")
def signal() -> TraceSignal:
    return TraceSignal.load(folder())


@pytest.mark.parametrize("day", [10, 130, 250])
def test_replayed_the_deadline_is_met_with_fewer_grams_than_at_once(
    signal: TraceSignal, day: int
) -> None:
    start = datetime(2024, 1, 1, 17, 20, tzinfo=UTC) + timedelta(days=day)
    lived = {}
    for schedule in ("now", "green"):
        job = drafting(schedule=schedule, deadline=start + 24 * HOUR)
        lived[schedule] = Replay(signal, "DE", start, job)
        lived[schedule].live()
        assert lived[schedule].now <= start + 24 * HOUR
    assert lived["now"].starts == 1
    assert lived["green"].spent.emissions_g < lived["now"].spent.emissions_g


@pytest.mark.parametrize("day", [10, 130])
def test_replayed_a_budget_is_kept(signal: TraceSignal, day: int) -> None:
    start = datetime(2024, 1, 1, 6, tzinfo=UTC) + timedelta(days=day)
    full = Replay(signal, "DE", start, drafting(schedule="now", rho=1.0))
    full.live()
    budget_g = 0.5 * full.spent.emissions_g
    job = drafting(rho="auto", carbon_budget_g=budget_g, deadline=start + 24 * HOUR)
    lived = Replay(signal, "DE", start, job)
    lived.live()
    assert 0.8 * budget_g < lived.spent.emissions_g <= 1.01 * budget_g
    assert lived.now <= start + 24 * HOUR
