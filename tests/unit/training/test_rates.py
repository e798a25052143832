"""Costs in seconds or joules: the same form as FLOPs, so the same exact selection."""

from __future__ import annotations

import functools
import itertools
import random

import pytest

from core.errors import RhoInfeasible
from core.training.costs import FlopsProfile
from core.training.efficient import select_efficient
from core.training.interval import Spared, mean_flops, select_over
from core.training.pricing import price_steps
from core.training.rates import Rates, Sizes, priced, priced_spared, step_cost
from core.training.selector import common_unit, select
from tests.fixtures.rates import RATES
from tests.fixtures.tiny_models import tiny_model


@functools.cache
def _llama():
    model = tiny_model("llama")
    costs = price_steps(model).mean_profile([(3, 12, 0, 12)])
    return costs, Sizes(elements={n: p.numel() for n, p in model.named_parameters()})


def _chain(rng, n):
    """A small model: a forward pass, a way down and a price of each tensor's own."""
    chain = FlopsProfile.chain(
        [f"t{i}" for i in range(n)],
        [float(rng.randint(1, 9)) for _ in range(n)],
        [float(rng.randint(0, 9)) for _ in range(n)],
    )
    sizes = Sizes(elements={name: rng.randint(1, 40) for name in chain.names})
    return FlopsProfile(
        names=chain.names,
        forward_flops=float(rng.randint(5, 30)),
        terms=chain.terms,
        connected=chain.connected,
    ), sizes


def _rates(rng):
    prices = ("forward", "activation", "weight", "parameter", "spared")
    return Rates(currency="seconds", unit="seconds", **{p: rng.uniform(0.1, 2) for p in prices})


def _sets(names):
    sizes = range(1, len(names) + 1)
    return [each for size in sizes for each in itertools.combinations(names, size)]


def test_any_set_costs_what_its_work_does_at_these_prices():
    profile, sizes = _llama()
    rng = random.Random(0)
    costs = priced(profile, RATES, sizes)
    full = step_cost(profile, RATES, sizes, profile.trainable)
    for _ in range(50):
        names = rng.sample(profile.trainable, rng.randint(1, len(profile.trainable)))
        by_hand = RATES.forward * profile.forward_flops
        for members, flops in profile.terms:
            needing = [n for n in profile.names if profile.members((n,)) & members]
            if set(needing) & set(names):
                by_hand += flops * (RATES.weight if len(needing) == 1 else RATES.activation)
        by_hand += sum(RATES.parameter * sizes.elements[name] for name in names)
        assert step_cost(profile, RATES, sizes, names) == pytest.approx(by_hand)
        # half a part for each term, of 65,536
        assert costs.step_flops(names) / costs.full_flops == pytest.approx(by_hand / full, abs=1e-3)
    assert costs.step_flops(costs.trainable) == costs.full_flops


def test_the_optimiser_is_paid_once_for_all_micro_batches():
    profile, sizes = _llama()
    split = Sizes(elements=sizes.elements, micro_batches=4)
    names = profile.trainable[:5]
    n_elements = sum(sizes.elements[name] for name in names)
    saved = step_cost(profile, RATES, sizes, names) - step_cost(profile, RATES, split, names)
    assert saved == pytest.approx(0.75 * RATES.parameter * n_elements)


@pytest.mark.parametrize("seed", range(20))
def test_the_best_set_within_rho_of_the_time_is_chosen(seed):
    rng = random.Random(seed)
    profile, sizes = _chain(rng, 10)
    rates = _rates(rng)
    importance = {name: rng.uniform(-0.2, 1) for name in profile.names}
    costs = priced(profile, rates, sizes)
    every = [(costs.step_flops(s), sum(importance[n] for n in s), s) for s in _sets(costs.names)]
    for rho in (0.4, 0.6, 0.8):
        budget = rho * costs.full_flops
        affordable = [value for cost, value, _ in every if cost <= budget]
        if not affordable:
            with pytest.raises(RhoInfeasible):
                select(costs, importance, budget)
            continue
        found = select(costs, importance, budget)
        assert found.importance == pytest.approx(max(affordable))
        assert found.flops <= budget
        # and in seconds, before rounding to parts
        full = step_cost(profile, rates, sizes, profile.names)
        assert step_cost(profile, rates, sizes, found.names) <= (rho + 1e-3) * full
    best = max(every, key=lambda each: each[1] / each[0])
    efficient = select_efficient(costs, importance, costs.full_flops)
    assert efficient.importance / efficient.flops == pytest.approx(best[1] / best[0])


@pytest.mark.parametrize("seed", range(10))
def test_and_where_later_passes_find_their_rows_stored(seed):
    rng = random.Random(seed)
    profile, sizes = _chain(rng, 8)
    rates = _rates(rng)
    importance = {name: rng.uniform(0, 1) for name in profile.names}
    levels = sorted(rng.uniform(0, 0.6) * profile.forward_flops for _ in range(3))
    # the nearer the loss, the more lies below
    spared = Spared(
        boundary={name: 2 - at * 3 // 8 for at, name in enumerate(profile.names)},
        flops=tuple(levels),
    )
    costs, priced_rows = priced(profile, rates, sizes), priced_spared(spared, profile, rates, sizes)
    budget = 0.6 * costs.full_flops
    every = [(mean_flops(costs, s, priced_rows), s) for s in _sets(costs.names)]
    affordable = [sum(importance[n] for n in s) for cost, s in every if cost <= budget]
    found = select_over(costs, importance, budget, priced_rows)
    assert found.importance == pytest.approx(max(affordable))


def test_large_models_are_priced_in_parts_that_the_selector_is_exact_for():
    profile, sizes = _llama()
    costs = priced(profile, RATES, sizes)
    prices = [flops for _, flops in costs.terms]
    assert len(prices) > 24
    assert all(price.is_integer() for price in prices)
    assert common_unit(prices, costs.full_flops / 100_000) is not None


def test_prices_decide_what_is_chosen():
    profile, sizes = _llama()
    importance = {name: float(sizes.elements[name]) for name in profile.trainable}
    by_flops = select(profile, importance, 0.7 * profile.full_flops)
    costs = priced(profile, RATES, sizes)
    by_time = select(costs, importance, 0.7 * costs.full_flops)
    assert set(by_time.names) != set(by_flops.names)
    assert costs.step_flops(by_flops.names) > 0.7 * costs.full_flops or (
        by_time.importance > by_flops.importance
    )
