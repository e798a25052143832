"""The most efficient selection against every set, and what is said of full fine-tuning."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.errors import RhoInfeasible
from core.training.costs import FlopsProfile
from core.training.efficient import full_ratio, select_efficient
from core.training.interval import LearningRate, Spared, mean_flops
from tests.unit.training.test_interval import _sets, intervals


def falling_rate(factor: float) -> LearningRate:
    """By the rule's form, from ``factor`` at a share of .25 and below to 1."""
    return lambda shares: np.exp(np.interp(shares, (0.25, 1.0), np.log([factor, 1.0])))


def _drop(costs, importance, rate, names) -> float:
    share = costs.step_flops(names) / (costs.full_flops or 1.0)
    return math.fsum(importance[n] for n in names) * float(rate(np.array([share]))[0])


@given(intervals(), st.floats(0, 1.1), st.floats(1, 10))
def test_no_affordable_set_drops_more_per_flop(instance, cap, factor) -> None:
    costs, importance, _, spared = instance
    rate = falling_rate(factor)
    most = cap * costs.full_flops

    def drop(names) -> float:
        return _drop(costs, importance, rate, names)

    sets = [
        (drop(names), flops)
        for names in _sets(costs.names)
        if (flops := mean_flops(costs, names, spared)) <= most
    ]
    if not sets:
        with pytest.raises(RhoInfeasible):
            select_efficient(costs, importance, most, spared, rate)
        return
    found = select_efficient(costs, importance, most, spared, rate)
    assert found.flops == mean_flops(costs, found.names, spared) <= most
    gains = [(value, flops) for value, flops in sets if value > 0 and flops < most * (1 - 1e-9)]
    if not gains:
        return
    best = max(value / flops if flops > 0 else math.inf for value, flops in gains)
    if best < math.inf:
        assert drop(found.names) / found.flops >= best * (1 - 1e-9)


# above the boundary all that there is costs less than the least
_SPARING = (
    FlopsProfile(names=("top", "deep"), forward_flops=7, terms=((2, 1),), connected=3),
    {"top": 1.0, "deep": 0.25},
    0,
    Spared(boundary={"top": 0, "deep": -1}, flops=(1.75,)),
)


# what lies above it is worth less than all, for as much before anything is spared
_LESS_ABOVE = (
    FlopsProfile(names=("a", "b", "c"), forward_flops=7, terms=((4, 1),), connected=7),
    {"a": 0.125, "b": 1.0, "c": 0.0},
    0,
    Spared(boundary={"a": -1, "b": 0, "c": 0}, flops=(0.875,)),
)


@example(_SPARING, 1.0, 1.0)
@example(_LESS_ABOVE, 1.0, 1.0)
@given(intervals(), st.floats(0, 1), st.floats(1, 10))
def test_what_budgets_from_the_least_on_buy_is_all_that_is_compared(
    instance, least_share, factor
) -> None:
    costs, importance, _, spared = instance
    rate, most = falling_rate(factor), costs.full_flops
    least = least_share * most
    found = select_efficient(costs, importance, most, spared, rate, least_flops=least)
    assert found.flops == mean_flops(costs, found.names, spared) <= most
    gain = {names: math.fsum(importance[n] for n in names) for names in _sets(costs.names)}
    below = [gain[names] for names in gain if costs.step_flops(names) < least * (1 - 1e-9)]
    best_below = max([0.0, *below])
    assert not best_below or gain[found.names] >= best_below * (1 - 1e-9)
    ratios = [
        _drop(costs, importance, rate, names) / flops
        for names in gain
        # what is worth no more than a cheaper set is not bought to have spent the least
        if costs.step_flops(names) >= least * (1 + 1e-9)
        and gain[names] > best_below * (1 + 1e-9)
        and 0 < (flops := mean_flops(costs, names, spared)) < most * (1 - 1e-9)
    ]
    if ratios and found.flops > 0:
        assert _drop(costs, importance, rate, found.names) / found.flops >= max(ratios) * (1 - 1e-9)


def _two(first: float, second: float) -> tuple[FlopsProfile, dict[str, float]]:
    costs = FlopsProfile(
        names=("top", "deep"), forward_flops=10, terms=((1, 4), (2, 6), (3, 10)), connected=3
    )
    return costs, {"top": first, "deep": second}


def test_full_is_told_from_less() -> None:
    costs, importance = _two(1.0, 0.1)
    chosen = select_efficient(costs, importance, costs.full_flops)
    assert chosen.names == ("top",)
    assert full_ratio(costs, importance, chosen) == pytest.approx((1.1 / 30) / (1.0 / 24))
    costs, importance = _two(1.0, 1.0)
    chosen = select_efficient(costs, importance, costs.full_flops)
    assert chosen.names == ("top", "deep")
    assert full_ratio(costs, importance, chosen) == 1
    # a smaller share's higher rate counts
    costs, importance = _two(1.0, 0.4)
    for factor, names in ((1.0, ("top", "deep")), (2.0, ("top",))):
        rate = falling_rate(factor)
        chosen = select_efficient(costs, importance, costs.full_flops, rate=rate)
        assert chosen.names == names
        share = 24 / 30 if names == ("top",) else 1.0
        gain = (1.0 if names == ("top",) else 1.4) * float(rate(np.array([share]))[0])
        assert full_ratio(costs, importance, chosen, rate=rate) == pytest.approx(
            (1.4 / 30) / (gain / (30 * share))
        )
    costs, importance = _two(-1.0, -2.0)
    assert full_ratio(costs, importance, select_efficient(costs, importance, 30)) is None
