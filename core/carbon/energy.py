"""Records of metered energy, and how it meets the grid's intensity. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol

from core.carbon.intensity import Intensity

Device = Literal["gpu", "cpu", "ram"]
#: all but "estimate" are measurements of the hardware
Method = Literal["nvml_counter", "nvml_power", "amdsmi", "rapl", "estimate"]
#: whose energy the samples are: everything the machine used, or this process's part of it
Attribution = Literal["machine", "process"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergySample:
    """Joules of one kind of device over ``started_at``..``ended_at`` (aware UTC)."""

    started_at: datetime
    ended_at: datetime
    device: Device
    energy_j: float
    method: Method


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterGap:
    """A time for which ``devices`` may lack energy in the record."""

    started_at: datetime
    ended_at: datetime
    devices: tuple[Device, ...]
    reason: str


class FirstIntensity(Protocol):
    """What a row was accounted at before the grid told better; None: at nothing."""

    @property
    def intensity_g_per_kwh(self) -> float | None: ...
    @property
    def intensity_kind(self) -> str | None: ...
    @property
    def intensity_source(self) -> str | None: ...
    @property
    def intensity_is_estimated(self) -> bool | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """A `FirstIntensity` of our own."""

    intensity_g_per_kwh: float | None = None
    intensity_kind: str | None = None
    intensity_source: str | None = None
    intensity_is_estimated: bool | None = None


class Span(Protocol):
    """A time that went into something of its own."""

    @property
    def kind(self) -> str: ...
    @property
    def started_at(self) -> datetime: ...
    @property
    def ended_at(self) -> datetime: ...


class MeteredRow(Protocol):
    """A stored energy sample with the intensity found for it (`core.jobs` stores the like)."""

    @property
    def device(self) -> str: ...
    @property
    def started_at(self) -> datetime: ...
    @property
    def ended_at(self) -> datetime: ...
    @property
    def energy_j(self) -> float: ...
    @property
    def method(self) -> str: ...
    @property
    def intensity_g_per_kwh(self) -> float | None: ...
    @property
    def intensity_kind(self) -> str | None: ...
    @property
    def intensity_source(self) -> str | None: ...
    @property
    def intensity_is_estimated(self) -> bool | None: ...
    @property
    def zone(self) -> str | None: ...
    @property
    def attempt(self) -> int: ...
    @property
    def revised_from(self) -> FirstIntensity | None:
        """None: accounted once."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteredEnergy:
    """A `MeteredRow` of our own."""

    device: str
    started_at: datetime
    ended_at: datetime
    energy_j: float
    method: str
    intensity_g_per_kwh: float | None = None
    intensity_kind: str | None = None
    intensity_source: str | None = None
    intensity_is_estimated: bool | None = None
    zone: str | None = None
    attempt: int = 0
    revised_from: FirstIntensity | None = None


def attribute(
    samples: Iterable[EnergySample], slots: Sequence[Intensity], *, attempt: int = 0
) -> tuple[MeteredEnergy, ...]:
    """Samples with their intensity, cut where the intensity changes (constant power within one).

    What no slot covers keeps its energy and has no intensity.
    """
    return tuple(
        _row(sample, start, end, slot, attempt)
        for sample in samples
        for start, end, slot in cut_at_slots(sample.started_at, sample.ended_at, slots)
    )


def cut_at_slots(
    start: datetime, end: datetime, slots: Sequence[Intensity]
) -> list[tuple[datetime, datetime, Intensity | None]]:
    pieces: list[tuple[datetime, datetime, Intensity | None]] = []
    at = start
    for slot in sorted(slots, key=lambda s: s.moment):
        until = end if slot.until is None else min(slot.until, end)
        begin = max(slot.moment, at)
        if begin >= until:
            continue
        if begin > at:
            pieces.append((at, begin, None))
        pieces.append((begin, until, slot))
        at = until
    if at < end:
        pieces.append((at, end, None))
    return pieces


def _row(
    sample: EnergySample, start: datetime, end: datetime, slot: Intensity | None, attempt: int
) -> MeteredEnergy:
    whole = (start, end) == (sample.started_at, sample.ended_at)
    share = 1.0 if whole else (end - start) / (sample.ended_at - sample.started_at)
    return MeteredEnergy(
        device=sample.device,
        started_at=start,
        ended_at=end,
        energy_j=sample.energy_j * share,
        method=sample.method,
        intensity_g_per_kwh=None if slot is None else slot.value_g_per_kwh,
        intensity_kind=None if slot is None else slot.kind,
        intensity_source=None if slot is None else slot.source,
        intensity_is_estimated=None if slot is None else slot.is_estimated or slot.is_forecast,
        zone=None if slot is None else slot.zone,
        attempt=attempt,
    )


def during(
    rows: Sequence[MeteredRow], spans: Iterable[Span]
) -> Iterator[tuple[Span, MeteredRow, float]]:
    """Every row that meets a span, with the share of the row's time inside it, above 0.

    Args:
        rows: by their beginnings. Looked up, not walked through for each span: a job of a week has
            hundreds of spans and hundreds of thousands of rows.
    """
    begun = [row.started_at for row in rows]
    longest = max((row.ended_at - row.started_at for row in rows), default=timedelta(0))
    for span in spans:
        first = bisect_left(begun, span.started_at - longest)
        for row in rows[first : bisect_left(begun, span.ended_at)]:
            both = min(row.ended_at, span.ended_at) - max(row.started_at, span.started_at)
            if both > timedelta(0):
                yield span, row, both / (row.ended_at - row.started_at)
