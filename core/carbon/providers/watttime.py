"""WattTime v3: https://docs.watttime.org. Marginal (co2_moer), lbs/MWh, five-minute points."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta
from typing import Any

import httpx

from core.carbon.intensity import Intensity, normal_zone
from core.carbon.providers.fetch import Fetcher
from core.carbon.providers.port import dictionary, entries, moment_of, slots_of, value_of
from core.errors import InvalidInput, SignalUnavailable
from core.units import pounds_per_mwh_to_g_per_kwh

BASE_URL = "https://api.watttime.org"
_SIGNAL = "co2_moer"
_UNITS = "lbs_co2_per_mwh"
#: tokens live for 30 minutes
_TOKEN_S = 25 * 60.0
_HORIZON_HOURS = "72"
#: the forecast's newest past: what "current" is read from, since /v3/signal-index is a percentile
_RECENT = timedelta(hours=2)
#: the service refuses longer spans than 32 days
_LONGEST = timedelta(days=31)


class WattTime:
    """Zones are WattTime's regions, such as ``CAISO_NORTH``.

    Args:
        fetcher: without credentials.
        user, password: exchanged for a token at need.
    """

    def __init__(self, fetcher: Fetcher, user: str, password: str) -> None:
        self._fetcher = fetcher
        self._credentials = (user, password)
        self._lock = threading.Lock()
        self._token = ""
        self._token_until_s = 0.0

    def current(self, zone: str, now: datetime) -> Intensity:
        slots = self.history(zone, now - _RECENT, now)
        if not slots:
            raise SignalUnavailable(f"WattTime has no value of {zone} in the last two hours.")
        return slots[-1]

    def history(self, zone: str, start: datetime, end: datetime) -> tuple[Intensity, ...]:
        span = {"start": max(start, end - _LONGEST).isoformat(), "end": end.isoformat()}
        return self._ask("/v3/historical", zone, span, is_forecast=False)

    def forecast(self, zone: str, now: datetime) -> tuple[Intensity, ...]:
        horizon = {"horizon_hours": _HORIZON_HOURS}
        slots = self._ask("/v3/forecast", zone, horizon, is_forecast=True)
        return tuple(s for s in slots if s.until is not None and s.until > now)

    def _ask(
        self, path: str, zone: str, more: dict[str, str], *, is_forecast: bool
    ) -> tuple[Intensity, ...]:
        params = {"region": normal_zone(zone), "signal_type": _SIGNAL, **more}
        answer = self._authorised(path, params)
        if answer.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.NOT_FOUND):
            raise InvalidInput(f"WattTime does not know region {zone!r}.", param="green.zone")
        if answer.status_code == httpx.codes.FORBIDDEN:
            raise SignalUnavailable(f"WattTime: the account does not cover {zone}.")
        if answer.status_code != httpx.codes.OK:
            raise SignalUnavailable(f"WattTime {path} answers {answer.status_code}.")
        body = dictionary(self._fetcher.json(answer), f"WattTime {path}")
        return self._slots(body, zone, is_forecast=is_forecast)

    def _authorised(self, path: str, params: dict[str, str]) -> httpx.Response:
        """One more try with a fresh token where the one at hand has expired early."""
        answer = self._fetcher.get(path, params, headers=self._bearer())
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            self._token_until_s = 0.0
            answer = self._fetcher.get(path, params, headers=self._bearer())
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise SignalUnavailable("WattTime refuses the token that it has just given.")
        return answer

    def _bearer(self) -> dict[str, str]:
        with self._lock:
            if time.monotonic() >= self._token_until_s:
                answer = self._fetcher.get("/login", auth=self._credentials)
                if answer.status_code != httpx.codes.OK:
                    raise SignalUnavailable(f"WattTime refuses the login ({answer.status_code}).")
                token = dictionary(self._fetcher.json(answer), "WattTime login").get("token")
                if not isinstance(token, str) or not token:
                    raise SignalUnavailable("WattTime's login gave no token.")
                self._token, self._token_until_s = token, time.monotonic() + _TOKEN_S
            return {"Authorization": f"Bearer {self._token}"}

    def _slots(
        self, body: dict[str, Any], zone: str, *, is_forecast: bool
    ) -> tuple[Intensity, ...]:
        meta = dictionary(body.get("meta"), "WattTime meta")
        for name, wanted in (("units", _UNITS), ("region", normal_zone(zone))):
            if meta.get(name) != wanted:
                raise SignalUnavailable(
                    f"WattTime told {name} {meta.get(name)!r} instead of {wanted!r}."
                )
        if meta.get("signal_type", _SIGNAL) != _SIGNAL:
            raise SignalUnavailable(f"WattTime told signal {meta.get('signal_type')!r}.")
        step_s = meta.get("data_point_period_seconds", 300)
        if not isinstance(step_s, int) or step_s <= 0:
            raise SignalUnavailable(f"WattTime told a point period of {step_s!r}.")
        points = []
        for row in entries(body.get("data"), "WattTime data"):
            raw = row.get("value")
            is_number = isinstance(raw, (int, float)) and not isinstance(raw, bool)
            grams = pounds_per_mwh_to_g_per_kwh(raw) if is_number and raw is not None else raw
            moment = moment_of(row.get("point_time"), "WattTime data")
            points.append((moment, value_of(grams, "WattTime data"), False))
        return slots_of(
            points,
            zone=normal_zone(zone),
            source="WattTime",
            step=timedelta(seconds=step_s),
            kind="marginal",
            factor="direct",
            is_forecast=is_forecast,
        )


def open_watttime(user: str, password: str, base_url: str = BASE_URL) -> WattTime:
    # 3,000 requests in five minutes are allowed
    return WattTime(Fetcher("WattTime", base_url, per_minute=600), user, password)
