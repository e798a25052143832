"""Tensors are ranked between drop and slope; by drops alone only where that is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from core.errors import RhoInfeasible
from core.training.costs import FlopsProfile
from core.training.interval import Spared
from core.training.methods import SelectionPoint, method_named
from core.training.ranking import is_drop, rank, worth
from core.training.selector import select
from tests.unit.training.test_selector import graphs


def _affordable(costs: FlopsProfile, importance: Mapping[str, float], budget: float) -> list[str]:
    return [n for n in importance if costs.step_flops((n,)) <= budget]


@given(graphs(), st.data())
def test_the_choice_is_the_best_by_worth_of_the_candidates_and_tells_its_drop(
    instance, data
) -> None:
    costs, importance, _ = instance
    assume(costs.full_flops > 0)
    sizes = st.integers(1, 10_000)
    elements = {name: data.draw(sizes) for name in costs.names}
    rho = data.draw(st.floats(0.3, 1))
    budget = rho * costs.full_flops
    point = SelectionPoint(
        profile=costs, rho=rho, measure_importance=lambda: importance, elements=elements
    )
    ranked = rank(costs, importance, elements, budget)
    assert ranked.keys() <= importance.keys()
    assert all(ranked[name] == worth(importance, elements)[name] for name in ranked)
    if costs.forward_flops and not _affordable(costs, importance, budget):
        with pytest.raises(RhoInfeasible):
            method_named("green").choose(point)
        return
    choice = method_named("green").choose(point)
    if costs.full_flops <= budget:
        assert (choice.names, choice.importance) == (costs.trainable, None)
        return
    assert choice.names == select(costs, ranked, budget).names
    assert choice.importance == pytest.approx(math.fsum(importance[n] for n in choice.names))


@given(graphs(), st.floats(0.3, 1.2))
def test_what_can_gain_can_still_gain_among_the_candidates(instance, rho) -> None:
    costs, importance, _ = instance
    budget = rho * costs.full_flops
    elements = dict.fromkeys(importance, 1)
    ranked = rank(costs, importance, elements, budget)
    gains = [n for n in _affordable(costs, importance, budget) if importance[n] > 0]
    kept = [n for n in _affordable(costs, ranked, budget) if importance[n] > 0]
    assert bool(gains) == bool(kept)


@pytest.mark.parametrize(
    ("budget", "lowest"),
    [
        # 10 forward, then 2 a way to the next of six tensors and 2 for its own gradient
        (12.0, 0),  # of 2 all goes into the first one's gradient
        (16.0, 2),  # of 6 a fifth is kept: 4 for ways is two steps down
        (19.9, 3),  # of 9.9: 6 for ways is three
        (20.0, 5),  # of 10: 8, as far as the last two are
    ],
)
def test_a_fifth_of_the_budget_is_kept_for_gradients_of_weights(budget, lowest) -> None:
    names = ("a", "b", "c", "d", "e", "f")
    ways = tuple((0b111111 >> place << place, 2.0) for place in range(1, 5))
    own = (*((1 << place, 2.0) for place in range(5)), (1 << 5, 4.0))
    costs = FlopsProfile(names=names, forward_flops=10.0, terms=(*ways, *own), connected=0b111111)
    drops = {name: 1.0 + place for place, name in enumerate(names)}
    ranked = rank(costs, drops, dict.fromkeys(names, 1), budget)
    assert tuple(ranked) == names[: lowest + 1]


def test_where_weights_cost_little_no_more_than_that_is_kept() -> None:
    costs = FlopsProfile(
        names=("a", "b", "c"),
        forward_flops=10.0,
        terms=((1, 0.1), (2, 0.1), (4, 0.1), (6, 5.0)),
        connected=7,
    )
    drops = dict.fromkeys(costs.names, 1.0)
    elements = dict.fromkeys(costs.names, 1)
    assert set(rank(costs, drops, elements, 15.3)) == {"a", "b", "c"}
    assert set(rank(costs, drops, elements, 15.1)) == {"a"}


def test_what_is_spared_of_the_forward_pass_is_room_too() -> None:
    costs = FlopsProfile(
        names=("a", "b", "c"),
        forward_flops=10.0,
        terms=((1, 1.0), (2, 1.0), (4, 9.0), (6, 4.0)),
        connected=7,
    )
    spared = Spared(boundary={"a": 1, "b": 0, "c": -1}, flops=(3.0, 6.0))
    drops = dict.fromkeys(costs.names, 1.0)
    elements = dict.fromkeys(costs.names, 1)
    # with the 3 that b is spared the budget is 15, of whose 5 above the forward pass 4 are its way
    assert set(rank(costs, drops, elements, 12.0, spared)) == {"a", "b"}
    assert set(rank(costs, drops, elements, 11.9, spared)) == {"a"}


def test_of_two_tensors_with_one_drop_and_one_cost_the_smaller_is_trained() -> None:
    costs = FlopsProfile(
        names=("wide", "narrow"), forward_flops=10, terms=((1, 5), (2, 5)), connected=3
    )
    drops = {"wide": 1.1, "narrow": 1.0}
    for elements, trained in (({"wide": 400, "narrow": 100}, "narrow"), ({}, "wide")):
        point = SelectionPoint(
            profile=costs, rho=0.75, measure_importance=lambda: drops, elements=elements
        )
        assert method_named("green").choose(point).names == (trained,)


def test_an_adapter_moves_as_a_whole() -> None:
    factors = {f"{block}.lora_{ab}.default.weight": 1.0 for block in "xy" for ab in "AB"}
    elements = {name: 8 if name.startswith("x") else 2 for name in factors}
    costs = FlopsProfile(
        names=tuple(factors), forward_flops=10, terms=((3, 5), (12, 5)), connected=15
    )
    point = SelectionPoint(
        profile=costs, rho=0.75, measure_importance=lambda: factors, elements=elements
    )
    trained = method_named("green_lora").choose(point).names
    assert {name[0] for name in trained} == {"y"}


def test_worth_lies_between_drop_and_slope() -> None:
    found = worth({"a": 6.0, "b": -8.0}, {"a": 1, "b": 2**20})
    assert found == {"a": pytest.approx(6.0), "b": pytest.approx(-(2**-6))}
    kinds = ("importance", "taylor", "fisher", "magnitude", "random")
    assert [kind for kind in kinds if is_drop(kind)] == ["importance", "taylor"]
