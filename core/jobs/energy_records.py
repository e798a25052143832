"""Records of energy and what became of it: samples, overheads, costs and sums."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Full fine-tuning started at submission, as `core.carbon.baseline` has it."""

    #: of the intensity: "average" or "marginal"
    kind: str
    energy_j: float
    emissions_g: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FullCostRecord:
    """Full fine-tuning of this job's base model on its hardware, as it was measured."""

    s_per_token: float
    j_per_token: float
    #: this job's own steps, or an earlier job's on the same hardware
    measured_by: Literal["job", "machine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KindSpent:
    """Energy of a job that one kind of intensity is known of, and its grams."""

    #: "average" or "marginal"
    kind: str
    energy_j: float
    #: without the building's share
    emissions_g: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstIntensity:
    """What a sample was accounted at before the grid told better."""

    intensity_g_per_kwh: float | None
    intensity_kind: str | None
    intensity_source: str | None
    intensity_is_estimated: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyRecord:
    """Energy of one device over one interval. Identified by (attempt, device, started_at)."""

    device: str
    started_at: datetime
    ended_at: datetime
    energy_j: float
    #: how it was obtained, e.g. "nvml_counter", "rapl", "estimate"
    method: str
    #: of the grid when the sample was written; None: no usable signal
    intensity_g_per_kwh: float | None = None
    intensity_kind: str | None = None
    intensity_source: str | None = None
    intensity_is_estimated: bool | None = None
    zone: str | None = None
    #: set by the store; a worker's samples always belong to its own attempt
    attempt: int = 0
    #: set by `revise_energy`; None: accounted once
    revised_from: FirstIntensity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OverheadRecord:
    """A time of an attempt that went into something other than training steps.

    Identified by (attempt, kind, started_at).
    """

    #: such as "selection" or "checkpoint"
    kind: str
    started_at: datetime
    ended_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SpentRecord:
    """Energy of one job, added up per zone, method and kind of intensity."""

    job_id: str
    zone: str | None
    method: str
    intensity_kind: str | None
    #: of the samples that lie wholly inside the time asked for
    energy_j: float
    #: theirs, each times its intensity: J g/kWh
    weighted: float
    #: of all samples, whenever
    all_time_j: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRecord:
    """What training a base model cost on some hardware: measured in a job's first steps."""

    model: str
    hardware: str
    #: share of full fine-tuning's FLOPs that was trained at
    rho: float
    #: of trained tokens, without padding
    s_per_token: float
    j_per_token: float
    updated_at: datetime
