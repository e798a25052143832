"""Opens an intensity signal by name. The names here are what other rooms import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from core.carbon.intensity import WORLD, Factor, Intensity, IntensitySignal, Kind, normal_zone
from core.carbon.live import LiveSignal
from core.carbon.providers import electricity_maps, entsoe, great_britain, watttime
from core.carbon.providers.port import Provider
from core.carbon.slot_cache import MemoryStore, TextStore
from core.carbon.static import StaticSignal
from core.carbon.trace import TraceSignal
from core.carbon.trace_files import TraceFiles
from core.errors import InvalidInput

__all__ = [
    "SIGNALS",
    "WORLD",
    "Factor",
    "Intensity",
    "IntensitySignal",
    "Kind",
    "LiveOptions",
    "LiveSignal",
    "MemoryStore",
    "StaticSignal",
    "TextStore",
    "TraceSignal",
    "open_signal",
]

SIGNALS = ("static", "trace", "electricity_maps", "watttime", "gb", "entsoe")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOptions:
    """What live providers need; unset where a signal does not.

    Args:
        token: of Electricity Maps or ENTSO-E.
        user, password: of WattTime.
        base_url: another address than the provider's own (a newer version, a mirror, a test).
        store: shared cache; None: this process's own.
        staleness: how long a last known value may stand in.
        patience: how long a caller waits for a request; None: until it is answered or refused.
        on_trouble: told one sentence whenever a request fails.
    """

    token: str = field(default="", repr=False)
    user: str = ""
    password: str = field(default="", repr=False)
    base_url: str | None = None
    store: TextStore | None = None
    staleness: timedelta = timedelta(hours=3)
    patience: timedelta | None = None
    on_trouble: Callable[[str], None] = lambda _: None


class _AndWorld:
    """A grid's signal that answers for the world too. No grid is the world's, so nobody is asked:
    it is the yearly average, which jobs without a zone are accounted at whatever the signal.
    """

    def __init__(self, signal: IntensitySignal) -> None:
        self._signal = signal
        self._averages = StaticSignal()

    def at(self, zone: str, moment: datetime) -> Intensity:
        return self._of(zone).at(zone, moment)

    def series(self, zone: str, start: datetime, end: datetime) -> tuple[Intensity, ...]:
        return self._of(zone).series(zone, start, end)

    def forecast(self, zone: str, now: datetime, end: datetime) -> tuple[Intensity, ...]:
        return self._of(zone).forecast(zone, now, end)

    def _of(self, zone: str) -> IntensitySignal:
        return self._averages if normal_zone(zone) == WORLD else self._signal


def open_signal(
    kind: str,
    traces: Path | None = None,
    *,
    speed: float = 1.0,
    anchor: datetime | None = None,
    live: LiveOptions | None = None,
) -> IntensitySignal:
    """The signal that the settings name; it knows `WORLD` beside its own zones. Opening one makes
    no request.

    Args:
        kind: one of `SIGNALS`; "static" is yearly averages, offline.
        traces: CSV file, or folder of them, for "trace".
        speed, anchor: accelerated replay, see `TraceSignal`.
        live: for the providers.

    Raises:
        InvalidInput: unknown kind, missing credentials, or traces that are missing or broken.
    """
    if kind == "static":
        return StaticSignal()
    if kind == "trace":
        if traces is None:
            raise InvalidInput(
                "The trace signal needs a CSV file or a folder of them (GREENTUNE_CARBON_TRACES)."
            )
        return _AndWorld(TraceFiles(traces, speed=speed, anchor=anchor))
    options = live or LiveOptions()
    live_signal = LiveSignal(
        _provider(kind, options),
        store=options.store,
        staleness=options.staleness,
        patience=options.patience,
        on_trouble=options.on_trouble,
    )
    return _AndWorld(live_signal)


def _provider(kind: str, options: LiveOptions) -> Provider:
    url = options.base_url
    if kind == "gb":
        return great_britain.open_great_britain(url or great_britain.BASE_URL)
    if kind == "watttime":
        _need(kind, "user name and password", options.user and options.password)
        return watttime.open_watttime(options.user, options.password, url or watttime.BASE_URL)
    if kind == "electricity_maps":
        _need(kind, "token", options.token)
        base_url = url or electricity_maps.BASE_URL
        return electricity_maps.open_electricity_maps(options.token, base_url)
    if kind == "entsoe":
        _need(kind, "token", options.token)
        return entsoe.open_entsoe(options.token, url or entsoe.BASE_URL)
    raise InvalidInput(f"Unknown carbon signal {kind!r}; known: {', '.join(SIGNALS)}.")


def _need(kind: str, what: str, given: str) -> None:
    if not given:
        raise InvalidInput(f"The carbon signal {kind!r} needs a {what} in the settings.")
