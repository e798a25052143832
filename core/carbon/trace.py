"""Recorded intensities, replayed against the clock: for simulation, tests and air-gapped sites.

File: CSV with the columns ``zone,timestamp_utc,gco2eq_per_kwh``; a row's value holds from its
timestamp until the next row's. Rows may lie in any order, in one file or many.

How a moment finds its row:

1. recorded moments are read as they are;
2. a trace of a year or more answers other years by month, day and time (29 February by the 28th);
3. a shorter trace repeats, in whole days so that hours of the day stay in place;
4. an hour without a row takes the nearest day's value at the same time, up to seven days off,
   earlier days first, and says ``is_estimated``.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Self

from core.carbon.intensity import Factor, Intensity, Kind, normal_zone, unknown_zone
from core.errors import InvalidInput, SignalUnavailable

COLUMNS = ("zone", "timestamp_utc", "gco2eq_per_kwh")
_DAY = timedelta(days=1)
_YEAR = timedelta(days=365)
_NEAR_DAYS = 7
#: above any grid on record (oil and peat stay under 1,500); a higher number is another unit
_MAX_G_PER_KWH = 5_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One zone on a regular grid; NaN where no row was."""

    zone: str
    start: datetime
    step: timedelta
    values_g_per_kwh: tuple[float, ...]
    files: tuple[str, ...]

    @property
    def end(self) -> datetime:
        return self.start + self.step * len(self.values_g_per_kwh)

    def value(self, index: int) -> float:
        inside = 0 <= index < len(self.values_g_per_kwh)
        return self.values_g_per_kwh[index] if inside else math.nan

    def candidates(self, moment: datetime) -> list[datetime]:
        """Recorded moments that may stand for ``moment``, best first (rules 1 to 3)."""
        found = [moment] if self.start <= moment < self.end else []
        span = self.end - self.start
        if span >= _YEAR:
            years = range(self.end.year, self.start.year - 1, -1)
            same = (_in_year(moment, year) for year in years)
            return found + [m for m in same if self.start <= m < self.end and m != moment]
        period = span if span < _DAY else _DAY * (span // _DAY)
        return found or [self.start + (moment - self.start) % period]


def _in_year(moment: datetime, year: int) -> datetime:
    leap_day = (moment.month, moment.day) == (2, 29)
    return (moment - _DAY if leap_day else moment).replace(year=year)


class TraceSignal:
    """Replays `Trace` records.

    Args:
        traces: by zone.
        kind, factor: what the recorded numbers are; the file does not say.
        speed: recorded seconds per second of the clock, above 0; slots shrink accordingly.
        anchor: the moment at which recorded time and the clock agree; needed when speed is not 1.
    """

    def __init__(
        self,
        traces: dict[str, Trace],
        *,
        kind: Kind = "average",
        factor: Factor = "lifecycle",
        speed: float = 1.0,
        anchor: datetime | None = None,
    ) -> None:
        if not (math.isfinite(speed) and speed > 0):
            raise InvalidInput(f"A trace's replay speed must be above 0; got {speed!r}.")
        if speed != 1 and anchor is None:
            raise InvalidInput("A trace replayed at another speed needs the moment it starts from.")
        self._traces = traces
        self._kind: Kind = kind
        self._factor: Factor = factor
        self._speed = speed
        self._anchor = anchor or datetime(2000, 1, 1, tzinfo=UTC)
        # datetimes round to the microsecond: at another speed a slot's end must find the next slot
        self._rounding = timedelta(microseconds=0 if speed == 1 else math.ceil(speed))

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        kind: Kind = "average",
        factor: Factor = "lifecycle",
        speed: float = 1.0,
        anchor: datetime | None = None,
    ) -> Self:
        """Read one CSV file, or every ``*.csv`` of a folder; see `read_traces`."""
        return cls(read_traces(path), kind=kind, factor=factor, speed=speed, anchor=anchor)

    @property
    def zones(self) -> tuple[str, ...]:
        return tuple(sorted(self._traces))

    def at(self, zone: str, moment: datetime) -> Intensity:
        trace = self._traces.get(normal_zone(zone))
        if trace is None:
            raise unknown_zone(zone, self._traces, "trace")
        recorded = self._anchor + (moment.astimezone(UTC) - self._anchor) * self._speed
        for candidate in trace.candidates(recorded):
            index = (candidate + self._rounding - trace.start) // trace.step
            days = _nearest_day(trace, index)
            if days is not None:
                return self._intensity(trace, moment, candidate, index, days)
        raise SignalUnavailable(
            f"The trace of {trace.zone} has no row within {_NEAR_DAYS} days of the hour that "
            f"stands for {moment.isoformat()}."
        )

    def series(self, zone: str, start: datetime, end: datetime) -> tuple[Intensity, ...]:
        slots = []
        moment = start
        while moment < end:
            slot = self.at(zone, moment)
            assert slot.until is not None
            until = min(slot.until, end)
            slots.append(replace(slot, moment=moment, until=until))
            moment = until
        return tuple(slots)

    def forecast(self, zone: str, now: datetime, end: datetime) -> tuple[Intensity, ...]:
        """The record itself: a forecast without error."""
        slots = self.series(zone, now, end)
        return tuple(replace(slot, is_forecast=slot.moment > now) for slot in slots)

    def _intensity(
        self, trace: Trace, moment: datetime, candidate: datetime, index: int, days: int
    ) -> Intensity:
        into_slot = (candidate - (trace.start + index * trace.step)) / self._speed
        start = moment.astimezone(UTC) - max(into_slot, timedelta(0))
        per_day = _DAY // trace.step
        notes = [f"trace {', '.join(trace.files)}"]
        if candidate.year != moment.year:
            notes.append(f"replayed from {candidate.year}")
        if self._speed != 1:
            notes.append(f"at {self._speed:g} times the clock")
        if days:
            notes.append(
                f"row missing, same time {abs(days)} day(s) {'later' if days > 0 else 'earlier'}"
            )
        return Intensity(
            value_g_per_kwh=trace.values_g_per_kwh[index + days * per_day],
            zone=trace.zone,
            kind=self._kind,
            factor=self._factor,
            source="; ".join(notes),
            moment=start,
            until=start + trace.step / self._speed,
            is_estimated=days != 0,
        )


