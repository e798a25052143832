"""The planner's view of time: a forecast cut into equal cells from now to the deadline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from core.carbon.intensity import Intensity
from core.carbon.schedule import Floats
from core.units import JOULES_PER_KWH

#: cells per slot of the forecast, so that a plan made amid a slot may use the rest of it
_PER_SLOT = 4
#: beyond so many cells they get wider; a week of quarter hours fits
_MAX_CELLS = 700
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """``intensity_N`` (g/kWh) in cells of ``width_s`` seconds from ``start`` on."""

    start: datetime
    width_s: float
    intensity_N: Floats
    kind: str
    zone: str
    source: str

    @property
    def end(self) -> datetime:
        return self.moment(len(self.intensity_N))

    @property
    def duration_s(self) -> float:
        return float(len(self.intensity_N) * self.width_s)

    @property
    def g_per_joule(self) -> Floats:
        return np.asarray(self.intensity_N / JOULES_PER_KWH)

    def moment(self, cell: int) -> datetime:
        return self.start + timedelta(seconds=cell * self.width_s)


def look_ahead(forecast: Sequence[Intensity], start: datetime, end: datetime) -> Outlook:
    """Cells over ``start``..``end``; each has the mean of the slots that it spans.

    Where the forecast ends early the same time of its last day stands in, or its mean where it is
    shorter than a day.

    Args:
        forecast: adjoining slots of one zone and kind, the first in force at ``start`` or earlier.
    """
    assert end > start, (start, end)
    assert forecast, "a forecast needs at least one slot"
    first, last = forecast[0], forecast[-1]
    assert first.moment <= start, (first.moment, start)
    span_s = (end - start).total_seconds()
    slot_s = min(_length_s(slot, end) for slot in forecast)
    cells = min(max(round(span_s / slot_s * _PER_SLOT), 1), _MAX_CELLS)
    width_s = span_s / cells
    edges_s = np.arange(cells + 1) * width_s
    known_s = np.array([(slot.moment - start).total_seconds() for slot in forecast])
    end_s = known_s[-1] + _length_s(last, end)
    values = np.array([slot.value_g_per_kwh for slot in forecast])
    bounds_s = np.append(known_s, end_s)
    integral = np.concatenate([[0.0], np.cumsum(values * np.diff(bounds_s))])
    means_N = np.diff(np.interp(edges_s, bounds_s, integral)) / width_s
    middle_s = (edges_s[:-1] + edges_s[1:]) / 2
    beyond_N = edges_s[1:] > end_s + 1e-6
    if beyond_N.any():
        days = np.ceil((middle_s - end_s) / _DAY_S)
        same_time_s = middle_s - np.maximum(days, 1) * _DAY_S
        at = np.clip(np.searchsorted(bounds_s, same_time_s, side="right") - 1, 0, len(values) - 1)
        mean = integral[-1] / (end_s - known_s[0])
        stand_in_N = np.where(same_time_s >= known_s[0], values[at], mean)
        means_N = np.where(beyond_N, stand_in_N, means_N)
    return Outlook(
        start=start,
        width_s=width_s,
        intensity_N=means_N,
        kind=first.kind,
        zone=first.zone,
        source=first.source,
    )


def _length_s(slot: Intensity, end: datetime) -> float:
    until = slot.until or max(end, slot.moment + timedelta(hours=1))
    return (until - slot.moment).total_seconds()
