"""The kernels against brute force and a linear programme."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from core.carbon.schedule import (
    cheapest_cells,
    cheapest_stretch,
    cost,
    fill_cheapest,
    highest_rho,
)

grams = st.lists(st.floats(1, 1000), min_size=1, max_size=9)


def one(values):
    return np.array([values], dtype=float)


@settings(max_examples=50)
@given(grams, st.floats(0, 1), st.floats(0.1, 900))
def test_filling_is_the_optimum_of_the_linear_programme(values, share, width_s):
    need_s = share * len(values) * width_s
    amounts = fill_cheapest(one(values), np.array([need_s]), width_s=width_s)
    solved = linprog(
        values, A_eq=[[1.0] * len(values)], b_eq=[need_s], bounds=[(0, width_s)] * len(values)
    )
    assert amounts.sum() == pytest.approx(need_s)
    assert (amounts @ np.array(values))[0] == pytest.approx(solved.fun, rel=1e-6, abs=1e-6)


def brute_force(values, cells, start_cost, running):
    best = np.inf
    for chosen in itertools.combinations(range(len(values)), cells):
        spent = sum(values[i] for i in chosen)
        for i in chosen:
            if i - 1 not in chosen and not (i == 0 and running):
                spent += start_cost * values[i]
        best = min(best, spent)
    return best


@given(grams, st.data(), st.floats(0.001, 5), st.booleans())
def test_whole_cells_with_a_cost_of_starting_equal_brute_force(values, data, start_cost, running):
    cells = data.draw(st.integers(1, len(values)))
    at = np.array([running])
    price = np.array([start_cost])
    amounts = cheapest_cells(
        one(values), np.array([float(cells)]), width_s=1.0, start_cost_s_B=price, running_B=at
    )
    assert amounts.sum() == pytest.approx(cells)
    found = cost(amounts, one(values), price, at)[0]
    assert found == pytest.approx(brute_force(values, cells, start_cost, running), rel=1e-6)


@given(grams, st.floats(0.01, 1))
def test_one_stretch_equals_trying_every_start(values, share):
    need_s = share * len(values)
    whole, part = int(need_s + 1e-9), max(need_s - int(need_s + 1e-9), 0)
    tried = []
    for first in range(len(values)):
        used = values[first : first + whole]
        tail = values[first + whole : first + whole + 1]
        if len(used) == whole and (part == 0 or tail):
            tried.append(sum(used) + (part * tail[0] if part else 0))
    amounts = cheapest_stretch(one(values), np.array([need_s]), width_s=1.0)
    assert amounts.sum() == pytest.approx(need_s)
    assert (amounts @ np.array(values))[0] == pytest.approx(min(tried))
    on = np.flatnonzero(amounts[0])
    assert (np.diff(on) == 1).all()


def test_batches_equal_jobs_taken_one_by_one():
    random = np.random.default_rng(0)
    values = random.uniform(10, 900, (40, 17))
    need, price = random.uniform(0, 17, 40), random.choice([0.0, 0.4, 2.0], 40)
    running = random.random(40) < 0.5
    together = cheapest_cells(values, need, width_s=1.0, start_cost_s_B=price, running_B=running)
    for i in range(40):
        alone = cheapest_cells(
            values[i : i + 1],
            need[i : i + 1],
            width_s=1.0,
            start_cost_s_B=price[i : i + 1],
            running_B=running[i : i + 1],
        )
        np.testing.assert_allclose(together[i], alone[0])


@pytest.mark.parametrize("need_s", [1e-18, 1e-12, 1e-7])
@pytest.mark.parametrize("running", [True, False])
def test_less_than_a_hair_of_a_cell_is_left_and_still_planned(need_s, running):
    values = np.array([[300.0, 100.0, 200.0]] * 2)
    amounts = cheapest_cells(
        values,
        np.array([need_s, 0.0]),
        width_s=1800.0,
        start_cost_s_B=np.array([60.0, 60.0]),
        running_B=np.array([running, running]),
    )
    assert amounts.sum(axis=1).tolist() == [need_s, 0.0]


def test_a_flat_forecast_means_now():
    flat = np.full((1, 24), 300.0)
    for price in (0.0, 0.5):
        amounts = cheapest_cells(
            flat,
            np.array([3.0]),
            width_s=1.0,
            start_cost_s_B=np.array([price]),
            running_B=np.array([False]),
        )
        assert amounts[0, :3].tolist() == [1, 1, 1]


def test_dear_starts_merge_stretches():
    values = one([1, 100, 1, 100, 1, 60, 60, 60])

    def stretches(price):
        on = (
            cheapest_cells(
                values,
                np.array([3.0]),
                width_s=1.0,
                start_cost_s_B=np.array([price]),
                running_B=np.array([False]),
            )[0]
            > 0
        )
        return int((np.diff(on.astype(int), prepend=0) == 1).sum())

    assert stretches(0.0) == 3
    assert stretches(1000.0) == 1


@settings(max_examples=50)
@given(
    st.lists(st.floats(1, 1000), min_size=2, max_size=12),
    st.floats(0.05, 1.2),
    st.floats(0.1, 0.9),
    st.sampled_from([0.0, 0.3]),
)
def test_the_highest_rho_fits_and_a_higher_one_does_not(values, share, rho_min, suspend_j):
    """Against the linear programme: most seconds within the budget, one joule a second."""
    width_s = 1.0
    total_s = 0.8 * len(values)  # of full fine-tuning
    budget = share * sum(sorted(values)) * 0.8
    found = highest_rho(
        one(values),
        np.array([budget]),
        width_s=width_s,
        limit_s_B=np.array([float(len(values))]),
        running_B=np.array([False]),
        rho_min=rho_min,
        need_s=lambda rho: rho * total_s,
        power_w=np.ones_like,
        suspend_j=suspend_j,
    )[0]
    solved = linprog(
        -np.ones(len(values)), A_ub=[values], b_ub=[budget], bounds=[(0, width_s)] * len(values)
    )
    ceiling = min(-solved.fun / total_s, 1.0)
    if np.isnan(found):
        assert ceiling < rho_min * (1 + 1e-6) or suspend_j > 0
    elif suspend_j == 0:
        assert found == pytest.approx(ceiling, rel=1e-4)
    else:
        assert found <= ceiling * (1 + 1e-6)
