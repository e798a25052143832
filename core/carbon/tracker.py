"""codecarbon as an energy source: what it can tell where no counter is readable.

codecarbon 3.3 estimates the CPU from its load and a TDP table and the RAM by a constant model, and
does not say so in its output: the mode is read from its hardware list and carried as the method.
Only its energy is used; intensity, PUE and the sums are ours.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from core.carbon.energy import Attribution, Device, Method
from core.carbon.sources import Reading
from core.units import kwh_to_joules

#: `read` asks for measurements; codecarbon's own timer must not, so it never comes round
_NEVER_S = 1e7
#: codecarbon's mode of the CPU -> ours; anything else there is an estimate
_MEASURED_CPU = {"intel_rapl": "rapl"}


class _Deltas:
    """Receives codecarbon's totals; duck-typed as its ``BaseOutput``."""

    def __init__(self) -> None:
        self.total_kwh: dict[Device, float] | None = None

    def out(self, total: Any, delta: Any) -> None:  # noqa: ARG002  codecarbon's signature
        self.total_kwh = {
            "cpu": total.cpu_energy,
            "gpu": total.gpu_energy,
            "ram": total.ram_energy,
        }

    live_out = out

    def task_out(self, data: Any, experiment_name: str) -> None:
        """We define no tasks."""

    def exit(self) -> None:
        """Nothing is held open."""


class CodecarbonSource:
    """codecarbon's ``OfflineEmissionsTracker``, asked for its totals at each reading.

    Start it inside the process that trains: a fork drops its threads.

    Args:
        attribution: "machine" charges the whole machine to this process; "process" the CPU's TDP
            times this process's share of the cores (idle power of a shared host is nobody's then).
    """

    def __init__(self, attribution: Attribution = "machine") -> None:
        self._attribution: Attribution = attribution
        self._tracker: Any = None
        self._handler = _Deltas()
        self._methods: dict[Device, Method] = {}
        self._last_kwh: dict[Device, float] = {}

    @property
    def devices(self) -> frozenset[Device]:
        return frozenset(self._methods)

    def open(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import codecarbon  # noqa: PLC0415  its import configures logging; only when metering

            logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
            self._tracker = codecarbon.OfflineEmissionsTracker(
                # any country does, only energy is read; without one nothing is handed out
                country_iso_code="FRA",
                region=None,
                cloud_provider=None,
                cloud_region=None,
                force_carbon_intensity_g_co2e_kwh=0.0,
                output_methods=[],
                # nothing is written there; but one that the host's own codecarbon configuration
                # names and that is not here would be refused, and nothing metered
                output_dir=os.curdir,
                output_handlers=[self._handler],
                measure_power_secs=_NEVER_S,
                api_call_interval=-1,
                tracking_mode=self._attribution,
                # without it: a lock file, and a second job on the host is not metered at all
                allow_multiple_runs=True,
                log_level="critical",
                pue=1.0,
                wue=0.0,
            )
            self._tracker.start()
        self._methods = self._modes()
        self._last_kwh = dict.fromkeys(self._methods, 0.0)

    def _modes(self) -> dict[Device, Method]:
        """Method per device, from the hardware that codecarbon found."""
        modes: dict[Device, Method] = {}
        for hardware in self._tracker._hardware:  # noqa: SLF001  told nowhere else
            name = type(hardware).__name__
            if name == "RAM":
                modes["ram"] = "estimate"
            elif name == "CPU":
                mode = getattr(hardware, "_mode", "")
                modes["cpu"] = "rapl" if mode in _MEASURED_CPU else "estimate"
            elif name == "GPU":
                module = type(hardware.devices.devices[0]).__module__
                modes["gpu"] = "amdsmi" if "amd" in module else "nvml_counter"
        return modes

    def poll(self) -> None:
        """The load is sampled by codecarbon in a thread of its own, once a second."""

    def read(self) -> tuple[Reading, ...]:
        self._handler.total_kwh = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._tracker.flush()
        total_kwh = self._handler.total_kwh
        if total_kwh is None:  # codecarbon swallows its errors; this is how one shows
            raise RuntimeError("codecarbon gave no reading")
        readings = tuple(
            Reading(
                device=device,
                energy_j=kwh_to_joules(max(total_kwh[device] - self._last_kwh[device], 0.0)),
                method=method,
            )
            for device, method in self._methods.items()
        )
        self._last_kwh = total_kwh
        return readings

    def close(self) -> None:
        if self._tracker is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._tracker.stop()
