"""The training process's meter, from before anything heavy is loaded.

Importing the training stack takes seconds, of every attempt, at full power. The meter needs none
of it, and so it is opened first; the runner is told what it has seen once it can store samples.
"""

from __future__ import annotations

from core.carbon.energy import Attribution
from core.carbon.meter import EnergyMeter
from core.settings import Settings


def attribution_of(*, shares_host: bool) -> Attribution:
    """Two trainings that both charged the whole machine would count its energy twice."""
    return "process" if shares_host else "machine"


def early_meter(settings: Settings, *, shares_host: bool) -> EnergyMeter:
    """Counting already; nobody receives its samples yet."""
    meter = EnergyMeter(
        interval_s=settings.meter_interval_s,
        attribution=attribution_of(shares_host=shares_host),
    )
    meter.start()
    return meter
