"""Plans: valid, optimal where optimality can be computed otherwise, and honest when impossible."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from core.carbon.intensity import Intensity
from core.carbon.planner import (
    Infeasible,
    Ledger,
    QualityCurve,
    StepCost,
    Wish,
    Work,
    choose_rho,
    plan,
)
from core.carbon.signal import TraceSignal
from core.carbon.work import CostPoint
from core.errors import InvalidInput
from core.units import JOULES_PER_KWH
from tests.unit.carbon import recorded

NOW = datetime(2026, 3, 2, 6, tzinfo=UTC)
HOUR = timedelta(hours=1)


def slots(values, start=NOW, kind="average"):
    return tuple(
        Intensity(
            value_g_per_kwh=v,
            zone="XX",
            kind=kind,
            source="test",
            moment=start + i * HOUR,
            until=start + (i + 1) * HOUR,
            is_forecast=i > 0,
        )
        for i, v in enumerate(values)
    )


def work(hours=6.0, power_w=1000.0, **options):
    """``hours`` of full fine-tuning in steps of a minute."""
    cost = StepCost.proportional(full_s_per_step=60.0, full_j_per_step=60.0 * power_w)
    return Work(steps=hours * 60, cost=cost, **{"rho_min": 0.34, **options})


def grams_by_hand(drawn, values, power_w=1000.0):
    total = 0.0
    for stretch in drawn.stretches:
        for i, value in enumerate(values):
            begin = max(stretch.start, NOW + i * HOUR)
            end = min(stretch.end, NOW + (i + 1) * HOUR)
            total += max((end - begin).total_seconds(), 0) * power_w / JOULES_PER_KWH * value
    return total


DAY = [400, 390, 380, 300, 200, 100, 90, 120, 200, 300, 350, 380] + [500] * 8 + [300] * 4


def test_the_greenest_hours_are_used():
    drawn = plan(Wish(rho=0.5, deadline=NOW + 24 * HOUR), work(), slots(DAY), NOW)
    assert [(s.start, s.end) for s in drawn.stretches] == [(NOW + 5 * HOUR, NOW + 8 * HOUR)]
    assert drawn.emissions_g == pytest.approx(100 + 90 + 120)
    assert drawn.energy_j == pytest.approx(3 * JOULES_PER_KWH)
    assert drawn.next_start(NOW) == NOW + 5 * HOUR
    assert drawn.next_start(drawn.finish) is None
    json.dumps(drawn.to_dict(), allow_nan=False)


def test_now_means_now():
    drawn = plan(Wish(rho=1.0, schedule="now"), work(), slots(DAY), NOW)
    assert (drawn.start, drawn.finish) == (NOW, NOW + 6 * HOUR)
    assert drawn.emissions_g == pytest.approx(sum(DAY[:6]))


def test_amid_an_hour_its_rest_is_used():
    drawn = plan(
        Wish(rho=0.5, deadline=NOW + 10 * HOUR),
        work(),
        slots([50, 60] + [500] * 10),
        NOW + HOUR / 2,
    )
    assert drawn.start == NOW + HOUR / 2
    assert drawn.emissions_g == pytest.approx(25 + 60 + 1.5 * 500, rel=1e-3)


@settings(max_examples=40)
@given(
    st.lists(st.floats(1, 900), min_size=8, max_size=40),
    st.floats(0.34, 1),
    st.floats(0.2, 8),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 120.0]),
)
def test_every_plan_is_valid(values, rho, hours, may_suspend, running, suspend_s):
    deadline = NOW + len(values) * HOUR
    wish = Wish(rho=rho, deadline=deadline, may_suspend=may_suspend)
    job = work(hours, suspend_s=suspend_s, suspend_j=suspend_s * 1000)
    drawn = plan(wish, job, slots(values), NOW, running=running)
    needed_s = job.duration_s(rho)
    if isinstance(drawn, Infeasible):
        assert needed_s + (0 if running else suspend_s) > len(values) * 3600 * (1 - 1e-9)
        assert drawn.missing == "time"
        return
    seconds = sum((s.end - s.start).total_seconds() for s in drawn.stretches)
    begun = len(drawn.stretches) - (running and drawn.start == NOW)
    # time is set aside for each start, and may be for one more than the plan then has
    assert needed_s + begun * suspend_s - 2 <= seconds * (1 + 1e-4)
    assert seconds <= (needed_s + (begun + 2) * suspend_s) * (1 + 1e-4) + 2
    assert drawn.start >= NOW
    assert drawn.finish <= deadline + timedelta(seconds=1)
    ordered = [moment for s in drawn.stretches for moment in (s.start, s.end)]
    assert ordered == sorted(ordered)
    if not may_suspend:
        assert len(drawn.stretches) == 1
    starting_g = begun * job.suspend_j / JOULES_PER_KWH * max(values)
    assert drawn.emissions_g <= grams_by_hand(drawn, values) * 1.02 + starting_g + 0.5


def optimum_g(values, need_h):
    solved = linprog(
        values, A_eq=[[1.0] * len(values)], b_eq=[need_h], bounds=[(0, 1)] * len(values)
    )
    return solved.fun


@cache
def traces():
    return TraceSignal.load(recorded.folder())


def recorded_windows(count, length, seed=3):
    signal = traces()
    random = np.random.default_rng(seed)
    for zone in signal.zones:
        for _ in range(count):
            start = datetime(2026, 1, 1, tzinfo=UTC) + int(random.integers(0, 8700)) * HOUR
            yield signal.forecast(zone, start, start + length * HOUR), start


@pytest.mark.parametrize("rho", [0.4, 0.5, 0.77, 1.0])
def test_equal_to_the_linear_programme_on_recorded_hours(rho):
    for forecast, start in recorded_windows(6, 48):
        wish = Wish(rho=rho, deadline=start + 48 * HOUR)
        drawn = plan(wish, work(6), forecast, start)
        values = [slot.value_g_per_kwh for slot in forecast]
        assert drawn.emissions_g == pytest.approx(optimum_g(values, 6 * rho), rel=1e-6)


def test_budgets_buy_as_much_as_the_linear_programme_on_recorded_hours():
    for forecast, start in recorded_windows(6, 48):
        values = [slot.value_g_per_kwh for slot in forecast]
        budget_g = 0.4 * sum(values[:6])
        wish = Wish(budget_g=budget_g, deadline=start + 48 * HOUR, reserve=0.0)
        drawn = plan(wish, work(6), forecast, start)
        solved = linprog([-1.0] * 48, A_ub=[values], b_ub=[budget_g], bounds=[(0, 1)] * 48)
        assert drawn.rho == pytest.approx(min(-solved.fun / 6, 1.0), rel=1e-2)
        assert drawn.emissions_g <= budget_g * (1 + 1e-6)


def test_no_naive_policy_at_equal_work_is_cleaner():
    for forecast, start in recorded_windows(10, 24, seed=5):
        values = [slot.value_g_per_kwh for slot in forecast]
        drawn = plan(Wish(rho=0.5, deadline=start + 24 * HOUR), work(6), forecast, start)
        contiguous = min(sum(values[i : i + 3]) for i in range(22))
        below_median = [v for v in values if v <= np.median(values)][:3]
        for naive_g in (sum(values[:3]), sum(values[-3:]), contiguous, sum(below_median)):
            assert drawn.emissions_g <= naive_g * (1 + 1e-9)


def test_a_budget_is_planned_for_with_a_reserve_and_less_what_was_spent():
    wish = Wish(budget_g=1000.0, deadline=NOW + 24 * HOUR)
    fresh = plan(wish, work(), slots(DAY), NOW)
    assert fresh.emissions_g * 1.05 == pytest.approx(1000, rel=1e-3)
    later = plan(wish, work(), slots(DAY), NOW, spent=Ledger(emissions_g=500, energy_j=1))
    assert later.emissions_g * 1.05 == pytest.approx(500, rel=1e-3)
    assert later.rho < fresh.rho


@settings(max_examples=40)
@given(
    st.lists(st.floats(50, 900), min_size=8, max_size=30),
    st.floats(100, 3000),
    st.sampled_from([0.0, 5.0, 300.0]),
    st.booleans(),
    st.sampled_from(["green", "now"]),
    st.booleans(),
)
def test_a_budget_is_kept_or_truly_too_small(
    values, budget_g, suspend_s, running, schedule, may_suspend
):
    deadline = NOW + len(values) * HOUR
    wish = Wish(budget_g=budget_g, deadline=deadline, schedule=schedule, may_suspend=may_suspend)
    job = work(6, suspend_s=suspend_s, suspend_j=suspend_s * 100)
    drawn = plan(wish, job, slots(values), NOW, running=running)
    least = plan(replace(wish, rho=0.34, budget_g=None), job, slots(values), NOW, running=running)
    if isinstance(drawn, Infeasible):
        assert isinstance(least, Infeasible) or least.emissions_g * 1.05 > budget_g
        return
    assert drawn.emissions_g * 1.05 <= budget_g * (1 + 1e-5)
    higher = replace(wish, rho=min(drawn.rho * 1.03, 1.0), budget_g=None)
    more = plan(higher, job, slots(values), NOW, running=running)
    if drawn.rho < 0.999 and not isinstance(more, Infeasible):
        assert more.emissions_g * 1.05 > budget_g * 0.985


def test_an_energy_budget_in_joules():
    wish = Wish(budget_j=3.3 * JOULES_PER_KWH, deadline=NOW + 24 * HOUR)
    drawn = plan(wish, work(), slots(DAY), NOW)
    assert drawn.energy_j == pytest.approx(3.3 * JOULES_PER_KWH, rel=1e-3)
    assert drawn.rho == pytest.approx(0.55, rel=1e-3)


def test_a_deadline_bounds_rho_too():
    wish = Wish(budget_g=1e9, deadline=NOW + 3 * HOUR)
    assert plan(wish, work(), slots(DAY), NOW).rho == pytest.approx(0.5, rel=1e-3)


def test_pue_counts_in_grams_and_not_in_joules():
    wish = Wish(rho=0.5, deadline=NOW + 24 * HOUR)
    plain, building = (plan(replace(wish, pue=pue), work(), slots(DAY), NOW) for pue in (1.0, 1.5))
    assert building.emissions_g == pytest.approx(1.5 * plain.emissions_g)
    assert building.energy_j == plain.energy_j


def test_a_quality_floor_takes_the_least_rho_that_reaches_it():
    curve = QualityCurve(points=((0.4, 0.8), (0.6, 0.95), (1.0, 1.0)))
    wish = Wish(quality_floor=0.875, deadline=NOW + 24 * HOUR)
    drawn = plan(wish, work(), slots(DAY), NOW, quality=curve)
    assert drawn.rho == pytest.approx(0.5)
    assert drawn.quality == pytest.approx(0.875)


def test_auto_asks_the_rule_at_the_dirtiest_hour_it_uses():
    drawn = plan(Wish(deadline=NOW + 24 * HOUR), work(), slots([v + 200 for v in DAY]), NOW)
    worst = Intensity(
        value_g_per_kwh=drawn.dirtiest_g_per_kwh, zone="XX", source="test", moment=NOW
    )
    ruled = choose_rho(worst, rho_min=0.34).rho
    assert drawn.decision.intensity_g_per_kwh == drawn.dirtiest_g_per_kwh
    # at the crossing, or just before a dirtier hour would make the rule jump below it
    assert drawn.rho <= ruled + 1e-6
    more = plan(
        Wish(rho=drawn.rho + 0.01, deadline=NOW + 24 * HOUR),
        work(),
        slots([v + 200 for v in DAY]),
        NOW,
    )
    worse = replace(worst, value_g_per_kwh=more.dirtiest_g_per_kwh)
    assert choose_rho(worse, rho_min=0.34).rho < drawn.rho + 0.01


def test_auto_takes_more_where_the_grid_is_cleaner():
    rhos = [
        plan(Wish(deadline=NOW + 24 * HOUR), work(), slots([v] * 24), NOW).rho
        for v in (30, 300, 480, 600, 900)
    ]
    assert rhos == sorted(rhos, reverse=True)
    assert rhos[0] == pytest.approx(1, abs=1e-4)
    assert rhos[2] == pytest.approx(0.5, abs=1e-4)
    assert rhos[-1] == pytest.approx(0.34, abs=1e-3)


def test_suspending_must_pay_for_itself():
    values = [100, 500, 100, 500, 100, 500, 100, 500]
    wish = Wish(rho=1.0, deadline=NOW + 8 * HOUR)
    free = plan(wish, work(3), slots(values), NOW, running=True)
    dear = plan(wish, work(3, suspend_j=9e6), slots(values), NOW, running=True)
    assert len(free.stretches) == 3
    assert len(dear.stretches) == 1


def test_small_rises_of_rho_are_not_followed_and_falls_are():
    wish = Wish(budget_g=1000.0, deadline=NOW + 24 * HOUR)
    first = plan(wish, work(), slots(DAY), NOW)
    near = replace(first, rho=first.rho - 0.01)
    assert plan(wish, work(), slots(DAY), NOW, previous=near).rho == near.rho
    far = replace(first, rho=first.rho - 0.1)
    assert plan(wish, work(), slots(DAY), NOW, previous=far).rho == first.rho
    above = replace(first, rho=first.rho + 0.01)
    assert plan(wish, work(), slots(DAY), NOW, previous=above).rho == first.rho


def test_a_rho_below_the_lowest_feasible_is_an_error():
    with pytest.raises(InvalidInput, match="lowest feasible"):
        plan(Wish(rho=0.2), work(), slots(DAY), NOW)


def test_beyond_the_forecast_the_same_time_of_its_last_day_stands_in():
    drawn = plan(Wish(rho=0.5, deadline=NOW + 72 * HOUR), work(), slots(DAY), NOW)
    assert {s.start.hour for s in drawn.stretches} == {11, 12} or drawn.emissions_g < 310
    assert drawn.emissions_g == pytest.approx(3 * 90 + 0, rel=0.01)


@pytest.mark.parametrize("years", [1, 100])
def test_a_deadline_decades_ahead_leaves_the_hours_as_fine_as_a_near_one(years):
    for schedule in ("green", "now"):
        wish = Wish(rho=0.5, schedule=schedule, deadline=NOW + timedelta(days=14))
        near = plan(wish, work(), slots(DAY * 14), NOW)
        far = replace(wish, deadline=NOW + timedelta(days=365) * years)
        assert plan(far, work(), slots(DAY * 14), NOW) == near


def test_work_that_fills_the_greenest_hour_of_every_day_gets_days_enough():
    near = Wish(rho=1.0, deadline=NOW + timedelta(days=14))
    far = replace(near, deadline=NOW + timedelta(days=365))
    grid = slots(([50] + [500] * 23) * 14)
    soon, later = (plan(wish, work(20), grid, NOW) for wish in (near, far))
    assert later.emissions_g < 0.7 * soon.emissions_g


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("hours", [1e-17, 1e-12, 1e-9])
@pytest.mark.parametrize("suspend_s", [0.0, 60.0])
def test_next_to_nothing_is_planned_like_anything_else(hours, suspend_s, running):
    wish = Wish(rho=0.5, deadline=NOW + timedelta(days=14))
    job = work(hours, suspend_s=suspend_s)
    drawn = plan(wish, job, slots(DAY * 14), NOW, running=running)
    assert len(drawn.stretches) == 1
    assert drawn.energy_j > 0
    assert drawn.dirtiest_g_per_kwh > 0
    assert drawn.start >= NOW


def test_costs_are_interpolated_between_measured_points():
    cost = StepCost(
        points=(
            CostPoint(rho=0.4, s_per_step=10, j_per_step=1000),
            CostPoint(rho=0.6, s_per_step=14, j_per_step=1600),
            CostPoint(rho=1.0, s_per_step=20, j_per_step=2400),
        )
    )
    assert cost.s_per_step(0.5) == pytest.approx(12)
    assert cost.j_per_step(0.8) == pytest.approx(2000)
    assert cost.s_per_step(0.35) == pytest.approx(9)
    with pytest.raises(InvalidInput, match="rise"):
        StepCost(points=(cost.points[1], cost.points[0]))


def test_quality_curves_are_concave_or_refused():
    with pytest.raises(InvalidInput, match="concave"):
        QualityCurve(points=((0.4, 0.2), (0.6, 0.9)))
    with pytest.raises(InvalidInput, match="rise"):
        QualityCurve(points=((0.4, 0.8), (0.6, 0.7)))
    curve = QualityCurve()
    assert curve.quality(curve.rho_for(0.9)) == pytest.approx(0.9)
