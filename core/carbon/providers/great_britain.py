"""NESO's Carbon Intensity API of Great Britain: https://carbonintensity.org.uk. No key; average,
direct, half hours, 48 h of forecast.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from core.carbon.intensity import Intensity, normal_zone, unknown_zone
from core.carbon.providers.fetch import Fetcher
from core.carbon.providers.port import dictionary, entries, moment_of, slots_of, value_of
from core.errors import SignalUnavailable

BASE_URL = "https://api.carbonintensity.org.uk"
_ZONE = "GB"
_HALF_HOUR = timedelta(minutes=30)
#: the service refuses longer spans
_LONGEST = timedelta(days=14)


class GreatBritain:
    """Zone ``GB`` only."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher

    def current(self, zone: str, now: datetime) -> Intensity:
        slots = [s for s in self._ask("/intensity", zone) if s.moment <= now]
        if not slots:
            raise SignalUnavailable("GB Carbon Intensity told no current value.")
        return slots[-1]

    def history(self, zone: str, start: datetime, end: datetime) -> tuple[Intensity, ...]:
        begin = max(start, end - _LONGEST)
        # the service counts a half hour by its end
        path = f"/intensity/{_stamp(begin + timedelta(minutes=1))}/{_stamp(end)}"
        slots = self._ask(path, zone)
        return tuple(s for s in slots if s.moment < end and s.until is not None and s.until > start)

    def forecast(self, zone: str, now: datetime) -> tuple[Intensity, ...]:
        slots = self._ask(f"/intensity/{_stamp(now)}/fw48h", zone, is_forecast=True)
        return tuple(s for s in slots if s.until is not None and s.until > now)

    def _ask(self, path: str, zone: str, *, is_forecast: bool = False) -> tuple[Intensity, ...]:
        if normal_zone(zone) != _ZONE:
            raise unknown_zone(zone, (_ZONE,), "GB Carbon Intensity")
        answer = self._fetcher.get(path)
        body = dictionary(self._fetcher.json(answer), "GB Carbon Intensity")
        if answer.status_code != httpx.codes.OK or "error" in body:
            error = body.get("error")
            code = error.get("code") if isinstance(error, dict) else answer.status_code
            raise SignalUnavailable(f"GB Carbon Intensity refuses the request ({code}).")
        points = [
            point
            for row in entries(body.get("data"), "GB Carbon Intensity")
            for point in self._points(row)
        ]
        return slots_of(
            points,
            zone=_ZONE,
            source="NESO Carbon Intensity API",
            step=_HALF_HOUR,
            factor="direct",
            is_forecast=is_forecast,
        )

    @staticmethod
    def _points(row: dict[str, Any]) -> list[tuple[datetime, float, bool]]:
        """The actual value, or the forecast for as long as that is null (said to be estimated)."""
        where = "GB Carbon Intensity"
        intensity = dictionary(row.get("intensity"), where)
        actual, expected = intensity.get("actual"), intensity.get("forecast")
        value = expected if actual is None else actual
        if value is None:
            return []
        return [(moment_of(row.get("from"), where), value_of(value, where), actual is None)]


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%MZ")


def open_great_britain(base_url: str = BASE_URL) -> GreatBritain:
    return GreatBritain(Fetcher("GB Carbon Intensity", base_url))
