"""rho "efficient": as much as the set with the highest predicted loss drop per FLOP costs.

The objective rate(S) * importance(S) / cost(S) is a fraction, but where the learning rate is a
matter of the cost its best set is the best of *its own* cost: a set of the same cost and more
importance would have the higher ratio. So the maximum lies on the value curve (best importance for
every budget; one curve for every boundary under which hidden states may be stored, since what is
spared lowers a set's cost and not its rate), and the best ratio over the curves' points is the
optimum, exact where the curve is (`selector` has the bound elsewhere). No iteration is needed.

For whole tensors only what budgets from `LEAST_SHARE` on buy is compared.

Which rate: its own. The first-order drop is proportional to the learning rate, and the rule for
rates (`schedule`) gives a smaller share a higher one. Compared at one common rate, shares came out
in the wrong order per FLOP when their drops were measured; at their own rates predictions come
nearer (docs/learning.md, "Predicted and realised"). Where the caller set the rate, it is one for
all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from core.training.costs import FlopsProfile
from core.training.interval import (
    NOTHING_SPARED,
    LearningRate,
    Spared,
    at_one_rate,
    curves_by_level,
    select_over,
    select_within,
)
from core.training.selector import Selection

#: full fine-tuning is chosen where its drop per FLOP is this share of the best one or more: nearer
#: than first-order predictions can tell, and it needs the fewest steps
NEAR: Final = 0.99
#: of full fine-tuning's cost, the least budget for whole tensors: predictions take .7 for the best
#: also where runs of equal time do not (docs/frontier.md, "What efficient chooses")
LEAST_SHARE: Final = 0.85
# of a budget that a point of the curve names: rounding on the way there and back
_ROUNDING: Final = 1e-12


def full_ratio(
    profile: FlopsProfile,
    importance: Mapping[str, float],
    chosen: Selection,
    spared: Spared = NOTHING_SPARED,
    rate: LearningRate = at_one_rate,
) -> float | None:
    """Full fine-tuning's predicted drop per FLOP over that of ``chosen`` (``flops``: of its mean
    step), each at its own rate. None where either predicts no drop or nothing costs.
    """
    drop = math.fsum(importance.values())
    if not (drop > 0 and chosen.importance > 0 and profile.full_flops and chosen.flops > 0):
        return None
    share = min((chosen.flops + spared.of(chosen.names)) / profile.full_flops, 1.0)
    at_full, at_chosen = map(float, rate(np.array([1.0, share])))
    return (drop * at_full / profile.full_flops) / (chosen.importance * at_chosen / chosen.flops)


def select_efficient(
    profile: FlopsProfile,
    importance: Mapping[str, float],
    most_flops: float,
    spared: Spared = NOTHING_SPARED,
    rate: LearningRate = at_one_rate,
    *,
    least_flops: float = 0.0,
) -> Selection:
    """Of the best sets within each budget from ``least_flops``, were nothing spared, to
    ``most_flops`` of the mean step, the one of highest rate times importance per FLOP of the mean
    step.

    ``Selection.flops`` is the mean step's. Where nothing affordable is worth anything, the choice
    of `select_over`.

    Raises:
        RhoInfeasible, InvalidInput: as `select`.
    """
    best_ratio, best, at = 0.0, None, 0
    floor: tuple[float, float] | None = None
    for curve in curves_by_level(profile, importance, spared, rate=rate):
        budgets = curve.budgets_flops
        trained = budgets + curve.spared_flops
        # the first curve is of all tensors; what costs less than the least is compared only if it
        # is worth what the least buys, as the same set is above its own boundary
        floor = _last_within(least_flops, trained, curve.values) if floor is None else floor
        is_open = (trained >= floor[0]) & (curve.values >= floor[1]) | (trained >= least_flops)
        is_open &= (budgets <= most_flops) & (budgets > 0) & (curve.values > 0)
        ratios = np.divide(curve.values, budgets, out=np.zeros_like(budgets), where=is_open)
        if len(ratios) and (ratio := float(ratios.max())) > best_ratio:
            best_ratio, best, at = ratio, curve, int(ratios.argmax())
    if best is None:
        return select_over(profile, importance, most_flops, spared)
    budget = min(float(best.budgets_flops[at]) * (1 + _ROUNDING), most_flops)
    found = select_within(profile, best.among, budget, best.spared_flops, spared)
    return select_over(profile, importance, budget, spared) if found is None else found


def _last_within(
    least_flops: float, costs: npt.NDArray[np.float64], values: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """Cost and value of what a budget of ``least_flops`` buys, a rounding less; zeros: nothing."""
    if not (n_within := int(np.searchsorted(costs, least_flops, side="right"))):
        return 0.0, 0.0
    less = 1 - _ROUNDING
    return float(costs[n_within - 1]) * less, float(values[n_within - 1]) * less
