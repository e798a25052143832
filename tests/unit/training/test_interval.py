"""Selections that know what stored hidden states spare: against every set, and without sparing."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import RhoInfeasible
from core.training.costs import FlopsProfile
from core.training.interval import (
    NOTHING_SPARED,
    Spared,
    curve_over,
    mean_flops,
    min_rho,
    reused_share,
    select_over,
)
from core.training.selector import select
from tests.unit.training.test_selector import graphs, tiny_costs


@st.composite
def intervals(draw: st.DrawFn) -> tuple[FlopsProfile, dict[str, float], float, Spared]:
    """Any graph, any assignment of tensors to boundaries; boundaries spare up to the forward."""
    costs, importance, budget = draw(graphs())
    costs = FlopsProfile(
        names=costs.names, forward_flops=7, terms=costs.terms, connected=costs.connected
    )
    n_boundaries, eighths = draw(st.integers(0, 4)), st.integers(0, 8).map(lambda n: n / 8)
    shares = sorted(draw(st.lists(eighths, min_size=n_boundaries, max_size=n_boundaries)))
    places = st.integers(-1, n_boundaries - 1)
    spared = Spared(
        boundary={name: draw(places) for name in costs.names},
        flops=tuple(7 * share for share in shares),
    )
    return costs, importance, budget, spared


def _sets(names):
    sizes = range(1, len(names) + 1)
    return itertools.chain.from_iterable(itertools.combinations(names, n) for n in sizes)


@given(intervals())
def test_equal_to_brute_force(instance) -> None:
    costs, importance, budget, spared = instance
    affordable = [s for s in _sets(costs.names) if mean_flops(costs, s, spared) <= budget]
    if not affordable:
        with pytest.raises(RhoInfeasible) as refused:
            select_over(costs, importance, budget, spared)
        assert refused.value.rho_min * costs.full_flops > budget * (1 - 1e-9)
        return
    found = select_over(costs, importance, budget, spared)
    best = max(math.fsum(importance[n] for n in names) for names in affordable)
    # within rounding of the budget a set may fall on either side of it
    edge = (
        max(
            math.fsum(importance[n] for n in names)
            for names in _sets(costs.names)
            if mean_flops(costs, names, spared) <= budget * (1 - 1e-9)
        )
        if any(mean_flops(costs, n, spared) <= budget * (1 - 1e-9) for n in affordable)
        else -math.inf
    )
    assert edge - 1e-9 <= found.importance <= best + 1e-9
    assert found.flops == mean_flops(costs, found.names, spared) <= budget


@given(intervals())
def test_the_curve_is_the_best_of_every_budget(instance) -> None:
    costs, importance, _, spared = instance
    budgets, values = curve_over(costs, importance, spared)
    assert np.all(np.diff(budgets) > 0)
    assert np.all(np.diff(values) > 0)
    sets = [
        (mean_flops(costs, names, spared), math.fsum(importance[n] for n in names))
        for names in _sets(costs.names)
    ]
    for budget, value in zip(budgets, values, strict=True):
        # within rounding of the budget a set may fall on either side of it
        best = max(worth for flops, worth in sets if flops <= budget + 1e-9)
        surely = max((w for flops, w in sets if flops <= budget - 1e-9), default=-math.inf)
        assert surely - 1e-9 <= value <= best + 1e-9


@given(intervals(), st.floats(0, 1))
def test_rho_min_is_the_cheapest_set(instance, share) -> None:
    costs, _, _, spared = instance
    spared = spared.scaled(share)
    cheapest = min(mean_flops(costs, names, spared) for names in _sets(costs.names))
    assert min_rho(costs, spared) * costs.full_flops == pytest.approx(cheapest)


@given(graphs())
def test_without_reuse_it_is_the_plain_selection(instance) -> None:
    costs, importance, budget = instance
    unused = Spared(boundary=dict.fromkeys(costs.names, 0), flops=(5.0,)).scaled(0.0)
    for spared in (NOTHING_SPARED, unused):
        try:
            plain = select(costs, importance, budget)
        except RhoInfeasible:
            with pytest.raises(RhoInfeasible):
                select_over(costs, importance, budget, spared)
        else:
            assert select_over(costs, importance, budget, spared) == plain


def test_the_same_budget_reaches_deeper_in_a_model() -> None:
    costs, rng = tiny_costs("OPT-125M"), random.Random(2)
    importance = {name: rng.random() for name in costs.names}
    blocks = {n: int(n.split("layers.")[1].split(".")[0]) for n in costs.names if "layers." in n}
    n_blocks = max(blocks.values()) + 1
    places = {n: blocks.get(n, n_blocks if "final" in n else -1) for n in costs.names}
    below = tuple(costs.forward_flops * 0.8 * b / n_blocks for b in range(n_blocks + 1))
    spared = Spared(boundary=places, flops=below)
    budget = costs.min_rho * costs.full_flops * 1.1
    values = [
        select_over(costs, importance, budget, spared.scaled(1 - 1 / passes)).importance
        for passes in (1, 2, 3, 10)
    ]
    assert values == sorted(values)
    assert values[-1] > values[0]
    assert min_rho(costs, spared.scaled(0.9)) < costs.min_rho


@pytest.mark.parametrize(
    ("step", "n_steps", "share"),
    [
        (0, 8, 0.0),  # one pass
        (0, 16, 1 / 2),
        (8, 24, 2 / 3),
        (0, 20, 12 / 20),  # two and a half passes
        (3, 5, 0.0),
        (3, 13, 0.0),  # some samples come twice before others come once
        (3, 21, 8 / 21),
        (0, 0, 0.0),
    ],
)
def test_steps_count_as_spared_once_every_sample_has_surely_passed(step, n_steps, share) -> None:
    assert reused_share(step, n_steps, 8) == pytest.approx(share)
