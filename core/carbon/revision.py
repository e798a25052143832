"""Accounted again: rows whose intensity was a guess, once the grid has told what it was.

A row is a guess where its intensity was estimated, a forecast, a stand-in while the provider was
away, or not known at all. What replaces it must cover all of the row's time and be better: told for
that very slot, or at least by the provider itself where a stand-in stood. Energy is never touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from core.carbon.energy import MeteredRow, cut_at_slots
from core.carbon.intensity import STAND_IN, STATIC_AVERAGE, Intensity


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An intensity in the fields of a row."""

    intensity_g_per_kwh: float
    intensity_kind: str
    intensity_source: str
    intensity_is_estimated: bool


def is_guess(row: MeteredRow) -> bool:
    return row.intensity_g_per_kwh is None or bool(row.intensity_is_estimated)


def told_since(row: MeteredRow, slots: Sequence[Intensity]) -> Told | None:
    """What the row is to be accounted at now; None: as it is.

    Args:
        slots: of the row's zone, as the signal has them now. Where several meet the row, their mean
            over its time.
    """
    if not is_guess(row):
        return None
    pieces = cut_at_slots(row.started_at, row.ended_at, slots)
    found = [slot for _, _, slot in pieces if slot is not None]
    if not found or len(found) < len(pieces) or len({slot.kind for slot in found}) > 1:
        return None
    if not all(_is_better(slot, row) for slot in found):
        return None
    told = Told(
        intensity_g_per_kwh=found[0].value_g_per_kwh
        if len(found) == 1
        else math.fsum(
            (end - begin) * slot.value_g_per_kwh / (row.ended_at - row.started_at)
            for begin, end, slot in pieces
            if slot is not None
        ),
        intensity_kind=found[0].kind,
        intensity_source=found[0].source,
        intensity_is_estimated=any(slot.is_estimated for slot in found),
    )
    before = (row.intensity_g_per_kwh, row.intensity_kind, row.intensity_source)
    now = (told.intensity_g_per_kwh, told.intensity_kind, told.intensity_source)
    is_news = now != before or told.intensity_is_estimated != row.intensity_is_estimated
    return told if is_news else None


def _is_better(slot: Intensity, row: MeteredRow) -> bool:
    if slot.is_forecast or _stands_in(slot.source):
        return False
    return not slot.is_estimated or _stands_in(row.intensity_source or STAND_IN)


def _stands_in(source: str) -> bool:
    return STAND_IN in source or STATIC_AVERAGE in source
