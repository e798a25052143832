"""Electricity Maps: https://portal.electricitymaps.com/docs (v3). Average, consumption-based."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import httpx

from core.carbon.intensity import Factor, Intensity, normal_zone
from core.carbon.providers.fetch import Fetcher
from core.carbon.providers.port import dictionary, entries, moment_of, slots_of, value_of
from core.errors import InvalidInput, SignalUnavailable

BASE_URL = "https://api.electricitymaps.com/v3"
_HOUR = timedelta(hours=1)


class ElectricityMaps:
    """Needs a token; forecasts need a plan that has them.

    Args:
        fetcher: with the header ``auth-token``, see `open_electricity_maps`.
    """

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher

    def current(self, zone: str, now: datetime) -> Intensity:  # noqa: ARG002  the port's signature
        body = self._ask("latest", zone)
        (slot,) = self._slots([body], zone, is_forecast=False)
        return slot

    def history(self, zone: str, start: datetime, end: datetime) -> tuple[Intensity, ...]:
        """The last 24 hours at the most: what every plan has."""
        body = self._ask("history", zone)
        slots = self._slots(entries(body.get("history"), self._at("history")), zone)
        return tuple(s for s in slots if s.moment < end and s.until is not None and s.until > start)

    def forecast(self, zone: str, now: datetime) -> tuple[Intensity, ...]:
        body = self._ask("forecast", zone)
        slots = self._slots(
            entries(body.get("forecast"), self._at("forecast")), zone, is_forecast=True
        )
        return tuple(s for s in slots if s.until is not None and s.until > now)

    def _at(self, what: str) -> str:
        return f"{self._fetcher.name} {what}"

    def _ask(self, what: str, zone: str) -> dict[str, Any]:
        answer = self._fetcher.get(f"/carbon-intensity/{what}", {"zone": normal_zone(zone)})
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise SignalUnavailable(
                f"{self._at(what)}: the token is refused, or does not cover {zone}."
            )
        if answer.status_code in (httpx.codes.NOT_FOUND, httpx.codes.BAD_REQUEST):
            raise InvalidInput(f"{self._at(what)} does not know zone {zone!r}.", param="green.zone")
        if answer.status_code != httpx.codes.OK:
            raise SignalUnavailable(f"{self._at(what)} answers {answer.status_code}.")
        body = dictionary(self._fetcher.json(answer), self._at(what))
        got = body.get("zone")
        if got != normal_zone(zone):
            raise SignalUnavailable(f"{self._at(what)} told zone {got!r} instead of {zone!r}.")
        return body

    def _slots(
        self, rows: list[dict[str, Any]], zone: str, *, is_forecast: bool = False
    ) -> tuple[Intensity, ...]:
        where = self._at("forecast" if is_forecast else "value")
        factors = [row["emissionFactorType"] for row in rows if row.get("emissionFactorType")]
        is_direct = bool(factors) and all(told == "direct" for told in factors)
        factor: Factor = "direct" if is_direct else "lifecycle"
        points = [
            (
                moment_of(row.get("datetime"), where),
                value_of(row.get("carbonIntensity"), where),
                row.get("isEstimated") is True,
            )
            for row in rows
        ]
        if not points:
            raise SignalUnavailable(f"{where}: no values.")
        return slots_of(
            points,
            zone=normal_zone(zone),
            source="Electricity Maps",
            step=_HOUR,
            factor=factor,
            is_forecast=is_forecast,
        )


def open_electricity_maps(token: str, base_url: str = BASE_URL) -> ElectricityMaps:
    headers = {"auth-token": token}
    return ElectricityMaps(Fetcher("Electricity Maps", base_url, headers=headers))
