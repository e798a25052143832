"""rho "auto": how much of full fine-tuning's effort a grid's intensity is worth.

Derivation. Let a job's quality be q(rho) = rho^alpha (concave, 0 < alpha < 1) and its emissions
proportional to rho times the intensity CI of the dirtiest hour that one more step would use.
Spending grams where they buy most quality across jobs means equal marginal quality per gram:
alpha rho^(alpha - 1) / CI = constant, hence

    rho = rho_ref (CI_ref / CI_marginal)^(1 / (1 - alpha)),   clipped to rho_min..1     (1)

CI_ref is the geometric blend of an absolute reference with the zone's own trailing median.
An absolute reference saves most across zones; a percentile of the zone alone would slow jobs down
in grids that are clean at every hour, and speed them up in dirty ones.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

from core.carbon.intensity import Intensity

#: share of full fine-tuning's FLOPs at the reference intensity: the middle setting of GreenTrainer
#: (arXiv 2309.13192: OPT-2.7B on SciTLDR, ROUGE-1 30.5 at rho .5 against 32.9 in full; below .4
#: quality collapses)
RHO_REFERENCE = 0.5
#: exponent of the quality curve; .25 makes the rule stronger than proportional (power 4/3)
ALPHA = 0.25
#: g/kWh, lifecycle average of the world's generation in 2023 (Our World in Data / Ember, as shipped
#: in codecarbon 3.3: 480.6, see `core.carbon.static`)
ABSOLUTE_REFERENCE_G_PER_KWH = 480.0
#: weight of the absolute reference in the blend; the rest is the trailing median's
ABSOLUTE_WEIGHT = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class RhoRule:
    """Parameters of equation (1)."""

    rho_reference: float = RHO_REFERENCE
    alpha: float = ALPHA
    absolute_g_per_kwh: float = ABSOLUTE_REFERENCE_G_PER_KWH
    absolute_weight: float = ABSOLUTE_WEIGHT

    def __post_init__(self) -> None:
        assert 0 < self.rho_reference <= 1, self
        assert 0 < self.alpha < 1, self
        assert self.absolute_g_per_kwh > 0, self
        assert 0 <= self.absolute_weight <= 1, self


@dataclass(frozen=True, slots=True, kw_only=True)
class RhoDecision:
    """A chosen rho with every number that led to it; fit for an event."""

    rho: float
    rho_min: float
    #: equation (1) before clipping
    rho_unclipped: float
    clipped: Literal["low", "high"] | None
    rho_reference: float
    alpha: float
    intensity_g_per_kwh: float
    #: CI_ref of equation (1)
    reference_g_per_kwh: float
    #: None where the signal is marginal: an average reference would not compare
    absolute_g_per_kwh: float | None
    #: None where no history was at hand
    trailing_median_g_per_kwh: float | None
    zone: str
    kind: str
    source: str
    is_estimated: bool

    @property
    def reason(self) -> str:
        """One sentence for people."""
        ratio = f"{self.intensity_g_per_kwh:.0f} g/kWh ({self.kind}) in {self.zone} against a "
        ratio += f"reference of {self.reference_g_per_kwh:.0f} g/kWh"
        bound = {
            None: "",
            "low": f", raised to the lowest feasible {self.rho_min:.3g}",
            "high": ", held at full fine-tuning",
        }[self.clipped]
        return f"rho {self.rho:.3f}: {ratio} gives {self.rho_unclipped:.3f}{bound}."

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "reason": self.reason}


def choose_rho(
    marginal: Intensity,
    *,
    history: tuple[Intensity, ...] = (),
    rho_min: float,
    rule: RhoRule | None = None,
) -> RhoDecision:
    """Equation (1).

    Args:
        marginal: the dirtiest slot that the work will use; for a job that starts now, now.
        history: recent slots of the same zone and kind, for the trailing median (a week is good);
            slots of another kind are left out, since the two do not compare.
        rho_min: lowest feasible share, 0..1, of this model and data.
        rule: parameters; None for the documented defaults.
    """
    rule = rule or RhoRule()
    assert 0 < rho_min <= 1, rho_min
    alike = [slot.value_g_per_kwh for slot in history if slot.kind == marginal.kind]
    trailing = median(alike) if alike else None
    absolute = rule.absolute_g_per_kwh if marginal.kind == "average" else None
    reference = _blend(absolute, trailing, rule.absolute_weight)
    if reference is None:
        reference = marginal.value_g_per_kwh
    unclipped = _power_law(reference, marginal.value_g_per_kwh, rule)
    rho = min(max(unclipped, rho_min), 1.0)
    return RhoDecision(
        rho=rho,
        rho_min=rho_min,
        rho_unclipped=unclipped,
        clipped="low" if rho > unclipped else "high" if rho < unclipped else None,
        rho_reference=rule.rho_reference,
        alpha=rule.alpha,
        intensity_g_per_kwh=marginal.value_g_per_kwh,
        reference_g_per_kwh=reference,
        absolute_g_per_kwh=absolute,
        trailing_median_g_per_kwh=trailing,
        zone=marginal.zone,
        kind=marginal.kind,
        source=marginal.source,
        is_estimated=marginal.is_estimated,
    )


def _blend(absolute: float | None, trailing: float | None, weight: float) -> float | None:
    if absolute is None or trailing is None:
        return trailing if absolute is None else absolute
    if trailing <= 0:
        return absolute
    return math.exp(weight * math.log(absolute) + (1 - weight) * math.log(trailing))


def _power_law(reference: float, intensity: float, rule: RhoRule) -> float:
    """Equation (1) without the clip; carbon-free hours are worth any effort (finite: JSON)."""
    if intensity <= 0:
        return 1.0 if reference <= 0 else 1e6
    return float(rule.rho_reference * (reference / intensity) ** (1 / (1 - rule.alpha)))
