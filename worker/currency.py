"""What a job's rho counts with: the clock, or the energy counters of the device that trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

import torch

from core.carbon.energy import Device, Method
from core.carbon.sources import EnergySource, NvmlSource, RaplSource
from core.spec import Currency
from core.training.hooks import Hook, StartRecord
from core.training.rates import Meter

#: others are integrals of power that is polled, or models of it: no use for a tenth of a second
_COUNTERS: Final[frozenset[Method]] = frozenset({"nvml_counter", "rapl"})
#: a card's counter moves every few hundredths of a second
_LEAST_S: Final = 1.0


@contextmanager
def opened_meter(
    currency: Currency, device: torch.device, sources: Sequence[EnergySource] | None = None
) -> Iterator[Meter | None]:
    """None: FLOPs, which nobody has to measure. Joules are those of the card and, where it can be
    read, the processor, whoever uses them; where no counter sees the device that trains, power is
    taken for constant and energy goes with time.

    Args:
        sources: of energy; None: NVML for the device, and RAPL.
    """
    if currency == "flops":
        yield None
    elif currency == "seconds":
        yield Meter(currency=currency)
    else:
        counters = _Counters(_sources(device) if sources is None else sources)
        needed: Device = "gpu" if device.type == "cuda" else "cpu"
        try:
            if needed in counters.open():
                yield Meter(currency=currency, unit="joules", read=counters.read, least_s=_LEAST_S)
            else:
                yield Meter(currency=currency)
        finally:
            counters.close()


class Floor(Hook):
    """The lowest feasible share, known once the machine was measured: what nobody named as a number
    is raised to it.
    """

    def __init__(self) -> None:
        self.rho_min = 0.0

    def on_start(self, record: StartRecord) -> None:
        self.rho_min = record.rho_min


class _Counters:
    """A running total of measured joules over several sources, best first."""

    def __init__(self, sources: Sequence[EnergySource]) -> None:
        self._sources = sources
        self._opened: list[tuple[EnergySource, frozenset[Device]]] = []
        self._total_j = 0.0

    def open(self) -> frozenset[Device]:
        """What is counted."""
        taken: frozenset[Device] = frozenset()
        for source in self._sources:
            # a source may fail in any way; then another one, or the clock, has to do
            with suppress(Exception):
                source.open()
                counted = {r.device for r in source.read() if r.method in _COUNTERS}
                self._opened.append((source, frozenset(counted - taken)))
                taken |= counted
        return taken

    def read(self) -> float:
        for source, devices in self._opened:
            self._total_j += sum(r.energy_j for r in source.read() if r.device in devices)
        return self._total_j

    def close(self) -> None:
        for source, _ in self._opened:
            with suppress(Exception):
                source.close()


def _sources(device: torch.device) -> tuple[EnergySource, ...]:
    uuids = None
    if device.type == "cuda":
        uuids = [str(torch.cuda.get_device_properties(device).uuid)]
    return NvmlSource(uuids), RaplSource()
