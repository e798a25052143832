"""What to expect of the coming hours: the provider's forecast, the grid's own habits, or both.

Habit: the mean of the last days at the same time, moved by today's distance from its own mean,
which fades with the lead time as it did over the last two weeks. "Same hour yesterday" alone gives
.418 of run-now emissions where a perfect forecast gives .391 (6 h jobs, 24 h slack, rho .5).
Its error is known from the same two weeks, and so the two are blended by inverse variance: in a
flat grid a forecast that is 10 % off on every hour says less than yesterday did, in a windy one
more. Only the latest forecast is used: its errors and those of its predecessors are alike.

Shapes: T slots of the past, the last one now; L slots of lead, lead 0 being now; P pairs of slots
that lie one lead apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np

from core.carbon.intensity import Intensity
from core.carbon.schedule import Floats

_DAYS = 7
_MEMORY_DAYS = 14
_DAY = timedelta(days=1)
#: relative error of a habit that has not been tried yet
_UNTRIED = 0.25
#: half a thousandth: a slot never counts as known better than meters are
_LEAST_ERROR = 5e-4
_MOST_LEADS = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastError:
    """Standard error of a provider's forecast, relative: linear in the lead, from ``first`` at one
    hour to ``last`` at 72 (typical of published day-ahead forecasts of intensity).
    """

    first: float = 0.05
    last: float = 0.20

    def at(self, lead_h_L: Floats) -> Floats:
        """0 at lead 0, where the value is in force."""
        slope = (self.last - self.first) / 71.0
        error_L = np.maximum(self.first + slope * (lead_h_L - 1.0), self.first / 2)
        return np.where(lead_h_L <= 0, 0.0, error_L)


def habits(values_T: Floats, leads: int, per_day: int) -> tuple[Floats, Floats]:
    """Expected value and standard error, each (T, L): row t knows ``values_T[: t + 1]`` only.

    Args:
        values_T: one value per slot, all of them known.
        per_day: slots a day.
    """
    n_slots = len(values_T)
    memory = _MEMORY_DAYS * per_day
    expected_TL = np.empty((n_slots, leads))
    error_TL = np.empty_like(expected_TL)
    expected_TL[:, 0], error_TL[:, 0] = values_T, 0.0
    anomaly_T = np.nan_to_num(values_T - _same_time(values_T, 1, per_day, n_slots))
    for lead in range(1, leads):
        ahead_T = _same_time(values_T, -(-lead // per_day), per_day, n_slots + lead)[lead:]
        # pairs of a slot and the one ``lead`` later; slot t may use those that end by t
        pairs = max(n_slots - lead, 0)
        missed_P = np.nan_to_num(values_T[n_slots - pairs :] - ahead_T[:pairs])
        before_P = anomaly_T[:pairs]
        fading_P = _fading(before_P, missed_P, memory)
        spread_P = np.sqrt(_rolling_mean((missed_P - fading_P * before_P) ** 2, memory))
        tried_T = np.arange(n_slots) >= lead + 3 * per_day
        untold = np.zeros(n_slots - pairs)
        fading_T = np.where(tried_T, np.concatenate([untold, fading_P]), 0.0)
        ahead_T = np.where(np.isnan(ahead_T), values_T, ahead_T + fading_T * anomaly_T)
        spread_T = np.concatenate([untold, spread_P])
        expected_TL[:, lead] = ahead_T
        error_TL[:, lead] = np.where(tried_T, spread_T, _UNTRIED * np.abs(values_T))
    return np.maximum(expected_TL, 0.0), error_TL


def _same_time(values_T: Floats, first_day: int, per_day: int, n_out: int) -> Floats:
    """For slots 0..n_out: mean over up to seven days, the ``first_day``-th before and earlier, at
    the same time; NaN where there is none yet.
    """
    sums, counts = np.zeros(n_out), np.zeros(n_out)
    for day in range(first_day, first_day + _DAYS):
        shift = day * per_day
        if shift < n_out:
            known = values_T[: n_out - shift]
            sums[shift : shift + len(known)] += known
            counts[shift : shift + len(known)] += 1
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _rolling_mean(values_T: Floats, window: int) -> Floats:
    sums = np.concatenate([[0.0], np.cumsum(values_T)])
    ends = np.arange(1, len(values_T) + 1)
    begins = np.maximum(ends - window, 0)
    return np.asarray((sums[ends] - sums[begins]) / (ends - begins))


def _fading(before_T: Floats, after_T: Floats, window: int) -> Floats:
    """Least-squares share (0..1) of an anomaly that is left after the lead, over the window."""
    both_T = _rolling_mean(before_T * after_T, window)
    square_T = _rolling_mean(before_T**2, window)
    return np.clip(both_T / np.maximum(square_T, 1e-12), 0.0, 1.0)


def blend(
    forecast_L: Floats, forecast_error_L: Floats, habit_L: Floats, habit_error_L: Floats
) -> Floats:
    """Mean of two opinions by inverse variance; works on any leading shape."""
    floor_L = _LEAST_ERROR * (np.abs(forecast_L) + 1e-9)
    weight_L = np.maximum(forecast_error_L, floor_L) ** -2
    habit_weight_L = np.maximum(habit_error_L, floor_L) ** -2
    return np.asarray(
        (weight_L * forecast_L + habit_weight_L * habit_L) / (weight_L + habit_weight_L)
    )


def expect(
    now: datetime,
    end: datetime,
    *,
    forecast: Sequence[Intensity] = (),
    history: Sequence[Intensity] = (),
    error: ForecastError | None = None,
) -> tuple[Intensity, ...]:
    """Adjoining slots over ``now``..``end`` for the planner.

    Args:
        forecast: the provider's, adjoining, the first in force at ``now``; may end early or be
            missing.
        history: adjoining slots up to ``now``, the last in force now; three days before the habit
            counts for something, three weeks are enough. Other kinds than the forecast's are
            left out. At least one of the two must be there.
        error: of the provider.
    """
    kind = (forecast or history)[0].kind
    past = [slot for slot in history if slot.kind == kind and slot.moment <= now]
    current = forecast[0] if forecast else past[-1]
    # a provider's odd short slot must not make a plan of thousands
    step = max(_step([*past, *forecast]), (end - current.moment) / _MOST_LEADS)
    leads = max(-(-(end - current.moment) // step), 1)
    values_T = _on_grid(past, current, step)
    per_day = max(round(_DAY / step), 1)
    habit_TL, habit_error_TL = habits(values_T, leads, per_day)
    habit_L, habit_error_L = habit_TL[-1], habit_error_TL[-1]
    lead_h_L = np.arange(leads, dtype=np.float64) * (step / timedelta(hours=1))
    said_L, said_error_L = _said(forecast, current.moment, step, lead_h_L, error or ForecastError())
    if len(values_T) < per_day:  # nothing to learn from: the habit is only "as now"
        habit_error_L = np.where(np.isinf(said_error_L), habit_error_L, 1e9)
    unsaid_L = np.isinf(said_error_L)
    mixed_L = blend(
        np.where(unsaid_L, habit_L, said_L),
        np.where(unsaid_L, 1e9, said_error_L),
        habit_L,
        habit_error_L,
    )
    mixed_L[0] = current.value_g_per_kwh
    source = _label(current, forecast, values_T, per_day)
    slots = [
        _slot(current, float(value), current.moment + lead * step, step, source)
        for lead, value in enumerate(mixed_L)
    ]
    return tuple(s.clipped(now, end) for s in slots if s.until is not None and s.until > now)


def _step(slots: Sequence[Intensity]) -> timedelta:
    """The usual slot length; an hour where none is stated."""
    lengths = sorted(s.until - s.moment for s in slots if s.until is not None)
    return lengths[len(lengths) // 2] if lengths else timedelta(hours=1)


def _on_grid(past: Sequence[Intensity], current: Intensity, step: timedelta) -> Floats:
    """Values in force at ``current.moment`` and every ``step`` before it, oldest first; gaps are
    filled with the value before them.
    """
    earlier = [slot for slot in past if slot.moment < current.moment]
    if not earlier:
        return np.array([current.value_g_per_kwh])
    count = (current.moment - earlier[0].moment) // step
    starts_s = np.array([(s.moment - current.moment).total_seconds() for s in earlier])
    asked_s = -np.arange(count, 0, -1) * step.total_seconds()
    at = np.clip(np.searchsorted(starts_s, asked_s + 1e-6, side="right") - 1, 0, None)
    values = np.array([s.value_g_per_kwh for s in earlier])
    return np.append(values[at], current.value_g_per_kwh)


def _said(
    forecast: Sequence[Intensity],
    start: datetime,
    step: timedelta,
    lead_h_L: Floats,
    error: ForecastError,
) -> tuple[Floats, Floats]:
    """The provider's value and error per slot; infinite error where it says nothing."""
    if not forecast:
        return np.zeros_like(lead_h_L), np.full_like(lead_h_L, np.inf)
    starts_s = np.array([(slot.moment - start).total_seconds() for slot in forecast])
    values = np.array([slot.value_g_per_kwh for slot in forecast])
    until = forecast[-1].until
    end_s = np.inf if until is None else (until - start).total_seconds()
    asked_s = np.arange(len(lead_h_L)) * step.total_seconds()
    at = np.clip(np.searchsorted(starts_s, asked_s + 1e-6, side="right") - 1, 0, None)
    said_L = values[at]
    error_L = np.where(asked_s < end_s, error.at(lead_h_L) * said_L, np.inf)
    return said_L, error_L


def _label(
    current: Intensity, forecast: Sequence[Intensity], values_T: Floats, per_day: int
) -> str:
    days = len(values_T) // per_day
    parts = [f"forecast of {current.source}"] if forecast else []
    parts += [f"same time of the last days ({days} known)"] if days else []
    return " and ".join(parts) or f"{current.source}, held"


def _slot(
    current: Intensity, value: float, begin: datetime, step: timedelta, source: str
) -> Intensity:
    """The slot in force as it is; a later one as what it is: expected."""
    if begin == current.moment:
        return replace(current, until=begin + step)
    return replace(
        current,
        value_g_per_kwh=value,
        moment=begin,
        until=begin + step,
        source=source,
        is_estimated=True,
        is_forecast=True,
    )
