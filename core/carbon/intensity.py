"""One carbon intensity with all that must travel with it, and the port that signals implement."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from difflib import get_close_matches
from typing import Literal, Protocol

from core.errors import InvalidInput

#: emissions of the whole mix per kWh consumed, or of the plants that one more kWh calls upon;
#: sums never mix the two
Kind = Literal["average", "marginal"]
#: with construction and fuel supply, or out of the stack only
Factor = Literal["lifecycle", "direct"]
#: what a job without a zone is accounted at; always named as such, never guessed from the network
WORLD = "WORLD"
#: in the source of a value that is older than its provider promises
STAND_IN = "last known value"
#: in the source of a value that a live signal took from the yearly table
STATIC_AVERAGE = "static average"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensity:
    """Grams of CO2-equivalent per kWh of one zone, from ``moment`` until ``until``.

    Args:
        value_g_per_kwh: finite, 0 or more.
        zone: as the caller asked for it.
        source: provider or data set, in words fit for a report.
        moment: aware UTC; where the value's slot begins.
        until: aware UTC; where the slot ends (exclusive). None: until something newer is known.
        is_estimated: modelled or averaged rather than measured for this very slot.
        is_forecast: said before the slot was over.
    """

    value_g_per_kwh: float
    zone: str
    kind: Kind = "average"
    factor: Factor = "lifecycle"
    source: str
    moment: datetime
    until: datetime | None = None
    is_estimated: bool = False
    is_forecast: bool = False

    def __post_init__(self) -> None:
        assert math.isfinite(self.value_g_per_kwh), self
        assert self.value_g_per_kwh >= 0, self
        assert self.moment.tzinfo is not None, self
        assert self.until is None or self.until > self.moment, self

    def clipped(self, start: datetime, end: datetime) -> Intensity:
        """The same value for the part of its slot that lies in ``start``..``end``."""
        until = end if self.until is None else min(self.until, end)
        return replace(self, moment=max(self.moment, start), until=until)


class IntensitySignal(Protocol):
    """Where intensities come from. Unknown zones raise ``InvalidInput(param="green.zone")``;
    a zone that is known but has no usable value raises ``SignalUnavailable``.
    """

    def at(self, zone: str, moment: datetime) -> Intensity:
        """The value in force at ``moment``."""
        ...

    def series(self, zone: str, start: datetime, end: datetime) -> tuple[Intensity, ...]:
        """Adjoining slots that cover ``start``..``end`` exactly (first and last are clipped)."""
        ...

    def forecast(self, zone: str, now: datetime, end: datetime) -> tuple[Intensity, ...]:
        """Adjoining slots that cover ``now``..``end``, as far as can be known at ``now``."""
        ...


def normal_zone(zone: str) -> str:
    return zone.strip().upper()


def unknown_zone(
    zone: str, known: Iterable[str], signal: str, *, meant: str | None = None
) -> InvalidInput:
    """The error for a zone that ``signal`` does not know, naming the nearest ones it does;
    ``meant`` goes first where the caller has a better guess than spelling.
    """
    names = sorted(known)
    close = get_close_matches(normal_zone(zone), names, n=5, cutoff=0.5)
    if meant in names:
        close = [meant]
    hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(names[:12])}"
    if not close:
        hint += f" and {len(names) - 12} more." if len(names) > 12 else "."
    return InvalidInput(
        f"Unknown zone {zone!r} for the {signal} signal; {hint}", param="green.zone"
    )
