"""The energy meter of a training process: joules per device and interval, never a reason to stop.

One thread owns every source; the training thread only starts and stops it, or asks for a reading.
Measured beats estimated: a source's devices are dropped where an earlier source has them already.
An error of a source is a warning and a gap: a counter makes up for it at the next reading, whose
interval then reaches back to the last good one; an estimate for a gap is never invented.

Interval stamps come from one wall-clock anchor plus the monotonic clock, so that a clock that is
set back cannot make two intervals of a process overlap.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, Self

import psutil

from core.carbon.energy import Attribution, Device, EnergySample, MeterGap, Method
from core.carbon.sources import EnergySource, NvmlSource, RaplSource, Reading
from core.carbon.tracker import CodecarbonSource

__all__ = ["Attribution", "Device", "EnergyMeter", "EnergySample", "MeterGap", "Method"]

#: power is integrated at this pace where a card has no energy counter
_POLL_S = 1.0
#: how long the training thread waits for a reading before it goes on without
_PATIENCE_S = 10.0


OnSamples = Callable[[tuple[EnergySample, ...]], None]
OnWarning = Callable[[str], None]


class _ProcessShare:
    """This process's part of all CPU work of the machine since the last call, 0..1."""

    def __init__(self) -> None:
        self._last_own_s = self._last_busy_s = 0.0

    def __call__(self) -> float:
        own_s, busy_s = time.process_time(), _busy_s()
        own_delta_s, busy_delta_s = own_s - self._last_own_s, busy_s - self._last_busy_s
        self._last_own_s, self._last_busy_s = own_s, busy_s
        return min(own_delta_s / busy_delta_s, 1.0) if busy_delta_s > 0 else 1.0


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


@dataclass(slots=True)
class _Opened:
    source: EnergySource
    #: what it is asked for: its devices less those of better sources
    devices: frozenset[Device]
    since: datetime
    failing: bool = False


