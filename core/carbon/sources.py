"""What a meter reads: hardware energy counters where they exist. The port and two of its sides.

NVML: NVIDIA Management Library, ``nvmlDeviceGetTotalEnergyConsumption`` (mJ since driver load,
Volta and newer), else ``nvmlDeviceGetPowerUsage`` integrated by the trapezoidal rule.
RAPL: the kernel's power capping zones, ``energy_uj`` of package and dram (kernel documentation,
power/powercap); usually readable by root only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from core.carbon.energy import Device, Method

_POWERCAP = Path("/sys/class/powercap")
_UJ_PER_J = 1_000_000
_MJ_PER_J = 1_000
_MW_PER_W = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Joules of one kind of device since the source's previous reading."""

    device: Device
    energy_j: float
    method: Method


class EnergySource(Protocol):
    """Something that tells joules. Any method may raise anything; the meter copes."""

    @property
    def devices(self) -> frozenset[Device]:
        """What it covers; known after `open`."""
        ...

    def open(self) -> None:
        """Find the hardware and start counting. May take seconds."""
        ...

    def poll(self) -> None:
        """Called about once a second, for sources that have to integrate power."""
        ...

    def read(self) -> tuple[Reading, ...]:
        """Joules since `open` or the last successful `read`; nothing is lost by an error."""
        ...

    def close(self) -> None: ...


class RaplSource:
    """Package and dram energy of the CPUs out of the kernel's counters.

    Args:
        root: folder of the powercap zones.
        share: this process's part (0..1) of the CPU work since the last call; None: all of it.
    """

    def __init__(self, root: Path = _POWERCAP, share: Callable[[], float] | None = None) -> None:
        self._root = root
        self._share = share
        self._zones: list[tuple[Device, Path, int]] = []
        self._last_uj: dict[Path, int] = {}

    @property
    def devices(self) -> frozenset[Device]:
        return frozenset(device for device, _, _ in self._zones)

    def open(self) -> None:
        for zone in sorted(self._root.glob("intel-rapl:*")):
            name = (zone / "name").read_text().strip()
            device: Device = "ram" if name == "dram" else "cpu"
            if name == "dram" or name.startswith("package"):
                counter = zone / "energy_uj"
                self._last_uj[counter] = int(counter.read_text())
                wrap_uj = int((zone / "max_energy_range_uj").read_text())
                self._zones.append((device, counter, wrap_uj))
        if self._share is not None:
            self._share()

    def poll(self) -> None:
        """A counter needs no polling; it wraps after minutes at the least."""

    def read(self) -> tuple[Reading, ...]:
        now_uj = {counter: int(counter.read_text()) for _, counter, _ in self._zones}
        share = 1.0 if self._share is None else self._share()
        total_j: dict[Device, float] = dict.fromkeys(sorted(self.devices), 0.0)
        for device, counter, wrap_uj in self._zones:
            spent_uj = now_uj[counter] - self._last_uj[counter]
            if spent_uj < 0:
                spent_uj += wrap_uj
            total_j[device] += share * spent_uj / _UJ_PER_J
        self._last_uj = now_uj
        return tuple(
            Reading(device=device, energy_j=energy_j, method="rapl")
            for device, energy_j in total_j.items()
        )

    def close(self) -> None:
        """Files are opened and closed per reading."""


@dataclass(slots=True)
class _Gpu:
    """One card: its last counter, or the power integral that replaces it."""

    handle: Any
    has_counter: bool
    last_mj: int = 0
    power_w: float = 0.0
    power_at_s: float = 0.0
    integral_j: float = 0.0


class NvmlSource:
    """Energy of NVIDIA cards.

    Args:
        uuids: of the cards that the process uses (``torch.cuda.get_device_properties(i).uuid``);
            None: every card of the machine. A MIG slice has no meter of its own: name its card.
    """

    def __init__(self, uuids: Sequence[str] | None = None) -> None:
        self._uuids = uuids
        self._nvml: Any = None
        self._gpus: list[_Gpu] = []

    @property
    def devices(self) -> frozenset[Device]:
        return frozenset({"gpu"} if self._gpus else ())

    def open(self) -> None:
        import pynvml  # noqa: PLC0415  the package is part of the worker's stack, not of the API's

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError_LibraryNotFound:
            return  # no NVIDIA driver: nothing to meter, which is no error
        self._nvml = pynvml
        for handle in self._handles():
            gpu = _Gpu(handle=handle, has_counter=True)
            try:
                gpu.last_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            except pynvml.NVMLError_NotSupported:
                gpu.has_counter = False
                gpu.power_w = pynvml.nvmlDeviceGetPowerUsage(handle) / _MW_PER_W
                gpu.power_at_s = time.monotonic()
            self._gpus.append(gpu)

    def _handles(self) -> list[Any]:
        if self._uuids is None:
            count = self._nvml.nvmlDeviceGetCount()
            return [self._nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        named = (uuid if uuid.startswith("GPU-") else f"GPU-{uuid}" for uuid in self._uuids)
        return [self._nvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in named]

    def poll(self) -> None:
        for gpu in self._gpus:
            if not gpu.has_counter:
                power_w = self._nvml.nvmlDeviceGetPowerUsage(gpu.handle) / _MW_PER_W
                now_s = time.monotonic()
                gpu.integral_j += (gpu.power_w + power_w) / 2 * (now_s - gpu.power_at_s)
                gpu.power_w, gpu.power_at_s = power_w, now_s

    def read(self) -> tuple[Reading, ...]:
        if not self._gpus:
            return ()
        self.poll()
        counters = {
            id(gpu): self._nvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle)
            for gpu in self._gpus
            if gpu.has_counter
        }
        energy_j = 0.0
        for gpu in self._gpus:
            if gpu.has_counter:
                # a driver reload restarts the counter at 0: what was spent before it is lost
                energy_j += max(counters[id(gpu)] - gpu.last_mj, 0) / _MJ_PER_J
                gpu.last_mj = counters[id(gpu)]
            else:
                energy_j += gpu.integral_j
                gpu.integral_j = 0.0
        counted = all(gpu.has_counter for gpu in self._gpus)
        method: Method = "nvml_counter" if counted else "nvml_power"
        return (Reading(device="gpu", energy_j=energy_j, method=method),)

    def close(self) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
