"""The quality curve against single selections and against every set, on small graphs."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.training.quality import MAX_POINTS, quality_curve
from core.training.selector import select
from tests.unit.training.test_selector import best_by_force, graphs, tiny_costs

#: measured drops follow predicted ones by it
POWER = 0.15


def test_the_curve_of_a_model_is_what_single_selections_give() -> None:
    costs, rng = tiny_costs("SmolLM2-135M"), random.Random(5)
    importance = {name: rng.gauss(0.2, 1) for name in costs.names}
    best = math.fsum(value for value in importance.values() if value > 0)
    curve = quality_curve(costs, importance)
    assert 10 < len(curve) <= MAX_POINTS
    for rho, share in curve:
        single = select(costs, importance, rho * costs.full_flops * (1 + 1e-12)).importance
        assert share == pytest.approx((single / best) ** POWER, rel=0.02 * POWER)
    assert curve[-1][1] == 1
    assert curve[-1][0] <= 1


@given(graphs())
def test_every_point_is_the_best_of_its_budget_and_the_last_the_best_of_all(instance) -> None:
    costs, importance, _ = instance
    curve = quality_curve(costs, importance)
    best = math.fsum(value for value in importance.values() if value > 0)
    if not curve:
        assert not best or not costs.full_flops
        return
    assert len(curve) <= MAX_POINTS
    for (rho, share), (later, more) in itertools.pairwise(curve):
        assert rho < later
        assert share < more
    assert curve[-1][1] == 1
    for rho, share in curve:
        force = best_by_force(costs, importance, rho * costs.full_flops * (1 + 1e-9))
        assert share == pytest.approx((force / best) ** POWER, abs=1e-9)


@given(st.integers(0, 3))
def test_nothing_worth_training_has_no_curve(seed: int) -> None:
    costs, rng = tiny_costs("OPT-125M"), random.Random(seed)
    assert quality_curve(costs, {name: -rng.random() for name in costs.names}) == ()
