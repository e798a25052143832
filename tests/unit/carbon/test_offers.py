"""Wishes that cannot be met: what is missing, and ways out that hold as their words state them."""

import json
import re
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from core.carbon.offers import offers
from core.carbon.planner import Infeasible, Plan, Wish, plan
from core.units import joules_to_wh, wh_to_joules
from tests.unit.carbon.test_planner import DAY, HOUR, NOW, slots, work

IMPOSSIBLE = {
    "time": (Wish(rho=0.8, deadline=NOW + 3 * HOUR), "time"),
    "time at the lowest rho": (Wish(budget_g=1e6, deadline=NOW + HOUR), "time"),
    "grams": (Wish(budget_g=120.0, deadline=NOW + 24 * HOUR), "grams"),
    "grams at a rho": (Wish(rho=0.9, budget_g=300.0, deadline=NOW + 24 * HOUR), "grams"),
    "energy": (Wish(budget_j=1.0e6, deadline=NOW + 24 * HOUR), "energy"),
    "grams, now": (Wish(budget_g=200.0, schedule="now", deadline=NOW + 9 * HOUR), "grams"),
    "grams in one run": (
        Wish(budget_g=120.0, may_suspend=False, deadline=NOW + 24 * HOUR),
        "grams",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_the_impossible_is_refused_with_numbers_and_three_offers_that_hold(name):
    wish, missing = IMPOSSIBLE[name]
    refused = plan(wish, work(), slots(DAY), NOW)
    assert isinstance(refused, Infeasible)
    assert refused.missing == missing
    assert refused.needed > refused.available
    found = offers(wish, work(), slots(DAY), NOW)
    assert len(found) == 3
    assert len({offer.kind for offer in found}) == 3
    for offer in found:
        again = plan(offer.wish, replace(work(), steps=offer.steps), slots(DAY), NOW)
        assert isinstance(again, Plan)
        assert offer.message
        json.dumps(offer.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_offers_hold_as_their_words_state_them(name):
    wish, _ = IMPOSSIBLE[name]
    wish = replace(wish, deadline=wish.deadline + timedelta(seconds=40))
    for offer in offers(wish, work(), slots(DAY), NOW):
        stated, steps = wish, work().steps
        if found := re.search(r"Train (\d+) of", offer.message):
            steps = float(found[1])
        if found := re.search(r"to ([\d.]+) g\.", offer.message):
            stated = replace(stated, budget_g=float(found[1]))
        if found := re.search(r"to ([\d.]+) Wh\.", offer.message):
            stated = replace(stated, budget_j=wh_to_joules(float(found[1])))
        if found := re.search(r"until ([\dT:+-]+\d)", offer.message):
            stated = replace(stated, deadline=datetime.fromisoformat(found[1]))
        if found := re.search(r"to ([\d.]+)\.$", offer.message):
            stated = replace(stated, rho=float(found[1]))
        again = plan(stated, replace(work(), steps=steps), slots(DAY), NOW)
        assert isinstance(again, Plan), offer.message


def test_what_is_missing_is_said_in_the_callers_own_units():
    energy = Wish(budget_j=wh_to_joules(1000) / 1.2, pue=1.2, deadline=NOW + 24 * HOUR)
    refused = plan(energy, work(), slots(DAY), NOW)
    least_wh = joules_to_wh(work().energy_j(work().rho_min)) * 1.2
    assert refused.message == (
        f"The work needs {least_wh:.4g} Wh and 1000 Wh of the budget are left."
    )
    grams = plan(Wish(budget_g=120.0, deadline=NOW + 24 * HOUR), work(), slots(DAY), NOW)
    assert "g, reserve included, and 120 g of the budget are left" in grams.message
    short = replace(work(), steps=work().steps / 100)
    assert plan(
        Wish(rho=1.0, deadline=NOW + timedelta(minutes=3)), short, slots(DAY), NOW
    ).message == (
        "The work takes 3.6 min and 3.0 min are left until the deadline: 0.6 min are missing."
    )


def test_a_feasible_wish_gets_no_offers():
    assert offers(Wish(rho=0.5, deadline=NOW + 24 * HOUR), work(), slots(DAY), NOW) == ()
