"""What a job still has to do and what it costs: steps, seconds and joules per step, quality.

Shape suffix: B, a batch of values of rho.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np

from core.carbon.rho import ALPHA
from core.carbon.schedule import Floats
from core.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class CostPoint:
    """One measured (or assumed) point of the machine: seconds and joules of a step at ``rho``."""

    rho: float
    s_per_step: float
    j_per_step: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Seconds and joules per step as functions of rho: linear between points, and beyond the last
    two; with one point, proportional to rho.

    Args:
        points: by rising rho; seconds and joules must rise with it.
    """

    points: tuple[CostPoint, ...]

    def __post_init__(self) -> None:
        if not self.points or any(
            not (0 < p.rho <= 1 and p.s_per_step > 0 and p.j_per_step > 0) for p in self.points
        ):
            raise InvalidInput("Cost points need rho in (0, 1], seconds and joules above 0.")
        for low, high in pairwise(self.points):
            rising = low.rho < high.rho and low.s_per_step <= high.s_per_step
            if not (rising and low.j_per_step <= high.j_per_step):
                raise InvalidInput(
                    f"Seconds and joules per step must rise with rho; {low} then {high}."
                )

    @classmethod
    def proportional(
        cls, *, full_s_per_step: float, full_j_per_step: float, fixed_share: float = 0.0
    ) -> Self:
        """Before calibration: ``c(rho) = f0 + (1 - f0) rho`` times the cost of a full step.

        Args:
            fixed_share: f0, the part of a step that rho does not shrink (data loading, optimiser).
        """
        low = 0.1
        share = fixed_share + (1 - fixed_share) * low
        return cls(
            points=(
                CostPoint(
                    rho=low,
                    s_per_step=share * full_s_per_step,
                    j_per_step=share * full_j_per_step,
                ),
                CostPoint(rho=1.0, s_per_step=full_s_per_step, j_per_step=full_j_per_step),
            )
        )

    def s_per_step(self, rho: float) -> float:
        return float(self.s_per_step_batch(np.array([rho]))[0])

    def j_per_step(self, rho: float) -> float:
        return float(self.j_per_step_batch(np.array([rho]))[0])

    def s_per_step_batch(self, rho_B: Floats) -> Floats:
        return self._at(rho_B, [p.s_per_step for p in self.points])

    def j_per_step_batch(self, rho_B: Floats) -> Floats:
        return self._at(rho_B, [p.j_per_step for p in self.points])

    def power_w(self, rho: float) -> float:
        return self.j_per_step(rho) / self.s_per_step(rho)

    def power_w_batch(self, rho_B: Floats) -> Floats:
        return np.asarray(self.j_per_step_batch(rho_B) / self.s_per_step_batch(rho_B))

    def _at(self, rho_B: Floats, values: list[float]) -> Floats:
        rhos = np.array([p.rho for p in self.points])
        known = np.array(values)
        if len(rhos) == 1:
            return np.asarray(known[0] * rho_B / rhos[0])
        right_B = np.clip(np.searchsorted(rhos, rho_B), 1, len(rhos) - 1)
        slope = np.diff(known) / np.diff(rhos)
        line_B = known[right_B - 1] + slope[right_B - 1] * (rho_B - rhos[right_B - 1])
        # rounding must not lift the line above the point it leads to: costs rise with rho
        below_B = rho_B <= rhos[right_B]
        line_B = np.where(below_B, np.minimum(line_B, known[right_B]), line_B)
        # a line through noisy points may cross zero far below them; a step never costs nothing
        return np.asarray(np.maximum(line_B, 1e-9 * known[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is left to do.

    Args:
        steps: optimiser steps left, above 0; may be a fraction of one.
        cost: on the machine that will run them.
        rho_min: lowest feasible share of full fine-tuning, 0..1.
        suspend_s: time of one checkpoint, release and restore, at running power.
        suspend_j: energy of it beyond that.
    """

    steps: float
    cost: StepCost
    rho_min: float
    suspend_s: float = 0.0
    suspend_j: float = 0.0

    def __post_init__(self) -> None:
        assert self.steps > 0, self
        assert 0 < self.rho_min <= 1, self
        assert self.suspend_s >= 0, self
        assert self.suspend_j >= 0, self

    def duration_s(self, rho: float) -> float:
        return self.steps * self.cost.s_per_step(rho)

    def energy_j(self, rho: float) -> float:
        return self.steps * self.cost.j_per_step(rho)


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityCurve:
    """Expected quality share q(rho), 1 at rho 1; concave and rising.

    Args:
        points: (rho, quality), by rising rho, such as the selector's best importance for every
            budget; linear between them and to (0, 0). Empty: ``rho ** alpha``.
        alpha: .25 by default, which is below what GreenTrainer's own sweep shows from rho .5 on
            (arXiv 2309.13192, OPT-2.7B on SciTLDR: .93 of full ROUGE-1 at .5, 1.0 at .6), and so
            errs on the side of more work.
    """

    points: tuple[tuple[float, float], ...] = ()
    alpha: float = ALPHA

    def __post_init__(self) -> None:
        slopes = [
            (high[1] - low[1]) / (high[0] - low[0])
            for low, high in pairwise(((0.0, 0.0), *self.points))
            if high[0] > low[0]
        ]
        if len(slopes) != len(self.points) or any(s < 0 for s in slopes):
            raise InvalidInput("A quality curve must rise with rho, from above 0 on.")
        if any(later > earlier + 1e-9 for earlier, later in pairwise(slopes)):
            raise InvalidInput("A quality curve must be concave; take its upper hull.")

    def quality(self, rho: float) -> float:
        if not self.points:
            return float(rho**self.alpha)
        for low, high in pairwise(((0.0, 0.0), *self.points)):
            if rho <= high[0]:
                return low[1] + (high[1] - low[1]) * (rho - low[0]) / (high[0] - low[0])
        return self.points[-1][1]

    def rho_for(self, quality: float) -> float:
        """The least rho that reaches ``quality``; 1 where none does."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if self.quality(middle) >= quality else (middle, high)
        return high
