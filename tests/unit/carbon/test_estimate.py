"""Estimates before submission."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from core.carbon.estimate import estimate
from core.carbon.intensity import Intensity
from core.carbon.planner import StepCost, Work

NOW = datetime(2026, 3, 2, 6, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = [400, 390, 380, 300, 200, 100, 90, 120, 200, 300, 350, 380] + [500] * 8 + [300] * 4


def slots(values):
    return tuple(
        Intensity(
            value_g_per_kwh=v,
            zone="XX",
            source="test",
            moment=NOW + i * HOUR,
            until=NOW + (i + 1) * HOUR,
        )
        for i, v in enumerate(values)
    )


def work(rho_min=0.34):
    cost = StepCost.proportional(full_s_per_step=60, full_j_per_step=60_000)
    return Work(steps=240, cost=cost, rho_min=rho_min)


def told(**options):
    return estimate(work(), slots(DAY), NOW, **options)


def test_every_rho_at_every_start_and_in_the_green_hours():
    result = told(rhos=(0.5, 1.0), start_hours=(0, 5), deadline=NOW + 24 * HOUR)
    assert len(result.options) == 6
    now_half = result.options[0]
    assert (now_half.rho, now_half.schedule, now_half.start) == (0.5, "now", NOW)
    assert now_half.emissions_g == pytest.approx(400 + 390)
    assert now_half.finish == NOW + 2 * HOUR
    green = next(o for o in result.options if o.schedule == "green" and o.rho == 0.5)
    assert green.emissions_g == pytest.approx(100 + 90)
    assert green.energy_j == pytest.approx(now_half.energy_j)
    assert result.full_now.emissions_g == pytest.approx(sum(DAY[:4]))
    json.dumps(result.to_dict(), allow_nan=False)


def test_without_a_deadline_every_start_that_was_asked_for_has_its_row():
    result = told(rhos=(0.5, 1.0), start_hours=(0, 40, 336))
    rows = {(o.rho, o.start) for o in result.options if o.schedule == "now"}
    assert rows == {(rho, NOW + hours * HOUR) for rho in (0.5, 1.0) for hours in (0, 40, 336)}
    assert result.left_out == 0
    # the planner's own hours still end a day after the work at full effort would
    green = [o for o in result.options if o.schedule == "green"]
    assert len(green) == 2
    assert all(o.finish <= NOW + 28 * HOUR for o in green)


def test_starting_up_takes_no_row_away():
    slow = Work(steps=1, cost=work().cost, rho_min=0.34, suspend_s=26 * 3600.0)
    result = estimate(slow, slots(DAY), NOW, rhos=(1.0,), start_hours=(0,))
    assert [o.schedule for o in result.options] == ["now", "green"]
    assert result.left_out == 0


def test_work_that_takes_no_time_to_speak_of_has_its_rows_too():
    cost = StepCost.proportional(full_s_per_step=1e-9, full_j_per_step=1e-9)
    tiny = Work(steps=1, cost=cost, rho_min=0.34)
    result = estimate(tiny, slots(DAY), NOW, rhos=(0.5, 1.0), start_hours=(0, 6))
    assert len(result.options) == 6


def test_the_front_is_what_nothing_beats():
    result = told()
    for option in result.options:
        beaten = any(
            o.emissions_g <= option.emissions_g
            and o.finish <= option.finish
            and o.quality >= option.quality
            and (o.emissions_g, o.finish, o.quality)
            != (option.emissions_g, option.finish, option.quality)
            for o in result.options
        )
        assert option.on_front is not beaten
    assert any(o.on_front for o in result.options)


def test_what_does_not_fit_is_counted_and_left_out():
    result = told(rhos=(0.2, 0.5, 1.0), start_hours=(0, 3), deadline=NOW + 4 * HOUR)
    assert {o.rho for o in result.options} == {0.5, 1.0}
    # rho 1 from 9 o'clock and rho .5 from 9 o'clock end too late
    assert result.left_out == 2


def test_a_rho_below_the_lowest_is_named():
    result = told(rhos=(0.1, 0.5), start_hours=(0,))
    assert result.rho_too_low == (0.1,)
    assert result.to_dict()["rho_too_low"] == [0.1]
    assert {option.rho for option in result.options} == {0.5}
