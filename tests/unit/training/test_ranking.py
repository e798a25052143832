"""Tensors are ranked between drop and slope; by drops alone only where that is asked."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from core.errors import RhoInfeasible
from core.training.costs import FlopsProfile
from core.training.methods import SelectionPoint, method_named
from core.training.ranking import is_drop, worth
from core.training.selector import select
from tests.unit.training.test_selector import graphs


@given(graphs(), st.data())
def test_the_choice_is_the_best_by_worth_and_tells_its_drop(instance, data) -> None:
    costs, importance, _ = instance
    assume(costs.full_flops > 0)
    sizes = st.integers(1, 10_000)
    elements = {name: data.draw(sizes) for name in costs.names}
    rho = data.draw(st.floats(0.3, 1))
    point = SelectionPoint(
        profile=costs, rho=rho, measure_importance=lambda: importance, elements=elements
    )
    ranked = {name: importance[name] / elements[name] ** 0.4 for name in importance}
    try:
        best = select(costs, ranked, rho * costs.full_flops)
    except RhoInfeasible:
        with pytest.raises(RhoInfeasible):
            method_named("green").choose(point)
        return
    choice = method_named("green").choose(point)
    assert choice.names == best.names
    assert choice.importance == pytest.approx(math.fsum(importance[n] for n in choice.names))


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
