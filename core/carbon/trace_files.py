"""A site's own record of its grid: trace files that grow or change while the service runs.

Whoever has no provider to ask may write what a meter or a supplier tells into CSV files. They are
read again whenever they have changed, so that API and workers need no restart. A change that breaks
the format leaves the last good record in force: training never stops for it.
"""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

from core.carbon.intensity import Intensity
from core.carbon.trace import TraceSignal
from core.errors import InvalidInput

logger = logging.getLogger(__name__)

_Stamps = tuple[tuple[str, int, int], ...]


class TraceFiles:
    """`TraceSignal` over the files as they are now.

    Args:
        path: CSV file, or folder of them.
        speed, anchor: see `TraceSignal`.

    Raises:
        InvalidInput: the files are missing or broken at the start.
    """

    def __init__(self, path: Path, *, speed: float = 1.0, anchor: datetime | None = None) -> None:
        self._path, self._speed, self._anchor = path, speed, anchor
        self._stamps = _stamps(path)
        self._signal = TraceSignal.load(path, speed=speed, anchor=anchor)

    def at(self, zone: str, moment: datetime) -> Intensity:
        return self._latest().at(zone, moment)

    def series(self, zone: str, start: datetime, end: datetime) -> tuple[Intensity, ...]:
        return self._latest().series(zone, start, end)

    def forecast(self, zone: str, now: datetime, end: datetime) -> tuple[Intensity, ...]:
        return self._latest().forecast(zone, now, end)

    def _latest(self) -> TraceSignal:
        stamps = _stamps(self._path)
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._signal = TraceSignal.load(self._path, speed=self._speed, anchor=self._anchor)
            except (InvalidInput, OSError) as error:
                logger.warning("the trace is kept as it was: %s", error)
        return self._signal


def _stamps(path: Path) -> _Stamps:
    """What tells one state of the files from another: name, time of change and size of each."""
    found = []
    for file in sorted(path.glob("*.csv")) if path.is_dir() else [path]:
        try:
            stat = file.stat()
        except OSError:  # gone since it was listed
            continue
        found.append((file.name, stat.st_mtime_ns, stat.st_size))
    return tuple(found)
