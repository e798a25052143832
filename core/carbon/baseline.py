"""Full fine-tuning of the same data, started at submission, and what was saved against it.

The effort (joules, seconds) of full fine-tuning is, in this order,

``calibrated``   seconds and joules per trained token, measured where full fine-tuning ran (on the
                 job's own machine, in it or before it), times the tokens trained. Training steps
                 alone: preparing and delivering are left out, so that savings are understated.
``modelled``     metered energy and time of steps and selections x (full FLOPs / spent FLOPs), and
                 what preparing, evaluating, checkpoints and delivering took as it was, for those
                 cost full fine-tuning the same. At the most all of it is proportional to FLOPs, at
                 the least nothing.

Savings split, exact by construction (E energy, CI energy-weighted mean intensity, PUE on all):

    baseline - actual = (E_full - E_model) CI_submission      less work: rho
                      + (E_model - E_actual) CI_submission    fewer joules per FLOP than that
                      + E_actual (CI_submission - CI_actual)  greener hours: shifting

with E_model = E_fixed + (E_full - E_fixed) x spent FLOPs / full FLOPs, E_fixed being the part of
E_full that is taken as it was (0 where it is calibrated).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol

from core.carbon.energy import cut_at_slots
from core.carbon.intensity import Intensity
from core.units import emissions_g

#: nvidia-smi's power error, +-5 % (arXiv 2312.02741), taken for what a calibration repeats to
CALIBRATION_ERROR = 0.05

Basis = Literal["calibrated", "modelled"]


class FullCost(Protocol):
    """Full fine-tuning as it was measured: what one trained token takes."""

    @property
    def s_per_token(self) -> float: ...
    @property
    def j_per_token(self) -> float: ...
    @property
    def measured_by(self) -> str:
        """This one's own steps ("job"), or an earlier job's on the same hardware ("machine")."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FullEffort:
    """Full fine-tuning of the same steps on the same machine; computing energy.

    Args:
        low_j, high_j: what ``energy_j`` may be by the method it was found with, the meter's own
            error aside (it is the same on both sides of a comparison).
        method: in a sentence, for the report.
        fixed_j: part of ``energy_j`` that does not go with FLOPs.
    """

    energy_j: float
    duration_s: float
    low_j: float
    high_j: float
    basis: Basis
    method: str
    fixed_j: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Full fine-tuning, started at submission; grams include PUE."""

    effort: FullEffort
    started_at: datetime
    #: what the intensity was taken from; held beyond its end
    slots: tuple[Intensity, ...]
    intensity_g_per_kwh: float
    kind: str
    source: str
    emissions_g: float

    @property
    def low_g(self) -> float:
        return self.emissions_g * self.effort.low_j / self.effort.energy_j

    @property
    def high_g(self) -> float:
        return self.emissions_g * self.effort.high_j / self.effort.energy_j


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """Grams against the baseline and where they come from; negative: spent more."""

    emissions_g: float
    share: float
    #: with the baseline at either end of its range
    share_low: float
    share_high: float
    rho_g: float
    shifting_g: float
    efficiency_g: float


def modelled_effort(
    *,
    energy_j: float,
    active_s: float,
    spent_flops: float,
    full_flops: float,
    fixed_s: float = 0.0,
) -> FullEffort:
    """Scaled from what this job used, where full fine-tuning was never measured.

    Args:
        energy_j, active_s: of all attempts; above 0, 0 or more.
        spent_flops, full_flops: above 0.
        fixed_s: part of the time, 0..``active_s``, that full fine-tuning takes as well, whatever
            its FLOPs; its energy is taken at the mean power.
    """
    ratio = full_flops / spent_flops
    fixed_j = energy_j * fixed_s / active_s if active_s > 0 else 0.0
    return FullEffort(
        energy_j=fixed_j + (energy_j - fixed_j) * ratio,
        duration_s=fixed_s + (active_s - fixed_s) * ratio,
        low_j=energy_j * min(ratio, 1.0),
        high_j=energy_j * max(ratio, 1.0),
        basis="modelled",
        method=f"metered energy of steps and selections x {ratio:.4g} (FLOPs of full fine-tuning "
        "over FLOPs spent); preparing, evaluating, checkpoints and delivering as they were",
        fixed_j=fixed_j,
    )


def calibrated_effort(cost: FullCost, tokens: int) -> FullEffort:
    """From full fine-tuning as it was measured.

    Args:
        tokens: trained so far, above 0.
    """
    energy_j = cost.j_per_token * tokens
    where = "in this job" if cost.measured_by == "job" else "by an earlier job on this hardware"
    return FullEffort(
        energy_j=energy_j,
        duration_s=cost.s_per_token * tokens,
        low_j=energy_j * (1 - CALIBRATION_ERROR),
        high_j=energy_j * (1 + CALIBRATION_ERROR),
        basis="calibrated",
        method=f"{cost.j_per_token:.4g} J per token of full fine-tuning, measured {where}, "
        f"x {tokens} tokens; steps alone, without preparing and delivering",
    )


def baseline(
    effort: FullEffort, *, submitted_at: datetime, slots: Sequence[Intensity], pue: float
) -> Baseline:
    """``effort`` spent at constant power from ``submitted_at`` on.

    Args:
        slots: from ``submitted_at`` on, one kind, at least one; where they end early (the future is
            not known yet), the last value is held.
    """
    length = timedelta(seconds=effort.duration_s)
    last = slots[-1]
    weighted = math.fsum(
        (until - begin).total_seconds() * (slot or last).value_g_per_kwh
        for begin, until, slot in cut_at_slots(submitted_at, submitted_at + length, slots)
    )
    mean = weighted / length.total_seconds() if length else last.value_g_per_kwh
    return Baseline(
        effort=effort,
        started_at=submitted_at,
        slots=tuple(slots),
        intensity_g_per_kwh=mean,
        kind=last.kind,
        source=last.source,
        emissions_g=emissions_g(effort.energy_j * pue, mean),
    )


def savings(
    against: Baseline,
    *,
    energy_j: float,
    spent_g: float,
    flops_share: float | None,
) -> Savings | None:
    """None where there is nothing to compare.

    Args:
        energy_j: computing energy spent.
        spent_g: its grams, of the baseline's kind, PUE included.
        flops_share: spent over full FLOPs; None: the split follows energy alone.
    """
    if against.emissions_g <= 0 or energy_j <= 0:
        return None
    full_j = against.effort.energy_j
    g_per_joule = against.emissions_g / full_j
    share = energy_j / full_j if flops_share is None else flops_share
    fixed_j = 0.0 if flops_share is None else against.effort.fixed_j
    saved_g = against.emissions_g - spent_g
    model_j = fixed_j + (full_j - fixed_j) * share
    rho_g = (full_j - model_j) * g_per_joule
    efficiency_g = (model_j - energy_j) * g_per_joule
    return Savings(
        emissions_g=saved_g,
        share=saved_g / against.emissions_g,
        share_low=1 - spent_g / against.low_g,
        share_high=1 - spent_g / against.high_g,
        rho_g=rho_g,
        efficiency_g=efficiency_g,
        shifting_g=saved_g - rho_g - efficiency_g,
    )
