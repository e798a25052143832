"""The most efficient selection against every set, and what is said of full fine-tuning."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import RhoInfeasible
from core.training.costs import FlopsProfile
from core.training.efficient import full_ratio, select_efficient
from core.training.interval import mean_flops
from tests.unit.training.test_interval import _sets, intervals


@given(intervals(), st.floats(0, 1.1))
def test_no_affordable_set_drops_more_per_flop(instance, cap) -> None:
    costs, importance, _, spared = instance
    most = cap * costs.full_flops
    sets = [
        (math.fsum(importance[n] for n in names), flops)
        for names in _sets(costs.names)
        if (flops := mean_flops(costs, names, spared)) <= most
    ]
    if not sets:
        with pytest.raises(RhoInfeasible):
            select_efficient(costs, importance, most, spared)
        return
    found = select_efficient(costs, importance, most, spared)
    assert found.flops == mean_flops(costs, found.names, spared) <= most
    gains = [(value, flops) for value, flops in sets if value > 0 and flops < most * (1 - 1e-9)]
    if not gains:
        return
    best = max(value / flops if flops > 0 else math.inf for value, flops in gains)
    if best < math.inf:
        assert found.importance / found.flops >= best * (1 - 1e-9)


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
    costs, importance = _two(-1.0, -2.0)
    assert full_ratio(costs, importance, select_efficient(costs, importance, 30)) is None
