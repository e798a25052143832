"""Expectations: no look-ahead, better than either opinion alone, honest without data."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest

from core.carbon.forecast import ForecastError, blend, expect, habits
from core.carbon.intensity import Intensity

NOW = datetime(2026, 4, 10, 9, 20, tzinfo=UTC)
HOUR = timedelta(hours=1)


def slots(values, start, kind="average"):
    return tuple(
        Intensity(
            value_g_per_kwh=v,
            zone="XX",
            kind=kind,
            source="provider",
            moment=start + i * HOUR,
            until=start + (i + 1) * HOUR,
        )
        for i, v in enumerate(values)
    )


def wave(hours, noise=0.0, seed=0):
    random = np.random.default_rng(seed)
    day = 300 + 120 * np.sin(2 * np.pi * np.arange(hours) / 24)
    drift = np.cumsum(random.normal(0, noise, hours))
    return np.maximum(day + drift, 1.0)


def test_a_row_knows_nothing_of_its_future():
    values = wave(24 * 25, noise=5)
    expected, error = habits(values, 48, 24)
    for now in (30, 100, 24 * 20):
        cut_expected, cut_error = habits(values[: now + 1], 48, 24)
        np.testing.assert_allclose(cut_expected[-1], expected[now])
        np.testing.assert_allclose(cut_error[-1], error[now])


def test_a_pure_daily_wave_is_foreseen():
    values = wave(24 * 20)
    expected, error = habits(values, 24, 24)
    now = 24 * 18 + 5
    np.testing.assert_allclose(expected[now], values[now : now + 24], rtol=1e-6)
    assert error[now].max() < 1


def test_the_stated_error_is_about_the_error():
    values = wave(24 * 200, noise=6, seed=4)
    expected, error = habits(values, 24, 24)
    for lead in (1, 6, 23):
        rows = np.arange(24 * 30, len(values) - 24)
        off = values[rows + lead] - expected[rows, lead]
        ratio = np.sqrt(np.mean(off**2)) / np.sqrt(np.mean(error[rows, lead] ** 2))
        assert 0.8 < ratio < 1.25


def test_two_independent_opinions_beat_each():
    random = np.random.default_rng(1)
    truth = np.full(20_000, 100.0)
    one, other = truth + random.normal(0, 10, 20_000), truth + random.normal(0, 5, 20_000)
    mixed = blend(one, np.full(20_000, 10.0), other, np.full(20_000, 5.0))
    assert np.std(mixed) == pytest.approx(1 / np.sqrt(1 / 100 + 1 / 25), rel=0.03)


def test_the_provider_alone_is_taken_at_its_word():
    start = NOW.replace(minute=0)
    expected = expect(NOW, NOW + 5 * HOUR, forecast=slots([100, 90, 80, 70, 60, 50], start))
    assert [round(s.value_g_per_kwh) for s in expected] == [100, 90, 80, 70, 60, 50]
    assert (expected[0].moment, expected[-1].until) == (NOW, NOW + 5 * HOUR)
    assert all(a.until == b.moment for a, b in pairwise(expected))
    assert not expected[0].is_forecast
    assert expected[1].is_forecast


def test_without_a_provider_yesterday_is_expected():
    values = wave(24 * 10 + 10)
    start = NOW.replace(minute=0) - (len(values) - 1) * HOUR
    expected = expect(NOW, NOW + 12 * HOUR, history=slots(values, start))
    coming = 300 + 120 * np.sin(2 * np.pi * (len(values) - 1 + np.arange(13)) / 24)
    np.testing.assert_allclose([s.value_g_per_kwh for s in expected], coming, rtol=1e-6)
    assert "same time of the last days" in expected[1].source


def test_where_the_provider_ends_the_habit_goes_on():
    values = wave(24 * 10, noise=2)
    start = NOW.replace(minute=0) - (len(values) - 1) * HOUR
    said = slots([values[-1], 999.0], NOW.replace(minute=0))
    expected = expect(
        NOW,
        NOW + 6 * HOUR,
        forecast=said,
        history=slots(values, start),
        error=ForecastError(first=1e-6, last=1e-6),
    )
    assert expected[1].value_g_per_kwh == pytest.approx(999, rel=0.05)
    assert expected[3].value_g_per_kwh < 430


def test_a_wild_forecast_of_a_flat_grid_is_damped():
    history = slots([500.0 + (i % 2) for i in range(24 * 10)], NOW.replace(minute=0) - 239 * HOUR)
    said = slots([501.0, 400.0, 600.0, 450.0], NOW.replace(minute=0))
    expected = expect(NOW, NOW + 3 * HOUR, forecast=said, history=history)
    assert all(abs(s.value_g_per_kwh - 500.5) < 5 for s in expected)


def test_history_of_another_kind_is_left_out():
    start = NOW.replace(minute=0)
    history = slots([10.0] * 240, start - 239 * HOUR, kind="marginal")
    expected = expect(
        NOW, NOW + 3 * HOUR, forecast=slots([100, 90, 80, 70], start), history=history
    )
    assert [round(s.value_g_per_kwh) for s in expected] == [100, 90, 80, 70]


def test_a_single_value_is_held():
    one = Intensity(value_g_per_kwh=56.0, zone="FR", source="static", moment=NOW)
    expected = expect(NOW, NOW + 3 * HOUR, forecast=(one,))
    assert {s.value_g_per_kwh for s in expected} == {56.0}
    assert expected[-1].until == NOW + 3 * HOUR
