"""What `greentune run` has used, over all runs in its folder: the rows of its emissions report."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.carbon.account import Attempt, Overhead
from core.carbon.energy import EnergySample, MeteredEnergy, attribute
from core.carbon.intensity import IntensitySignal
from core.errors import GreentuneError
from worker.local_folder import LocalFolder
from worker.whole_files import append_whole, write_whole


class Account:
    """Energy with the intensity of its time, attempts and overheads, as lines of JSON: what was
    used is written down at once, and lost to no crash.

    A signal that is away leaves samples without an intensity; it never reads as 0 g.
    """

    def __init__(
        self,
        folder: LocalFolder,
        signal: IntensitySignal,
        zone: str,
        warn: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._signal = signal
        self._zone = zone
        self._warn = warn
        self._lock = threading.Lock()
        self._rows = [MeteredEnergy(**_parsed(line)) for line in _lines(folder.energy)]
        self._overheads = [Overhead(**_parsed(line)) for line in _lines(folder.overheads)]
        #: by number; what is said later of one replaces what was said before
        self._attempts = {
            attempt.number: attempt
            for attempt in (Attempt(**_parsed(line)) for line in _lines(folder.attempts))
        }
        self._number = max((*self._attempts, *(row.attempt for row in self._rows)), default=0)

    @property
    def rows(self) -> tuple[MeteredEnergy, ...]:
        with self._lock:
            return tuple(self._rows)

    @property
    def overheads(self) -> tuple[Overhead, ...]:
        return tuple(self._overheads)

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        return tuple(self._attempts.values())

    @contextmanager
    def attempt(self) -> Iterator[Attempt]:
        """One run of the command. Leaving it without `ended` means that it failed."""
        self._number += 1
        attempt = Attempt(
            number=self._number,
            worker=socket.gethostname(),
            started_at=datetime.now(UTC),
            # nobody says what else runs here
            attribution="machine",
        )
        self._keep(attempt)
        try:
            yield attempt
        finally:
            if self._attempts[attempt.number].outcome is None:
                self.ended("failed")

    def ended(self, outcome: str) -> None:
        attempt = self._attempts[self._number]
        self._keep(replace(attempt, ended_at=datetime.now(UTC), outcome=outcome))

    def take(self, samples: tuple[EnergySample, ...]) -> None:
        """From the meter, on its thread."""
        if not samples:
            return
        start, end = min(s.started_at for s in samples), max(s.ended_at for s in samples)
        try:
            slots = self._signal.series(self._zone, start, end)
        except GreentuneError as error:
            self._warn(f"No carbon intensity for {self._zone}: {error}")
            slots = ()
        rows = attribute(samples, slots, attempt=self._number)
        with self._lock:
            _append(self._folder.energy, *rows)
            self._rows.extend(rows)

    def take_overhead(self, overhead: Overhead) -> None:
        _append(self._folder.overheads, overhead)
        self._overheads.append(overhead)

    def _keep(self, attempt: Attempt) -> None:
        _append(self._folder.attempts, attempt)
        self._attempts[attempt.number] = attempt


def _append(path: Path, *rows: Any) -> None:
    append_whole(path, "".join(json.dumps(asdict(row), default=str) + "\n" for row in rows))


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines: a process that was killed may have left half a one."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_whole(path, whole)
    return [json.loads(line) for line in whole.splitlines()]


def _parsed(raw: dict[str, Any]) -> dict[str, Any]:
    for key in ("started_at", "ended_at"):
        if raw[key] is not None:
            raw[key] = datetime.fromisoformat(raw[key])
    return raw
