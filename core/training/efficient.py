"""rho "efficient": the selection with the highest predicted loss drop per FLOP.

The objective importance(S) / cost(S) is a fraction, but its best set is the best of *its own* cost:
a set of the same cost and more importance would have the higher ratio. So the maximum lies on the
value curve (best importance for every budget), and the best ratio over the curve's points is the
optimum, exact where the curve is (`selector` has the bound elsewhere). No iteration is needed.

Which rate. The first-order drop is proportional to the learning rate, and the rule for rates
(`schedule`) gives a smaller share a higher one. Sets are compared at **one common rate** all the
same: the higher rate makes up for the little that is moved, and a prediction five times further
along the same straight line would credit a small set with more than first order can tell. What was
measured (docs/learning.md, "Predicted and realised") speaks against this at the start of a run:
realised drops per FLOP fall with the share where predictions at a common rate rise. Later in a run
nothing was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from core.training.costs import FlopsProfile
from core.training.interval import NOTHING_SPARED, Spared, curve_over, select_over
from core.training.selector import Selection

#: full fine-tuning is chosen where its drop per FLOP is this share of the best one or more: nearer
#: than first-order predictions can tell, and it needs the fewest steps
NEAR: Final = 0.99
# of a budget that a point of the curve names: rounding on the way there and back
_ROUNDING: Final = 1e-12


def full_ratio(
    profile: FlopsProfile, importance: Mapping[str, float], chosen: Selection
) -> float | None:
    """Full fine-tuning's predicted drop per FLOP over that of ``chosen`` (``flops``: of its mean
    step). None where either predicts no drop or nothing costs.
    """
    drop = math.fsum(importance.values())
    if not (drop > 0 and chosen.importance > 0 and profile.full_flops and chosen.flops > 0):
        return None
    return (drop / profile.full_flops) / (chosen.importance / chosen.flops)


def select_efficient(
    profile: FlopsProfile,
    importance: Mapping[str, float],
    most_flops: float,
    spared: Spared = NOTHING_SPARED,
) -> Selection:
    """The set of highest importance per FLOP of the mean step among those within ``most_flops``.

    ``Selection.flops`` is the mean step's. Where nothing affordable is worth anything, the choice
    of `select_over`.

    Raises:
        RhoInfeasible, InvalidInput: as `select`.
    """
    budgets, values = curve_over(profile, importance, spared)
    is_affordable = (budgets <= most_flops) & (budgets > 0) & (values > 0)
    budgets, values = budgets[is_affordable], values[is_affordable]
    if not len(budgets):
        return select_over(profile, importance, most_flops, spared)
    best = float(budgets[(values / budgets).argmax()])
    return select_over(profile, importance, min(best * (1 + _ROUNDING), most_flops), spared)