def _nearest_day(trace: Trace, index: int) -> int | None:
    """Days to the nearest row at the same time of day: 0, -1, 1, -2, ...; None: none near."""
    per_day = _DAY // trace.step
    offsets = [0, *(sign * d for d in range(1, _NEAR_DAYS + 1) for sign in (-1, 1))]
    return next((d for d in offsets if not math.isnan(trace.value(index + d * per_day))), None)


def read_traces(path: Path) -> dict[str, Trace]:
    """Zone -> trace.

    Raises:
        InvalidInput: no file; or a row that breaks the format, named by file and line.
    """
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise InvalidInput(f"No trace at {path}: expected a CSV file, or a folder that holds some.")
    rows: dict[str, dict[datetime, float]] = {}
    named: dict[str, list[str]] = {}
    for file in files:
        try:
            for zone, moment, value in _rows_of(file, rows):
                rows.setdefault(zone, {})[moment] = value
                if file.name not in named.setdefault(zone, []):
                    named[zone].append(file.name)
        except (UnicodeDecodeError, csv.Error) as error:
            raise InvalidInput(f"{file.name} is no CSV file in UTF-8: {error}.") from error
    if not rows:
        raise InvalidInput(f"No trace at {path}: no file there has a row below its header.")
    return {zone: _on_grid(zone, found, tuple(named[zone])) for zone, found in rows.items()}


def _rows_of(
    file: Path, seen: dict[str, dict[datetime, float]]
) -> Iterator[tuple[str, datetime, float]]:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream)
        header = tuple(name.strip() for name in next(reader, []))
        if header != COLUMNS:
            raise InvalidInput(
                f"{file.name} line 1: the columns must be {','.join(COLUMNS)}; "
                f"got {','.join(header) or 'nothing'}."
            )
        for cells in reader:
            if cells:
                zone, moment, value = _parse(cells, f"{file.name} line {reader.line_num}")
                if seen.get(zone, {}).get(moment, value) != value:
                    raise InvalidInput(
                        f"{file.name} line {reader.line_num}: {zone} has another value for "
                        f"{moment.isoformat()} already; keep one."
                    )
                yield zone, moment, value


def _parse(cells: list[str], where: str) -> tuple[str, datetime, float]:
    if len(cells) != len(COLUMNS):
        raise InvalidInput(f"{where}: {len(COLUMNS)} columns are needed; got {len(cells)}.")
    zone, moment_text, value_text = (cell.strip() for cell in cells)
    if not zone:
        raise InvalidInput(f"{where}: zone is empty.")
    try:
        moment = datetime.fromisoformat(moment_text)
    except ValueError:
        raise InvalidInput(
            f"{where}: timestamp_utc must be like 2024-01-01T00:00Z; got {moment_text!r}."
        ) from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    try:
        value = float(value_text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= _MAX_G_PER_KWH:
        raise InvalidInput(
            f"{where}: gco2eq_per_kwh must be a number from 0 to {_MAX_G_PER_KWH:g}; "
            f"got {value_text!r}."
        )
    return normal_zone(zone), moment, value


def _on_grid(zone: str, rows: dict[datetime, float], files: tuple[str, ...]) -> Trace:
    moments = sorted(rows)
    gaps = Counter(later - earlier for earlier, later in pairwise(moments))
    step = gaps.most_common(1)[0][0] if gaps else timedelta(hours=1)
    start = moments[0]
    if _DAY % step:
        raise InvalidInput(
            f"{files[0]}: {zone} has rows every {step}, which does not divide a day."
        )
    values = [math.nan] * ((moments[-1] - start) // step + 1)
    for moment in moments:
        index, rest = divmod(moment - start, step)
        if rest:
            raise InvalidInput(
                f"{', '.join(files)}: {zone} at {moment.isoformat()} lies off the grid of "
                f"{step} that starts {start.isoformat()}."
            )
        values[index] = rows[moment]
    return Trace(zone=zone, start=start, step=step, values_g_per_kwh=tuple(values), files=files)


def filled(trace: Trace) -> tuple[float, ...]:
    """The trace's values with holes filled by rule 4, and by the value before where it fails.

    Raises:
        SignalUnavailable: the trace begins with a hole that nothing fills.
    """
    per_day = _DAY // trace.step
    values: list[float] = []
    for index in range(len(trace.values_g_per_kwh)):
        days = _nearest_day(trace, index)
        if days is not None:
            values.append(trace.value(index + days * per_day))
        elif values:
            values.append(values[-1])
        else:
            raise SignalUnavailable(f"The trace of {trace.zone} begins with a hole.")
    return tuple(values)
