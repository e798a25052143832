"""What the benchmarks measure a run with, and how they write it down.

``Gauge``: wall seconds, CPU seconds, joules and peak memory of chosen stretches of a process.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import torch

from core.carbon.energy import EnergySample
from core.carbon.meter import EnergyMeter
from core.carbon.sources import EnergySource

#: heading of what was written by hand under what was measured
READING: Final = "## Reading"
_CLEAR_REFS: Final = Path("/proc/self/clear_refs")
_STATUS: Final = Path("/proc/self/status")
_RESET_PEAK: Final = "5"
_HIGH_WATER: Final = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


class Gauge:
    """Sums over the stretches between `resume` and `pause`; what lies between costs nothing.

    The meter's intervals are closed at both ends of a stretch, so a validation's joules never count
    as training's. Joules are of this process's share of the machine's work (cards: the whole card).

    Args:
        sources: of the meter; None: its own choice.
    """

    def __init__(self, sources: Sequence[EnergySource] | None = None) -> None:
        self.wall_s = 0.0
        self.cpu_s = 0.0
        self.peak_bytes = 0
        #: how the meter came by them -> joules
        self.joules: dict[str, float] = {}
        self.warnings: list[str] = []
        self._meter = EnergyMeter(
            self._take, self.warnings.append, attribution="process", sources=sources
        )
        self._is_counting = False
        self._since: tuple[float, float] = (0.0, 0.0)

    @property
    def energy_j(self) -> float:
        return sum(self.joules.values())

    def __enter__(self) -> Self:
        self._meter.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._meter.stop()

    def resume(self) -> None:
        assert not self._is_counting, "it counts already"
        self._meter.sample()
        reset_peak()
        self._is_counting = True
        self._since = (time.perf_counter(), time.process_time())

    def pause(self) -> None:
        """Does nothing where nothing is counted."""
        if not self._is_counting:
            return
        synchronise()
        self.wall_s += time.perf_counter() - self._since[0]
        self.cpu_s += time.process_time() - self._since[1]
        self.peak_bytes = max(self.peak_bytes, peak_bytes())
        self._meter.sample()
        self._is_counting = False

    def _take(self, samples: tuple[EnergySample, ...]) -> None:
        if self._is_counting:
            for sample in samples:
                key = f"{sample.device} {sample.method}"
                self.joules[key] = self.joules.get(key, 0.0) + sample.energy_j


def synchronise() -> None:
    """Wait for what the card still computes: before a clock is read."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes() -> int:
    """Most memory held since the peak was last reset: the card's, or else the process's own. Where
    Linux does not tell (no /proc), since the process began.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        if found := _HIGH_WATER.search(_STATUS.read_text()):
            return 1024 * int(found[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU thread(s) ({platform.machine()})"


def load() -> float | None:
    """Processes that want a core, mean of the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def mean_text(found: Sequence[Mapping[str, Any]], key: str, form: str) -> str:
    """Mean of ``key``, ± the standard deviation of several; empty where there is nothing."""
    values = [float(each[key]) for each in found]
    if not values:
        return ""
    mean = format(statistics.mean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {format(statistics.stdev(values), form)}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def publish(text: str, path: Path | None) -> None:
    """Print a page; `write_page` it, too, where it shall lie somewhere."""
    print(text)
    if path is not None:
        write_page(path, text)


def write_page(path: Path, text: str) -> None:
    """A page of docs/. What an old one says from its heading "Reading" on is by hand, and stays."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    _, heading, reading = old.partition(f"\n{READING}\n")
    kept = f"\n{READING}\n{reading}" if heading else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text.rstrip()}\n{kept}", encoding="utf-8")


def reset_peak() -> None:
    """`peak_bytes` counts from here on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        _CLEAR_REFS.write_text(_RESET_PEAK)
