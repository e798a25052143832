"""What every budget would buy: the job's own quality over rho, from one measurement of importance.

Importance is the loss drop of one update to first order and adds up over tensors, so the best
importance that a budget pays for, times the learning rate of what it trains, over the best of all,
is the share of the attainable drop that this budget predicts. Rates are those of the rule
(`schedule`), higher for smaller shares. The more is predicted, the less of it comes true: measured
drops follow a low power of predicted ones (docs/learning.md, "Predicted and realised"), and so does
the curve. The carbon planner plans with it instead of an assumed curve.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from core.training.costs import FlopsProfile
from core.training.interval import (
    NOTHING_SPARED,
    LearningRate,
    Spared,
    at_one_rate,
    curve_over,
)

MAX_POINTS: Final = 33
#: of the search behind a curve: coarser than a selection's, so that the curve of a model of 270
#: tensors takes about as long as one selection (27 ms; 5 to 28), times the boundaries where hidden
#: states are stored; see `selector` for what the values may lack
_RESOLUTION: Final = 20_000

#: the power: .3 and .17 after 12 steps at rho .4 and .5, .12 after 64, .08 after 96 at rho .5
_DIMINISHING: Final = 0.15

QualityCurve = tuple[tuple[float, float], ...]
NO_CURVE: Final[QualityCurve] = ()


def quality_curve(
    profile: FlopsProfile,
    importance: Mapping[str, float],
    spared: Spared = NOTHING_SPARED,
    rate: LearningRate = at_one_rate,
) -> QualityCurve:
    """(rho, share 0..1 of the best predicted drop), at most ``MAX_POINTS``, both strictly rising.

    The last point is the best set of all, at share 1 and what it costs; the first the cheapest of
    positive importance. Empty where no tensor has any.
    """
    budgets, values = curve_over(profile, importance, spared, rate=rate, resolution=_RESOLUTION)
    budgets, values = budgets[values > 0], values[values > 0]
    if not len(values) or not profile.full_flops:
        return ()
    grid = np.linspace(budgets[0], budgets[-1], MAX_POINTS)
    # the ends are themselves points: no rounding may lose them
    grid[0], grid[-1] = budgets[0], budgets[-1]
    places = np.unique(np.searchsorted(budgets, grid, side="right") - 1)
    rhos = budgets[places] / profile.full_flops
    shares = (values[places] / values[-1]) ** _DIMINISHING
    is_new = np.diff(rhos, prepend=-1.0) > 0
    is_new &= shares > np.maximum.accumulate(np.append(-1.0, shares[:-1]))
    return tuple(zip(rhos[is_new].tolist(), shares[is_new].tolist(), strict=True))
