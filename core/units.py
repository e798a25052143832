"""The only unit conversions in the project. Constants are exact by definition.

Names carry their unit: ``energy_j``, ``power_w``, ``duration_s``, ``emissions_g``,
``intensity_g_per_kwh``, ``flops``. One multiply-add is two FLOPs.
"""

from __future__ import annotations

JOULES_PER_WH = 3_600.0
JOULES_PER_KWH = 3_600_000.0
GRAMS_PER_POUND = 453.59237
KWH_PER_MWH = 1_000.0
FLOPS_PER_GFLOP = 1_000_000_000.0
FLOPS_PER_TFLOP = 1_000_000_000_000.0
SECONDS_PER_MINUTE = 60.0
SECONDS_PER_HOUR = 3_600.0
BYTES_PER_GIB = 1_073_741_824


def joules_to_wh(energy_j: float) -> float:
    return energy_j / JOULES_PER_WH


def wh_to_joules(energy_wh: float) -> float:
    return energy_wh * JOULES_PER_WH


def joules_to_kwh(energy_j: float) -> float:
    return energy_j / JOULES_PER_KWH


def kwh_to_joules(energy_kwh: float) -> float:
    return energy_kwh * JOULES_PER_KWH


def emissions_g(energy_j: float, intensity_g_per_kwh: float) -> float:
    """Grams of CO2-equivalent for ``energy_j`` joules at a grid intensity in g/kWh."""
    return joules_to_kwh(energy_j) * intensity_g_per_kwh


def pounds_per_mwh_to_g_per_kwh(intensity_lbs_per_mwh: float) -> float:
    return intensity_lbs_per_mwh * GRAMS_PER_POUND / KWH_PER_MWH


def flops_to_tflop(flops: float) -> float:
    return flops / FLOPS_PER_TFLOP


def bytes_to_gib(size_bytes: int) -> float:
    return size_bytes / BYTES_PER_GIB
