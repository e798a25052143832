"""What an adapter offers, and the checks that every value passes on its way in."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from core.carbon.intensity import Factor, Intensity, Kind
from core.errors import SignalUnavailable

#: above any grid on record, marginal plants included; a higher number is another unit
_MAX_G_PER_KWH = 5_000.0
_MOST_SHOWN = 40


class Provider(Protocol):
    """A live source. Unknown zones raise ``InvalidInput(param="green.zone")``, everything else that
    goes wrong `SignalUnavailable` with the reason. Slots adjoin and are in order.
    """

    def current(self, zone: str, now: datetime) -> Intensity:
        """The slot in force, or the newest known one."""
        ...

    def history(self, zone: str, start: datetime, end: datetime) -> tuple[Intensity, ...]:
        """What was, as far as the provider tells; may be empty."""
        ...

    def forecast(self, zone: str, now: datetime) -> tuple[Intensity, ...]:
        """What is expected, from ``now`` as far as the provider goes; may be empty."""
        ...


def moment_of(text: Any, where: str) -> datetime:
    """An aware UTC moment out of a provider's text."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise SignalUnavailable(f"{where}: {_shown(text)} has no time zone.")
        return moment.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise SignalUnavailable(f"{where}: {_shown(text)} is no time.") from None


def value_of(raw: Any, where: str) -> float:
    """A plausible number of g/kWh; anything else is refused, above all what would read as 0."""
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        raise SignalUnavailable(f"{where}: {_shown(raw)} is no number.")
    if raw > _MAX_G_PER_KWH:  # first: JSON knows whole numbers beyond all floats
        raise SignalUnavailable(f"{where}: {_shown(raw)} is too high for g/kWh; another unit?")
    if not math.isfinite(raw) or raw < 0:
        raise SignalUnavailable(f"{where}: {_shown(raw)} cannot be an intensity.")
    return float(raw)


def _shown(raw: Any) -> str:
    """A provider's words, as far as a message should quote them."""
    text = repr(raw) if not isinstance(raw, int) or abs(raw) < 10**20 else "a huge number"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def slots_of(
    points: list[tuple[datetime, float, bool]],
    *,
    zone: str,
    source: str,
    step: timedelta,
    kind: Kind = "average",
    factor: Factor = "lifecycle",
    is_forecast: bool = False,
) -> tuple[Intensity, ...]:
    """Points (moment, g/kWh, estimated) as slots that end where the next one begins, ``step`` later
    at the most.
    """
    ordered = sorted({moment: (value, estimated) for moment, value, estimated in points}.items())
    slots = []
    for index, (moment, (value, estimated)) in enumerate(ordered):
        until = moment + step
        if index + 1 < len(ordered):
            until = min(until, ordered[index + 1][0])
        slots.append(
            Intensity(
                value_g_per_kwh=value,
                zone=zone,
                kind=kind,
                factor=factor,
                source=source,
                moment=moment,
                until=until,
                is_estimated=estimated,
                is_forecast=is_forecast,
            )
        )
    return tuple(slots)


def dictionary(raw: Any, where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise SignalUnavailable(f"{where}: an object was expected; got {type(raw).__name__}.")
    return raw


def entries(raw: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(raw, list):
        raise SignalUnavailable(f"{where}: a list was expected; got {type(raw).__name__}.")
    return [dictionary(entry, where) for entry in raw]