class EnergyMeter:
    """Meters this process from `start` to `stop`.

    Args:
        on_samples: gets each batch, called on the meter's thread; a batch that it refuses by
            raising is offered again with the next one. None: nobody yet, see `receive`.
        on_warning: gets one sentence per trouble, once until it clears; called on the same thread.
        interval_s: seconds between batches, above 0.
        attribution: see `Attribution`; NVIDIA cards are always metered whole.
        gpu_uuids: see `NvmlSource`.
        sources: in order of preference; None: NVML, RAPL, codecarbon.
    """

    def __init__(
        self,
        on_samples: OnSamples | None = None,
        on_warning: OnWarning | None = None,
        *,
        interval_s: float = 5.0,
        attribution: Attribution = "machine",
        gpu_uuids: Sequence[str] | None = None,
        sources: Sequence[EnergySource] | None = None,
    ) -> None:
        assert interval_s > 0, interval_s
        self._on_samples = on_samples
        self._on_warning = on_warning
        self._interval_s = interval_s
        self._sources = sources if sources is not None else _default(attribution, gpu_uuids)
        self._opened: list[_Opened] = []
        self._unsent: list[EnergySample] = []
        self._untold: list[str] = []
        self._refused = False
        self._gaps: list[MeterGap] = []
        self._asked: queue.Queue[tuple[Literal["read", "stop"], threading.Event]] = queue.Queue()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="energy-meter", daemon=True)
        self._anchor = datetime.now(UTC)
        self._anchor_s = time.monotonic()

    @property
    def gaps(self) -> tuple[MeterGap, ...]:
        return tuple(self._gaps)

    @property
    def started_at(self) -> datetime:
        """Aware UTC; when `start` was called."""
        return self._anchor

    def receive(self, on_samples: OnSamples, on_warning: OnWarning) -> None:
        """From now on; what was metered or went wrong before comes first. A process can so be
        metered before it has loaded what it needs to store anything.
        """
        self._on_samples, self._on_warning = on_samples, on_warning

    def start(self) -> None:
        """Returns when the sources are counting (about a second), or after ten whatever happens:
        what follows is metered from its first joule. A meter that runs stays as it is.
        """
        if self._thread.ident is not None:
            return
        self._anchor, self._anchor_s = datetime.now(UTC), time.monotonic()
        self._thread.start()
        self._ready.wait(_PATIENCE_S)

    def sample(self) -> None:
        """Close the current interval now; its samples have been handed over on return."""
        self._ask("read")

    def stop(self) -> None:
        """Hand over what is left and close the sources. Never raises; may be called twice."""
        if self._thread.is_alive():
            self._ask("stop")
            self._thread.join(_PATIENCE_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _ask(self, what: Literal["read", "stop"]) -> None:
        done = threading.Event()
        self._asked.put((what, done))
        if self._thread.is_alive():
            done.wait(_PATIENCE_S)

    # From here on: the meter's thread only.

    def _now(self) -> datetime:
        return self._anchor + timedelta(seconds=time.monotonic() - self._anchor_s)

    def _run(self) -> None:
        self._open_all()
        self._ready.set()
        due_s = time.monotonic() + self._interval_s
        while True:
            wait_s = min(max(due_s - time.monotonic(), 0.0), _POLL_S)
            try:
                asked, done = self._asked.get(timeout=wait_s)
            except queue.Empty:
                if time.monotonic() < due_s:
                    self._poll_all()
                    continue
                asked, done = "read", threading.Event()
            self._read_all()
            self._hand_over()
            due_s = time.monotonic() + self._interval_s
            if asked == "stop":
                self._close_all()
            done.set()
            if asked == "stop":
                return

    def _open_all(self) -> None:
        taken: frozenset[Device] = frozenset()
        for source in self._sources:
            try:
                source.open()
            except Exception as error:  # noqa: BLE001  metering never fails training
                self._warn(f"{_name(source)} cannot be read: {_said(error)}.")
                continue
            devices = source.devices - taken
            taken |= devices
            self._opened.append(_Opened(source=source, devices=devices, since=self._now()))
        if not taken:
            self._warn("No energy source works here: this job's energy is not metered.")
            self._gap(self._anchor, ("cpu", "gpu", "ram"), "no energy source")

    def _poll_all(self) -> None:
        for opened in self._opened:
            try:
                opened.source.poll()
            except Exception as error:  # noqa: BLE001  as above; told at the next reading
                self._trouble(opened, error)

    def _read_all(self) -> None:
        for opened in self._opened:
            now = self._now()
            try:
                readings = opened.source.read()
            except Exception as error:  # noqa: BLE001  as above
                self._trouble(opened, error)
                continue
            if now > opened.since:
                self._unsent += [
                    _sample(reading, opened.since, now)
                    for reading in readings
                    if reading.device in opened.devices
                ]
            if opened.failing:
                self._gap(opened.since, tuple(sorted(opened.devices)), "readings failed")
            opened.since, opened.failing = now, False

    def _trouble(self, opened: _Opened, error: Exception) -> None:
        if not opened.failing:
            self._warn(
                f"{_name(opened.source)} failed ({_said(error)}): a gap in the record of "
                f"{', '.join(sorted(opened.devices)) or 'nothing'} until it answers again."
            )
        opened.failing = True

    def _hand_over(self) -> None:
        untold, self._untold = self._untold, []
        for sentence in untold:
            self._warn(sentence)
        if not self._unsent or self._on_samples is None:
            return
        try:
            self._on_samples(tuple(self._unsent))
        except Exception as error:  # noqa: BLE001  the receiver's trouble is not training's
            if not self._refused:
                self._warn(f"Energy samples could not be handed over ({_said(error)}); kept.")
            self._refused = True
            return
        self._unsent.clear()
        self._refused = False

    def _close_all(self) -> None:
        for opened in self._opened:
            if opened.failing:
                self._gap(opened.since, tuple(sorted(opened.devices)), "no reading at the end")
            try:
                opened.source.close()
            except Exception as error:  # noqa: BLE001  as above
                self._warn(f"{_name(opened.source)} did not close: {_said(error)}.")
        if self._unsent:
            self._warn(f"{len(self._unsent)} energy samples were lost: nobody took them.")
            self._gap(self._unsent[0].started_at, ("cpu", "gpu", "ram"), "samples not stored")

    def _gap(self, since: datetime, devices: tuple[Device, ...], reason: str) -> None:
        self._gaps.append(
            MeterGap(started_at=since, ended_at=self._now(), devices=devices, reason=reason)
        )

    def _warn(self, sentence: str) -> None:
        if self._on_warning is None:
            self._untold.append(sentence)
            return
        with suppress(Exception):  # nobody is left to tell
            self._on_warning(sentence)


def _default(attribution: Attribution, gpu_uuids: Sequence[str] | None) -> tuple[EnergySource, ...]:
    share = _ProcessShare() if attribution == "process" else None
    return NvmlSource(gpu_uuids), RaplSource(share=share), CodecarbonSource(attribution)


def _sample(reading: Reading, since: datetime, until: datetime) -> EnergySample:
    return EnergySample(
        started_at=since,
        ended_at=until,
        device=reading.device,
        energy_j=reading.energy_j,
        method=reading.method,
    )


def _name(source: EnergySource) -> str:
    return type(source).__name__.removesuffix("Source")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".: ")
